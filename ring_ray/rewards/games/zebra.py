"""Zebra puzzles: which person it is that clues single out."""

from dataclasses import dataclass

from ring_ray.rewards.boxed import shorten
from ring_ray.rewards.games.game import SOLVED, Finding, Game, UnparsableError, unsolved


@dataclass(frozen=True, slots=True)
class Zebra:
    name: str


def judge(zebra: Zebra, text: str) -> Finding:
    name = text.rstrip(".").strip()
    if len(name.split()) != 1:
        raise UnparsableError(f"{shorten(text)} is no name")
    return SOLVED if name.casefold() == zebra.name.casefold() else unsolved(f"{shorten(name)}, not {zebra.name}")


ZEBRA_PUZZLES = Game(
    dataset="zebra_puzzles",
    levels={
        "easy": {"num_people": 3, "num_characteristics": 3},
        "medium": {"num_people": 4, "num_characteristics": 4},
        "hard": {"num_people": 5, "num_characteristics": 5},
    },
    instruction="Write only the name.",
    record=Zebra,
    read=lambda entry: Zebra(entry["answer"].strip()),
    judge=judge,
)
