"""Futoshiki: a Latin square whose neighbours are ordered by signs."""

from dataclasses import dataclass
from typing import Literal

from ring_ray.rewards.games.game import SOLVED, Entry, Finding, Game, unsolved
from ring_ray.rewards.games.grid import Grid, read_grid, transpose
from ring_ray.rewards.games.sudoku import filled_share, shown_change

_SIGNS = str.maketrans(dict.fromkeys("<>∧∨", " "))  # the puzzle's signs may be repeated in the answer


@dataclass(frozen=True, slots=True)
class Futoshiki:
    puzzle: Grid  # 0 where a cell is to be filled in
    # (row, column, row, column, sign), counted from 0: how the first cell's number stands to the second's
    signs: list[tuple[int, int, int, int, Literal["<", ">"]]]
    solution: Grid


def judge(futoshiki: Futoshiki, text: str) -> Finding:
    size = len(futoshiki.puzzle)
    answer = read_grid(text.translate(_SIGNS), size, size)
    if change := shown_change(futoshiki.puzzle, answer):
        return unsolved(change)
    share = filled_share(futoshiki.puzzle, futoshiki.solution, answer)
    for name, groups in (("row", answer), ("column", transpose(answer))):
        for number, group in enumerate(groups, start=1):
            if sorted(group) != list(range(1, size + 1)):
                return unsolved(f"{name} {number} does not have each of 1 to {size}", share)
    for row, column, other_row, other_column, sign in futoshiki.signs:
        first, second = answer[row][column], answer[other_row][other_column]
        if (first < second) != (sign == "<"):
            return unsolved(f"{first} {sign} {second} is false in row {row + 1}, column {column + 1}", share)
    return SOLVED


def _read(entry: Entry) -> Futoshiki:
    puzzle = entry["metadata"]
    return Futoshiki(puzzle["puzzle"], [tuple(sign) for sign in puzzle["constraints"]], puzzle["solution"])


FUTOSHIKI = Game(
    dataset="futoshiki",
    levels={
        "easy": {"min_board_size": 4, "max_board_size": 4, "max_difficulty": 1},
        "medium": {"min_board_size": 5, "max_board_size": 5, "max_difficulty": 2},
        "hard": {"min_board_size": 6, "max_board_size": 6, "min_difficulty": 1, "max_difficulty": 3},
    },
    instruction="Write only the full grid: a row a line, numbers apart by spaces. The signs may be left out.",
    record=Futoshiki,
    read=_read,
    judge=judge,
    partial=True,
)
