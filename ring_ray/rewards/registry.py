"""Every verifier by the name that a row of data calls it."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from ring_ray.config import ConfigError, RewardConfig, require
from ring_ray.rewards.base import AnswerError, BatchVerifier, Verifier, failed
from ring_ray.rewards.boxed import shorten
from ring_ray.rewards.choice import ChoiceVerifier
from ring_ray.rewards.code import CodeVerifier
from ring_ray.rewards.games import GAMES
from ring_ray.rewards.games.game import GameVerifier
from ring_ray.rewards.ifeval.verifier import InstructionVerifier
from ring_ray.rewards.integer import IntegerVerifier
from ring_ray.rewards.math import MathVerifier
from ring_ray.rewards.science import ScienceVerifier
from ring_ray.types import Prompt, Reward

_LIMITED_CALLS = 4  # that have the time limit of one verdict: reading a number, both answers, and comparing

FACTORIES: dict[str, Callable[[RewardConfig], Verifier]] = {
    "choice": ChoiceVerifier,
    "code": CodeVerifier,
    "ifeval": InstructionVerifier,
    "ifeval_loose": partial(InstructionVerifier, loose=True),
    "integer": IntegerVerifier,
    "math": MathVerifier,
    "science": ScienceVerifier,
    **{name: partial(GameVerifier, game) for name, game in GAMES.items()},
    **{f"{name}_partial": partial(GameVerifier, game, partial=True) for name, game in GAMES.items() if game.partial},
}


class Verifiers:
    """One verifier of each name, all with the run's limits."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._verifiers = {name: make(config) for name, make in FACTORIES.items()}

    def get(self, name: str) -> Verifier:
        """The verifier called ``name``; raises `ConfigError` that lists the names there are."""
        require(name in self._verifiers, "verifier", name, f"must be one of {', '.join(sorted(FACTORIES))}")
        return self._verifiers[name]

    def start(self, names: Collection[str]) -> None:
        """Whatever these verifiers need to judge. Raises `ConfigError` where it can't be had here."""
        for verifier in self._in_batches(names):
            verifier.start()

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Start what these prompts need; raises `ConfigError` for the first whose responses can't be judged here."""
        prompts = list(prompts)
        self.start({prompt.verifier for prompt in prompts})
        for prompt in prompts:
            verifier = self.get(prompt.verifier)
            try:
                if isinstance(verifier, BatchVerifier):
                    verifier.check(prompt)
            except AnswerError as error:
                raise ConfigError(str(error)) from error

    def close(self) -> None:
        for verifier in self._in_batches(FACTORIES):
            verifier.close()

    def seconds(self, names: Collection[str], responses: int) -> float:
        """The most that any of these verifiers takes for so many responses to one prompt."""
        one_by_one = responses * self._config.timeout_seconds * _LIMITED_CALLS
        return max([one_by_one, *(verifier.seconds(responses) for verifier in self._in_batches(names))])

    def judge(self, prompt: Prompt, response: str) -> Reward:
        """The verdict of the prompt's verifier, and how long it took; FAILED for whatever a verifier raises."""
        return self.judge_all(prompt, [response])[0]

    def judge_all(self, prompt: Prompt, responses: Sequence[str]) -> tuple[Reward, ...]:
        """As `judge`, by response; at the same time where the verifier can."""
        verifier = self.get(prompt.verifier)
        if isinstance(verifier, BatchVerifier):
            try:
                return tuple(verifier.verify_all(prompt, responses))
            except Exception as error:  # noqa: BLE001 - what breaks in a verifier must not pass for wrong answers
                return (_broken(prompt, error),) * len(responses)
        return tuple(_timed(verifier, prompt, response) for response in responses)

    def _in_batches(self, names: Collection[str]) -> Iterator[BatchVerifier]:
        return (found for name in names if isinstance(found := self.get(name), BatchVerifier))


def _timed(verifier: Verifier, prompt: Prompt, response: str) -> Reward:
    start = time.perf_counter()
    try:
        reward = verifier.verify(prompt, response)
    except Exception as error:  # noqa: BLE001 - what breaks in a verifier must not pass for a wrong answer
        reward = _broken(prompt, error)
    return replace(reward, seconds=time.perf_counter() - start)


def _broken(prompt: Prompt, error: Exception) -> Reward:
    if isinstance(error, AnswerError):
        return failed(str(error))
    return failed(f"{prompt.id}: {type(error).__name__}: {shorten(str(error), limit=300)}")
