"""Every verifier by the name that a row of data calls it."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from ring_ray.config import ConfigError, RewardConfig, require
from ring_ray.rewards.base import AnswerError, GroupVerifier, Response, Verifier, failed
from ring_ray.rewards.boxed import shorten
from ring_ray.rewards.choice import ChoiceVerifier
from ring_ray.rewards.code import CodeVerifier
from ring_ray.rewards.games import GAMES
from ring_ray.rewards.games.game import GameVerifier
from ring_ray.rewards.ifeval.verifier import InstructionVerifier
from ring_ray.rewards.integer import IntegerVerifier
from ring_ray.rewards.math import MathVerifier
from ring_ray.rewards.open_ended import judge_verifier, reward_model_verifier
from ring_ray.rewards.science import ScienceVerifier
from ring_ray.types import Prompt, Reward

REWARD_MODEL = "reward_model"
_LIMITED_CALLS = 4  # that have the time limit of one verdict: reading a number, both answers, and comparing

FACTORIES: dict[str, Callable[[RewardConfig], Verifier | GroupVerifier]] = {
    "choice": ChoiceVerifier,
    "code": CodeVerifier,
    "ifeval": InstructionVerifier,
    "ifeval_loose": partial(InstructionVerifier, loose=True),
    "integer": IntegerVerifier,
    "judge": judge_verifier,
    "math": MathVerifier,
    REWARD_MODEL: reward_model_verifier,
    "science": ScienceVerifier,
    **{name: partial(GameVerifier, game) for name, game in GAMES.items()},
    **{f"{name}_partial": partial(GameVerifier, game, partial=True) for name, game in GAMES.items() if game.partial},
}


class Verifiers:
    """One verifier of each name that is asked for, all with the run's limits."""

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._verifiers: dict[str, Verifier | GroupVerifier] = {}

    def get(self, name: str) -> Verifier | GroupVerifier:
        """The verifier called ``name``; raises `ConfigError` that lists the names there are, or says what it lacks."""
        require(name in FACTORIES, "verifier", name, f"must be one of {', '.join(sorted(FACTORIES))}")
        if name not in self._verifiers:
            self._verifiers[name] = FACTORIES[name](self._config)
        return self._verifiers[name]

    def start(self, names: Iterable[str]) -> None:
        """Whatever these verifiers need to judge here. Raises `ConfigError` where it can't be had."""
        for verifier in self._of_groups(names):
            verifier.start()

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raises `ConfigError` for the first prompt whose responses could not be judged."""
        for prompt in prompts:
            verifier = self.get(prompt.verifier)
            try:
                if isinstance(verifier, GroupVerifier):
                    verifier.check(prompt)
            except AnswerError as error:
                raise ConfigError(str(error)) from error

    def close(self) -> None:
        for verifier in self._of_groups(self._verifiers):
            verifier.close()

    def seconds(self, names: Iterable[str], responses: int) -> float:
        """The most that any of these verifiers takes for so many responses to one prompt."""
        one_by_one = responses * self._config.timeout_seconds * _LIMITED_CALLS
        return max([one_by_one, *(verifier.seconds(responses) for verifier in self._of_groups(names))])

    def judge(self, prompt: Prompt, responses: Sequence[Response]) -> tuple[Reward, ...]:
        """The verdicts of the prompt's verifier, and how long each took; FAILED for whatever a verifier raises."""
        verifier = self.get(prompt.verifier)
        if not isinstance(verifier, GroupVerifier):
            return tuple(_timed(verifier, prompt, response.text) for response in responses)
        try:
            return tuple(verifier.verify_group(prompt, responses))
        except Exception as error:  # noqa: BLE001 - what breaks in a verifier must not pass for wrong answers
            return (_broken(prompt, error),) * len(responses)

    def _of_groups(self, names: Iterable[str]) -> Iterator[GroupVerifier]:
        return (found for name in names if isinstance(found := self.get(name), GroupVerifier))


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
