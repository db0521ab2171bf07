"""Puzzles with their solutions, and a second judge for each game."""

import ast
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from ring_ray.rewards.games import GAMES
from ring_ray.rewards.games.generation import draw, row_of
from tests.verifiers.cases import Problem

Record: TypeAlias = dict[str, Any]
LEVELS = ("easy", "medium", "hard")
BATCH = 20  # puzzles of a level that are drawn at a time
MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}


def tagged(answer: str) -> str:
    return f"<think>Hm, <answer>no</answer></think> So: <answer>\n{answer}\n</answer>"


def problems(verifier: str, generator: random.Random) -> Iterator[Problem]:
    """Puzzles of all levels, endless; for the verifier of a game or the one that gives partial credit for it."""
    name = verifier.removesuffix("_partial")
    while True:
        seed = generator.randrange(10**6)
        for rows in zip(*(solved(name, level, seed=seed, size=BATCH) for level in LEVELS), strict=False):
            for row, answer in rows:
                yield problem(row | {"verifier": verifier}, answer)


def problem(row: dict[str, str], answer: str) -> Problem:
    return Problem(
        verifier=row["verifier"],
        answer=row["answer"],
        response=tagged(answer),
        right=partial(right, row["verifier"].removesuffix("_partial"), json.loads(row["answer"])),
        changed=lambda generator: tagged(changed(answer, generator)),
    )


def solved(name: str, level: Any, *, seed: int, size: int) -> Iterator[tuple[dict[str, str], str]]:
    """Rows of data, each with its solution."""
    for entry in draw(name, level, seed=seed, size=size):
        answer = GAMES[name].solution(entry)
        assert name != "maze" or answer.count("<|") == entry["metadata"]["shortest_path_length"]
        yield row_of(name, entry), answer


def changed(answer: str, generator: random.Random) -> str:
    """With one number, word or token changed to another of the same answer, or lost."""
    pieces = re.findall(r"<\|\w+\|>|\w+|\s+|[^\w\s]", answer)
    words = [place for place, piece in enumerate(pieces) if re.search(r"\w", piece)]
    place = generator.choice(words)
    pieces[place] = generator.choice(["", *sorted({pieces[word] for word in words}), "7", "Q", "_", "<|up|>"])
    return "".join(pieces)


def right(name: str, record: Record, response: str) -> bool:
    """Whether the last <answer> solves the puzzle."""
    *before, last = response.split("<answer>")
    answer, closing, _ = last.partition("</answer>")
    return bool(before and closing) and ORACLES[name](record, answer.strip())


def _value(record: Record, answer: str) -> bool:
    """In floats, by Python itself; digits and operators are all that it gets to see."""
    answer = answer.translate(str.maketrans("×·÷−", "**/-"))
    if not re.fullmatch(r"[0-9+\-*/()\s]{1,300}", answer) or "**" in answer or "//" in answer:
        return False
    try:
        tree = ast.parse(" ".join(answer.split()), mode="eval")
        value = eval(compile(tree, "", "eval"), {"__builtins__": {}})  # noqa: S307
    except (SyntaxError, ZeroDivisionError, TypeError, OverflowError):
        return False
    numbers = sorted(map(int, re.findall(r"\d+", answer)))
    return bool(numbers == sorted(record["numbers"]) and abs(value - record.get("target", 24)) < 1e-9)


def _grid(answer: str, shape: tuple[int, int]) -> np.ndarray[Any, Any] | None:
    if re.sub(r"[-0-9\s|+=,;\[\]()]", "", answer):
        return None
    rows = [re.findall(r"-?[0-9]+", line) for line in answer.splitlines()]
    grid = [[int(cell) for cell in row] for row in rows if row]
    fits = len(grid) == shape[0] and all(len(row) == shape[1] for row in grid)
    return np.array(grid) if fits and max(map(abs, itertools.chain(*grid))) < 10**9 else None


def _latin(record: Record, answer: str) -> np.ndarray[Any, Any] | None:
    """The grid, where every row and column has each number once and the puzzle's own are kept."""
    puzzle = np.array(record["puzzle"])
    grid = _grid(answer, puzzle.shape)
    if grid is None or (grid != puzzle)[puzzle > 0].any():
        return None
    numbers = np.arange(1, len(puzzle) + 1)
    return grid if all((np.sort(lines, axis=1) == numbers).all() for lines in (grid, grid.T)) else None


def _sudoku(record: Record, answer: str) -> bool:
    grid = _latin(record, answer)
    if grid is None:
        return False
    size, box = len(grid), round(len(grid) ** 0.5)
    boxes = grid.reshape(box, box, box, box).swapaxes(1, 2).reshape(size, size)
    return all(len(set(cells)) == size for cells in boxes.tolist())


def _futoshiki(record: Record, answer: str) -> bool:
    grid = _latin(record, re.sub("[<>∧∨]", " ", answer))
    return grid is not None and all(
        np.sign(grid[r, c] - grid[s, d]) == (-1 if sign == "<" else 1) for r, c, s, d, sign in record["signs"]
    )


def _same_grid(record: Record, answer: str) -> bool:
    expected = np.array(record["output"])
    return np.array_equal(_grid(answer, expected.shape), expected)


def _kakurasu(record: Record, answer: str) -> bool:
    rows, columns = map(np.array, (record["row_sums"], record["column_sums"]))
    grid = _grid(answer, (len(rows), len(columns)))
    if grid is None or not np.isin(grid, (0, 1)).all():
        return False
    by_row, by_column = grid @ np.arange(1, len(columns) + 1), np.arange(1, len(rows) + 1) @ grid
    return np.array_equal(by_row, rows) and np.array_equal(by_column, columns)


def _survo(record: Record, answer: str) -> bool:
    puzzle = np.array(record["puzzle"])
    grid = _grid(answer, puzzle.shape)
    if grid is None or (grid != puzzle)[puzzle != 0].any():
        return False
    adds_up = all((lines[:, :-1].sum(axis=1) == lines[:, -1]).all() for lines in (grid, grid.T))
    return adds_up and sorted(grid[puzzle == 0]) == sorted(record["numbers"])


def _queens(record: Record, answer: str) -> bool:
    """By pairs of queens."""
    rows = ["".join(line.split()) for line in answer.splitlines() if line.strip()]
    size = len(record["board"])
    if len(rows) != size or any(len(row) != size or set(row) - {"Q", "_"} for row in rows):
        return False
    queens = [(r, c) for r in range(size) for c in range(size) if rows[r][c] == "Q"]
    kept = all(rows[r][c] == "Q" for r in range(size) for c in range(size) if record["board"][r][c] == "Q")
    attack = any(r == s or c == d or abs(r - s) == abs(c - d) for (r, c), (s, d) in itertools.combinations(queens, 2))
    return kept and len(queens) == size and not attack


def _colors(record: Record, answer: str) -> bool:
    try:
        pairs = json.loads(answer, object_pairs_hook=list)
        color = {int(vertex): value for vertex, value in pairs}
    except (ValueError, TypeError, RecursionError):
        return False
    valid = sorted(color) == sorted(record["vertices"]) and all(value in record["colors"] for value in color.values())
    return valid and all(color[one] != color[other] for one, other in record["edges"])


def _walk(record: Record, answer: str) -> bool:
    if not re.fullmatch(r"(<\|(up|down|left|right)\|>\s*)+", answer):
        return False
    cells = {(r, c): cell for r, line in enumerate(record["grid"]) for c, cell in enumerate(line)}
    place = next(where for where, cell in cells.items() if cell == record["start"])
    for token in re.findall(r"\w+", answer):
        place = (place[0] + MOVES[token][0], place[1] + MOVES[token][1])
        if cells.get(place, record["wall"]) == record["wall"]:
            return False
    return bool(cells[place] == record["goal"])


def _towers(record: Record, answer: str) -> bool:
    """By the peg of each disk: one may move where no smaller one is on either peg."""
    peg = dict.fromkeys(range(1, record["disks"] + 1), record["start"])
    for line in answer.lower().splitlines():
        words = line.strip().removesuffix(".").split(" ")
        if words == [""]:
            continue
        if len(words) != 9 or words[:2] + words[3:5] + words[6:8] != ["move", "disk", "from", "peg", "to", "peg"]:
            return False
        if not all(re.fullmatch("[0-9]{1,3}", words[place]) for place in (2, 5, 8)):
            return False
        disk, source, target = (int(words[place]) for place in (2, 5, 8))
        if peg.get(disk) != source or not 1 <= target <= record["pegs"]:
            return False
        if any(peg[smaller] in (source, target) for smaller in range(1, disk)):
            return False
        peg[disk] = target
    return set(peg.values()) == {record["target"]}


def _who_is_what(record: Record, answer: str) -> bool:
    """From words, not from patterns: NAME is [a] TERM."""
    words = re.findall(r"\w+|[^\w\s]", answer.casefold())
    said: dict[str, set[str]] = {name.casefold(): set() for name in record["truthful"]}
    terms = [term.casefold() for term in record["terms"]]
    for place, word in enumerate(words):
        rest = words[place + 1 : place + 4]
        if word in said and rest[:1] == ["is"]:
            said[word].update({term for term in rest[1:][rest[1:2] in (["a"], ["an"]) :][:1] if term in terms})
    return all(said[name.casefold()] == {terms[not truthful]} for name, truthful in record["truthful"].items())


def _name(record: Record, answer: str) -> bool:
    words = re.findall(r"[^\s.]+|\.+(?=.)", answer)
    return [word.casefold() for word in words] == [record["name"].casefold()]


ORACLES: dict[str, Callable[[Record, str], bool]] = {
    "arc_1d": _same_grid,
    "arc_agi": _same_grid,
    "countdown": _value,
    "futoshiki": _futoshiki,
    "graph_color": _colors,
    "kakurasu": _kakurasu,
    "knights_knaves": _who_is_what,
    "maze": _walk,
    "mini_sudoku": _sudoku,
    "n_queens": _queens,
    "puzzle24": _value,
    "sudoku": _sudoku,
    "survo": _survo,
    "tower_of_hanoi": _towers,
    "zebra_puzzles": _name,
}
assert ORACLES.keys() == GAMES.keys()
