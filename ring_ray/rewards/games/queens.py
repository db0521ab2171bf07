"""N queens on a board of N rows, some of them placed already."""

import re
from dataclasses import dataclass

from ring_ray.rewards.games.game import SOLVED, Finding, Game, UnparsableError, unsolved


@dataclass(frozen=True, slots=True)
class Queens:
    board: list[str]  # a row each: Q for a queen, _ for a free square


def judge(queens: Queens, text: str) -> Finding:
    size = len(queens.board)
    board = ["".join(line.split()) for line in text.splitlines() if line.strip()]
    if len(board) != size or not all(re.fullmatch(rf"[Q_]{{{size}}}", row) for row in board):
        raise UnparsableError(f"the answer is no board of {size} rows with {size} squares Q or _ each")
    placed = [
        (row, column) for row, squares in enumerate(board) for column, square in enumerate(squares) if square == "Q"
    ]
    given = [
        (row, column)
        for row, squares in enumerate(queens.board)
        for column, square in enumerate(squares)
        if square == "Q"
    ]
    if not set(given) <= set(placed):
        return unsolved("moves a queen that was placed already")
    if len(placed) != size:
        return unsolved(f"has {len(placed)} queens, not {size}")
    lines = (
        ("row", [row for row, _ in placed]),
        ("column", [column for _, column in placed]),
        ("diagonal", [row - column for row, column in placed]),
        ("diagonal", [row + column for row, column in placed]),
    )
    for name, numbers in lines:
        if len(set(numbers)) < size:
            return unsolved(f"two queens share a {name}")
    return SOLVED


N_QUEENS = Game(
    dataset="n_queens",
    levels={
        "easy": {"n": 5, "min_remove": 1, "max_remove": 3},
        "medium": {"n": 6, "min_remove": 3, "max_remove": 5},
        "hard": {"n": 8, "min_remove": 5, "max_remove": 7},
    },
    instruction="Write only the full board.",
    record=Queens,
    read=lambda entry: Queens(["".join(row) for row in entry["metadata"]["puzzle"]]),
    judge=judge,
)
