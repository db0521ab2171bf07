"""Grids of integers, as models write them."""

import re
from collections.abc import Sequence
from typing import TypeAlias

from ring_ray.rewards.boxed import shorten
from ring_ray.rewards.games.game import UnparsableError

Grid: TypeAlias = list[list[int]]

_RULE = re.compile(r"[\s|+=-]*")  # an empty line, or one that is drawn between rows
_SEPARATORS = re.compile(r"[\s,;|]+")
_INTEGER = re.compile(r"-?[0-9]{1,9}")


def read_grid(text: str, rows: int, columns: int) -> Grid:
    """A row a line, numbers apart by spaces, commas or bars; brackets around them count for nothing.

    Raises `UnparsableError` for any other text, or another shape.
    """
    grid = [_row(line) for line in text.splitlines() if not _RULE.fullmatch(line)]
    if len(grid) != rows or any(len(row) != columns for row in grid):
        raise UnparsableError(f"the answer is no grid of {rows} rows with {columns} numbers each")
    return grid


def transpose(grid: Sequence[Sequence[int]]) -> Grid:
    return [list(column) for column in zip(*grid, strict=True)]


def _row(line: str) -> list[int]:
    cells = _SEPARATORS.split(line.strip(" \t\r,;|[]()"))
    if not all(_INTEGER.fullmatch(cell) for cell in cells):
        raise UnparsableError(f"{shorten(line.strip())} is no row of numbers")
    return [int(cell) for cell in cells]
