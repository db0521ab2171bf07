"""Rows of data from games, by seed and difficulty."""

from collections.abc import Iterator

import msgspec
import reasoning_gym

from ring_ray.rewards.games import GAMES
from ring_ray.rewards.games.game import Entry, Level


def generate(name: str, level: Level, *, seed: int, size: int) -> Iterator[dict[str, str]]:
    """``size`` rows with the columns prompt, answer, domain, verifier and demonstration, a worked response.

    The same arguments give the same rows. Equal puzzles may come twice, above all where they are small, and some seeds
    have no puzzle: mazes of walls alone. Raises KeyError for a name that `GAMES` has not.
    """
    return (row_of(name, entry) for entry in draw(name, level, seed=seed, size=size))


def draw(name: str, level: Level, *, seed: int, size: int) -> Iterator[Entry]:
    """The puzzles of the same rows, as reasoning-gym has them."""
    # reasoning-gym draws row i from seed + i: seeds closer than the size would share most of their rows.
    puzzles = reasoning_gym.create_dataset(name, seed=seed * size, size=size, **GAMES[name].levels[level])
    for number in range(size):
        try:
            yield puzzles[number]
        except RuntimeError:  # that is how reasoning-gym says that it found no puzzle
            continue


def row_of(name: str, entry: Entry) -> dict[str, str]:
    game = GAMES[name]
    return {
        "prompt": f"{game.question(entry).rstrip()}\n\n{game.instruction} Put it between <answer> and </answer>.",
        "answer": msgspec.json.encode(game.read(entry)).decode(),
        "domain": "games",
        "verifier": name,
        "demonstration": f"<answer>{game.solution(entry)}</answer>",
    }
