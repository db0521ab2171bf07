"""Kakurasu and Survo: grids whose rows and columns have given sums."""

from collections import Counter
from dataclasses import dataclass
from itertools import product

from ring_ray.rewards.games.game import SOLVED, Entry, Finding, Game, unsolved
from ring_ray.rewards.games.grid import Grid, read_grid, transpose
from ring_ray.rewards.games.sudoku import shown_change


@dataclass(frozen=True, slots=True)
class Kakurasu:
    row_sums: list[int]
    column_sums: list[int]


@dataclass(frozen=True, slots=True)
class Survo:
    puzzle: Grid  # 0 where a cell is to be filled in; the last row and column hold the sums
    numbers: list[int]  # to fill in, each once


def judge_kakurasu(kakurasu: Kakurasu, text: str) -> Finding:
    answer = read_grid(text, len(kakurasu.row_sums), len(kakurasu.column_sums))
    if any(cell not in (0, 1) for row in answer for cell in row):
        return unsolved("has numbers other than 0 and 1")
    for name, lines, sums in (("row", answer, kakurasu.row_sums), ("column", transpose(answer), kakurasu.column_sums)):
        for number, (line, expected) in enumerate(zip(lines, sums, strict=True), start=1):
            weighted = sum(place * cell for place, cell in enumerate(line, start=1))
            if weighted != expected:
                return unsolved(f"{name} {number} is {weighted}, not {expected}")
    return SOLVED


def judge_survo(survo: Survo, text: str) -> Finding:
    size = len(survo.puzzle)
    answer = read_grid(text, size, size)
    if change := shown_change(survo.puzzle, answer):
        return unsolved(change)
    filled = [answer[row][column] for row, column in product(range(size), repeat=2) if not survo.puzzle[row][column]]
    if Counter(filled) != Counter(survo.numbers):
        return unsolved(f"does not use each of {survo.numbers} once")
    for name, lines in (("row", answer), ("column", transpose(answer))):
        for number, (*terms, total) in enumerate(lines, start=1):
            if sum(terms) != total:
                return unsolved(f"{name} {number} is {sum(terms)}, not {total}")
    return SOLVED


def _read_kakurasu(entry: Entry) -> Kakurasu:
    return Kakurasu(entry["metadata"]["row_sums"], entry["metadata"]["col_sums"])


def _read_survo(entry: Entry) -> Survo:
    return Survo(entry["metadata"]["puzzle"], list(map(int, entry["metadata"]["candidate_numbers"])))


INSTRUCTION = "Write only the full grid: a row a line, numbers apart by spaces."

KAKURASU = Game(
    dataset="kakurasu",
    levels={
        "easy": {"min_rows": 3, "max_rows": 4, "min_cols": 3, "max_cols": 4},
        "medium": {"min_rows": 4, "max_rows": 5, "min_cols": 4, "max_cols": 5},
        "hard": {"min_rows": 6, "max_rows": 6, "min_cols": 6, "max_cols": 6},
    },
    instruction=INSTRUCTION,
    record=Kakurasu,
    read=_read_kakurasu,
    judge=judge_kakurasu,
)

SURVO = Game(
    dataset="survo",
    levels={
        "easy": {"max_board_size": 4, "min_empty": 3, "max_empty": 4},
        "medium": {"min_board_size": 5, "max_board_size": 5, "min_empty": 5, "max_empty": 8},
        "hard": {"min_board_size": 6, "max_board_size": 6, "min_empty": 10, "max_empty": 14},
    },
    instruction=INSTRUCTION,
    record=Survo,
    read=_read_survo,
    judge=judge_survo,
)
