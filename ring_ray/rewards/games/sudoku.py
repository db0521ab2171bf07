"""Sudoku of 9 and of 4 rows."""

from dataclasses import dataclass
from itertools import product
from math import isqrt

from ring_ray.rewards.games.game import SOLVED, Entry, Finding, Game, unsolved
from ring_ray.rewards.games.grid import Grid, read_grid, transpose


@dataclass(frozen=True, slots=True)
class Sudoku:
    puzzle: Grid  # 0 where a cell is to be filled in
    solution: Grid


def shown_change(puzzle: Grid, answer: Grid) -> str:
    """Which number of the puzzle the answer changes; empty where it keeps them all."""
    for row, column in product(range(len(puzzle)), range(len(puzzle[0]))):
        if puzzle[row][column] not in (0, answer[row][column]):
            return f"changes the number in row {row + 1}, column {column + 1}"
    return ""


def filled_share(puzzle: Grid, solution: Grid, answer: Grid) -> float:
    """Of the cells that were to be filled in, those that are right; below 1, for answers that break a rule."""
    blanks = [
        (row, column) for row, column in product(range(len(puzzle)), range(len(puzzle[0]))) if not puzzle[row][column]
    ]
    right = sum(answer[row][column] == solution[row][column] for row, column in blanks)
    return min(right, len(blanks) - 1) / len(blanks) if blanks else 0.0


def judge(sudoku: Sudoku, text: str) -> Finding:
    size = len(sudoku.puzzle)
    box = isqrt(size)
    answer = read_grid(text, size, size)
    if change := shown_change(sudoku.puzzle, answer):
        return unsolved(change)
    boxes = [
        [answer[top + row][left + column] for row, column in product(range(box), repeat=2)]
        for top, left in product(range(0, size, box), repeat=2)
    ]
    for name, groups in (("row", answer), ("column", transpose(answer)), ("box", boxes)):
        for number, group in enumerate(groups, start=1):
            if sorted(group) != list(range(1, size + 1)):
                share = filled_share(sudoku.puzzle, sudoku.solution, answer)
                return unsolved(f"{name} {number} does not have each of 1 to {size}", share)
    return SOLVED


def _read(entry: Entry) -> Sudoku:
    return Sudoku(entry["metadata"]["puzzle"], entry["metadata"]["solution"])


INSTRUCTION = "Write only the full grid: a row a line, numbers apart by spaces."

SUDOKU = Game(
    dataset="sudoku",
    levels={
        "easy": {"min_empty": 20, "max_empty": 30},
        "medium": {"min_empty": 31, "max_empty": 45},
        "hard": {"min_empty": 46, "max_empty": 54},
    },
    instruction=INSTRUCTION,
    record=Sudoku,
    read=_read,
    judge=judge,
    partial=True,
)

MINI_SUDOKU = Game(
    dataset="mini_sudoku",
    levels={
        "easy": {"min_empty": 4, "max_empty": 6},
        "medium": {"min_empty": 7, "max_empty": 9},
        "hard": {"min_empty": 10, "max_empty": 12},
    },
    instruction=INSTRUCTION,
    record=Sudoku,
    read=_read,
    judge=judge,
    partial=True,
)
