"""Logic games. One family a file, all listed here."""

from typing import Any

from ring_ray.rewards.games.arc import ARC_1D, ARC_AGI
from ring_ray.rewards.games.arithmetic import COUNTDOWN, PUZZLE_24
from ring_ray.rewards.games.coloring import GRAPH_COLOR
from ring_ray.rewards.games.futoshiki import FUTOSHIKI
from ring_ray.rewards.games.game import Game
from ring_ray.rewards.games.hanoi import TOWER_OF_HANOI
from ring_ray.rewards.games.knights import KNIGHTS_KNAVES
from ring_ray.rewards.games.maze import MAZE
from ring_ray.rewards.games.queens import N_QUEENS
from ring_ray.rewards.games.sudoku import MINI_SUDOKU, SUDOKU
from ring_ray.rewards.games.sums import KAKURASU, SURVO
from ring_ray.rewards.games.zebra import ZEBRA_PUZZLES

_ALL: tuple[Game[Any], ...] = (
    ARC_1D,
    ARC_AGI,
    COUNTDOWN,
    FUTOSHIKI,
    GRAPH_COLOR,
    KAKURASU,
    KNIGHTS_KNAVES,
    MAZE,
    MINI_SUDOKU,
    N_QUEENS,
    PUZZLE_24,
    SUDOKU,
    SURVO,
    TOWER_OF_HANOI,
    ZEBRA_PUZZLES,
)

GAMES: dict[str, Game[Any]] = {game.dataset: game for game in _ALL}
