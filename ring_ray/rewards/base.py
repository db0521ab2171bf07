"""What every verifier does, and what it says."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

import msgspec

from ring_ray.rewards.boxed import shorten
from ring_ray.types import Prompt, Reward, Verdict

Record = TypeVar("Record")


@runtime_checkable
class Verifier(Protocol):
    """Judges responses, one at a time, alone by ``prompt.answer``; the same response always earns the same."""

    def verify(self, prompt: Prompt, response: str) -> Reward:
        """A verdict within the verifier's time limit.

        The verdict is FAILED, never WRONG, where the fault is not the response's: a broken verifier, or an answer in
        the data that can't be read. An exception counts as FAILED, too.
        """


@dataclass(frozen=True, slots=True)
class Response:
    """One of the K responses to a prompt."""

    text: str
    tokens: int


class GroupVerifier(ABC):
    """Judges all responses to a prompt together, by means of its own: a sandbox, a server, a model.

    It is made from the config alone, which raises `ConfigError` where that lacks what it needs.
    """

    def start(self) -> None:
        """Take what judging needs, in the process that judges. Raises `ConfigError` where it can't be had here."""

    def check(self, prompt: Prompt) -> None:
        """Before a run, in its driver: raises `AnswerError` or `ConfigError` where no response could be judged."""

    def close(self) -> None:
        """Give back what was taken."""

    @abstractmethod
    def verify_group(self, prompt: Prompt, responses: Sequence[Response]) -> Sequence[Reward]:
        """As `Verifier.verify`, for each response in their order; each verdict says how long it took. Starts itself."""

    @abstractmethod
    def seconds(self, responses: int) -> float:
        """The most that `verify_group` takes for so many."""


class AnswerError(ValueError):
    """The answer in the data can't be read. The message names the row."""


def read_answer(prompt: Prompt, kind: type[Record]) -> Record:
    """``prompt.answer`` from JSON, its types checked; raises `AnswerError` that names the row and the field."""
    try:
        return msgspec.json.decode(prompt.answer, type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        what = f"{prompt.id}: the expected answer {shorten(prompt.answer)} can't be read as {kind.__name__}"
        raise AnswerError(f"{what}: {error}") from error


def correct(reason: str, score: float = 1.0) -> Reward:
    """``score`` is below 1 only where it is a matter of degree."""
    return Reward(score=score, verdict=Verdict.CORRECT, reason=reason)


def wrong(reason: str, score: float = 0.0) -> Reward:
    """``score`` is above 0 only where partial credit was asked for, or where it is a matter of degree."""
    return Reward(score=score, verdict=Verdict.WRONG, reason=reason)


def unparsable(reason: str) -> Reward:
    return Reward(score=0.0, verdict=Verdict.UNPARSABLE, reason=reason)


def timed_out(reason: str) -> Reward:
    return Reward(score=0.0, verdict=Verdict.TIMED_OUT, reason=reason)


def failed(reason: str) -> Reward:
    return Reward(score=0.0, verdict=Verdict.FAILED, reason=reason)
