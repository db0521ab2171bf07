"""Paths through mazes, token by token, as in AlphaMaze (arXiv 2502.14669)."""

import re
from dataclasses import dataclass

from ring_ray.rewards.games.game import SOLVED, Entry, Finding, Game, UnparsableError, unsolved

_MOVES = {"up": (-1, 0), "down": (1, 0), "left": (0, -1), "right": (0, 1)}
_TOKEN = re.compile(r"<\|(up|down|left|right)\|>")


@dataclass(frozen=True, slots=True)
class Maze:
    grid: list[str]  # a row of cells each
    start: str  # the character of a cell
    goal: str
    wall: str


def judge(maze: Maze, path: str) -> Finding:
    """Any path without a wall that ends at the goal; it need not be the shortest."""
    if not path or _TOKEN.sub("", path).strip():
        raise UnparsableError("the answer is not a path of <|up|>, <|down|>, <|left|> and <|right|> alone")
    row, column = next((row, cells.index(maze.start)) for row, cells in enumerate(maze.grid) if maze.start in cells)
    for step, direction in enumerate(_TOKEN.findall(path), start=1):
        row, column = row + _MOVES[direction][0], column + _MOVES[direction][1]
        if not (0 <= row < len(maze.grid) and 0 <= column < len(maze.grid[row])):
            return unsolved(f"step {step} leaves the maze")
        if maze.grid[row][column] == maze.wall:
            return unsolved(f"step {step} runs into a wall")
    return SOLVED if maze.grid[row][column] == maze.goal else unsolved("does not end at the goal")


def _question(entry: Entry) -> str:
    """reasoning-gym's asks for the number of steps only."""
    maze = entry["metadata"]
    grid = "\n".join(maze["grid"])
    return (
        f"Find a path through this maze from '{maze['start']}' to '{maze['goal']}'.\n\n```\n{grid}\n```\n"
        f"'{maze['wall']}' is a wall, '{maze['path']}' is a passage. Each step goes to the next cell up, down, left or "
        "right."
    )


def _solution(entry: Entry) -> str:
    """A shortest path, by breadth-first search: reasoning-gym has only its length."""
    maze = _read(entry)
    start = next((row, cells.index(maze.start)) for row, cells in enumerate(maze.grid) if maze.start in cells)
    paths, queue = {start: ""}, [start]
    for row, column in queue:
        if maze.grid[row][column] == maze.goal:
            return paths[row, column]
        for direction, (down, right) in _MOVES.items():
            cell = (row + down, column + right)
            if cell not in paths and maze.grid[cell[0]][cell[1]] != maze.wall:  # walls are all around
                paths[cell] = f"{paths[row, column]}<|{direction}|>"
                queue.append(cell)
    raise ValueError(f"no way from {maze.start} to {maze.goal}")


def _read(entry: Entry) -> Maze:
    maze = entry["metadata"]
    return Maze(maze["grid"], maze["start"], maze["goal"], maze["wall"])


MAZE = Game(
    dataset="maze",
    levels={
        "easy": {"min_grid_size": 5, "max_grid_size": 6, "min_dist": 2, "max_dist": 5},
        "medium": {"min_grid_size": 7, "max_grid_size": 9, "min_dist": 5, "max_dist": 10},
        "hard": {"min_grid_size": 10, "max_grid_size": 14, "min_dist": 10, "max_dist": 18},
    },
    instruction="Write only the path, such as <|up|><|up|><|right|>.",
    record=Maze,
    read=_read,
    judge=judge,
    question=_question,
    solution=_solution,
)
