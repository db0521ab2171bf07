"""What a case is, and how answers are changed."""

import atexit
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from ring_ray.config import RewardConfig
from ring_ray.rewards.base import Response
from ring_ray.rewards.registry import Verifiers
from ring_ray.types import Prompt, Reward

VERIFIERS = Verifiers(RewardConfig())
atexit.register(VERIFIERS.close)  # they may have a sandbox
NOISE = ["", "0", "7", "-", ".", ",", " ", "\n", "(", "]", "{", "\\", "%", "<", "|", "Q", "_", "é", "\0", "٣", "\ufffd"]


@dataclass(frozen=True, slots=True)
class Problem:
    """A verifier's record, a response that is right, and what says whether another one is."""

    verifier: str
    answer: str  # of the row
    response: str
    right: Callable[[str], bool]  # of any response, by another road than the verifier's
    changed: Callable[[random.Random], str]  # another response, in the form that was asked for


Maker: TypeAlias = Callable[[random.Random], Iterator[Problem]]
"""Endless problems, which the generator decides."""


def judge(verifier: str, answer: str, response: str, verifiers: Verifiers = VERIFIERS) -> Reward:
    ids = np.zeros(1, np.int32)
    prompt = Prompt(index=0, id="d:7", domain="d", text="?", token_ids=ids, verifier=verifier, answer=answer)
    return verifiers.judge(prompt, [Response(response, tokens=0)])[0]


def mutated(text: str, generator: random.Random, pieces: Sequence[str] = NOISE) -> str:
    """With one to three characters lost, doubled, swapped with their neighbours or replaced."""
    characters = list(text)
    for _ in range(generator.randint(1, 3)):
        place = generator.randrange(len(characters) + 1)
        match generator.randrange(4):
            case 0:
                characters[place : place + 1] = []
            case 1:
                characters[place:place] = characters[place : place + 1]
            case 2:
                characters[place : place + 2] = reversed(characters[place : place + 2])
            case _:
                characters[place : place + generator.randint(0, 1)] = generator.choice(pieces)
    return "".join(characters)


def noise(generator: random.Random) -> str:
    """Random bytes, as text."""
    return generator.randbytes(generator.randrange(200)).decode(generator.choice(("latin-1", "utf-8")), "replace")
