"""Every verifier by the name that a row of data calls it."""

import math
import pkgutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

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

Factory: TypeAlias = Callable[[RewardConfig], Verifier | GroupVerifier]

FACTORIES: dict[str, Factory] = {
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


def factories(config: RewardConfig) -> Mapping[str, Factory]:
    """What makes the verifier of each name, those of ``config.verifiers`` included; raises `ConfigError` for these."""
    return FACTORIES | {name: _own(name, path) for name, path in config.verifiers.items()}


def _own(name: str, path: str) -> Factory:
    """Imports what ``path`` names, which is called when the verifier is first asked for."""
    said = f"reward.verifiers.{name}={path!r}"
    if name in FACTORIES:
        raise ConfigError(f"{said}: is called as another verifier: choose a name of its own")
    try:
        factory = pkgutil.resolve_name(path)
    except Exception as error:  # its module may do anything
        hint = "; is its directory in PYTHONPATH?" if isinstance(error, ModuleNotFoundError) else ""
        raise ConfigError(f"{said}: can't be imported: {type(error).__name__}: {error}{hint}") from error
    if not callable(factory):
        raise ConfigError(f"{said}: must be a class, or a function that makes a verifier, as package.module:Class")

    def make(config: RewardConfig) -> Verifier | GroupVerifier:
        try:
            verifier = factory(config)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(f"{said}: can't be made from the config: {type(error).__name__}: {error}") from error
        if not isinstance(verifier, Verifier | GroupVerifier):
            raise ConfigError(f"{said}: makes no verifier, but {type(verifier).__name__}")
        return verifier

    return make


class Verifiers:
    """One verifier of each name that is asked for, all with the run's limits."""

    def __init__(self, config: RewardConfig) -> None:
        """Raises `ConfigError` where a verifier of ``config.verifiers`` can't be found."""
        self._config, self._factories = config, factories(config)
        self._verifiers: dict[str, Verifier | GroupVerifier] = {}

    def get(self, name: str) -> Verifier | GroupVerifier:
        """The verifier called ``name``; raises `ConfigError` that lists the names there are, or says what it lacks."""
        require(name in self._factories, "verifier", name, f"must be one of {', '.join(sorted(self._factories))}")
        if name not in self._verifiers:
            self._verifiers[name] = self._factories[name](self._config)
        return self._verifiers[name]

    def start(self, names: Iterable[str]) -> None:
        """Whatever these verifiers need to judge here. Raises `ConfigError` where it can't be had."""
        for verifier in self._of_groups(names):
            verifier.start()

    def check(self, prompts: Iterable[Prompt]) -> None:
        """Raises `ConfigError` for the first prompt whose responses could not be judged."""
        for prompt in prompts:
            try:
                verifier = self.get(prompt.verifier)
            except ConfigError as error:
                raise ConfigError(f"{error} (verifier={prompt.verifier!r} of {prompt.id})") from error
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
            rewards = tuple(map(_sound, verifier.verify_group(prompt, responses)))
            if len(rewards) != len(responses):
                raise ValueError(f"{len(rewards)} verdicts on {len(responses)} responses")
            return rewards
        except Exception as error:  # noqa: BLE001 - what breaks in a verifier must not pass for wrong answers
            return (_broken(prompt, error),) * len(responses)

    def _of_groups(self, names: Iterable[str]) -> Iterator[GroupVerifier]:
        return (found for name in names if isinstance(found := self.get(name), GroupVerifier))


def _timed(verifier: Verifier, prompt: Prompt, response: str) -> Reward:
    start = time.perf_counter()
    try:
        reward = _sound(verifier.verify(prompt, response))
    except Exception as error:  # noqa: BLE001 - what breaks in a verifier must not pass for a wrong answer
        reward = _broken(prompt, error)
    return replace(reward, seconds=time.perf_counter() - start)


def _sound(reward: Reward) -> Reward:
    """Raises where it has no score that can be trained on: nothing else holds a verifier of the user's own to that."""
    score = float(reward.score)
    if not math.isfinite(score):
        raise ValueError(f"its score is {score}")
    return replace(reward, score=score)


def _broken(prompt: Prompt, error: Exception) -> Reward:
    if isinstance(error, AnswerError):
        return failed(str(error))
    return failed(f"{prompt.id}: {type(error).__name__}: {shorten(str(error), limit=300)}")
