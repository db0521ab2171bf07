"""Every verifier by the name that a row of data calls it."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ring_ray.config import RewardConfig, require
from ring_ray.rewards.base import AnswerError, Verifier, failed
from ring_ray.rewards.boxed import shorten
from ring_ray.rewards.choice import ChoiceVerifier
from ring_ray.rewards.games import GAMES
from ring_ray.rewards.games.game import GameVerifier
from ring_ray.rewards.ifeval.verifier import InstructionVerifier
from ring_ray.rewards.integer import IntegerVerifier
from ring_ray.rewards.math import MathVerifier
from ring_ray.rewards.science import ScienceVerifier
from ring_ray.types import Prompt, Reward

FACTORIES: dict[str, Callable[[RewardConfig], Verifier]] = {
    "choice": ChoiceVerifier,
    "ifeval": InstructionVerifier,
    "ifeval_loose": partial(InstructionVerifier, loose=True),
    "integer": IntegerVerifier,
    "math": MathVerifier,
    "science": ScienceVerifier,
    **{name: partial(GameVerifier, game) for name, game in GAMES.items()},
    **{f"{name}_partial": partial(GameVerifier, game, partial=True) for name, game in GAMES.items() if game.partial},
}


class Verifiers:
    """One verifier of each name, all with the run's time limit."""

    def __init__(self, config: RewardConfig) -> None:
        self._verifiers = {name: make(config) for name, make in FACTORIES.items()}

    def get(self, name: str) -> Verifier:
        """The verifier called ``name``; raises `ConfigError` that lists the names there are."""
        require(name in self._verifiers, "verifier", name, f"must be one of {', '.join(sorted(FACTORIES))}")
        return self._verifiers[name]

    def judge(self, prompt: Prompt, response: str) -> Reward:
        """The verdict of the prompt's verifier, and how long it took; FAILED for whatever a verifier raises."""
        verifier = self.get(prompt.verifier)
        start = time.perf_counter()
        try:
            reward = verifier.verify(prompt, response)
        except AnswerError as error:
            reward = failed(str(error))
        except Exception as error:  # noqa: BLE001 - what breaks in a verifier must not pass for a wrong answer
            reward = failed(f"{prompt.id}: {type(error).__name__}: {shorten(str(error), limit=300)}")
        return replace(reward, seconds=time.perf_counter() - start)
