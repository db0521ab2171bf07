"""What every verifier does, and what it says."""

from collections.abc import Sequence
from typing import Protocol, TypeVar, runtime_checkable

import msgspec

from ring_ray.rewards.boxed import shorten
from ring_ray.types import Prompt, Reward, Verdict

Record = TypeVar("Record")


class Verifier(Protocol):
    """Judges responses, one at a time, alone by ``prompt.answer``; the same response always earns the same."""

    def verify(self, prompt: Prompt, response: str) -> Reward:
        """A verdict within the verifier's time limit.

        The verdict is FAILED, never WRONG, where the fault is not the response's: a broken verifier, or an answer in
        the data that can't be read. An exception counts as FAILED, too.
        """


@runtime_checkable
class BatchVerifier(Verifier, Protocol):
    """One that judges many responses at the same time, by means that must be there first."""

    def start(self) -> None:
        """Raises `ConfigError` where it can judge nothing here, with what would help."""

    def check(self, prompt: Prompt) -> None:
        """Raises `AnswerError` where no response to ``prompt`` could be judged here."""

    def close(self) -> None: ...

    def verify_all(self, prompt: Prompt, responses: Sequence[str]) -> list[Reward]:
        """As `verify`, by response; each verdict says how long it took."""

    def seconds(self, responses: int) -> float:
        """The most that `verify_all` takes for so many."""


class AnswerError(ValueError):
    """The answer in the data can't be read. The message names the row."""


def read_answer(prompt: Prompt, kind: type[Record]) -> Record:
    """``prompt.answer`` from JSON, its types checked; raises `AnswerError` that names the row and the field."""
    try:
        return msgspec.json.decode(prompt.answer, type=kind)
    except (msgspec.DecodeError, UnicodeError) as error:
        what = f"{prompt.id}: the expected answer {shorten(prompt.answer)} can't be read as {kind.__name__}"
        raise AnswerError(f"{what}: {error}") from error


def correct(reason: str) -> Reward:
    return Reward(score=1.0, verdict=Verdict.CORRECT, reason=reason)


def wrong(reason: str, score: float = 0.0) -> Reward:
    """``score`` is above 0 only where partial credit was asked for."""
    return Reward(score=score, verdict=Verdict.WRONG, reason=reason)


def unparsable(reason: str) -> Reward:
    return Reward(score=0.0, verdict=Verdict.UNPARSABLE, reason=reason)


def timed_out(reason: str) -> Reward:
    return Reward(score=0.0, verdict=Verdict.TIMED_OUT, reason=reason)


def failed(reason: str) -> Reward:
    return Reward(score=0.0, verdict=Verdict.FAILED, reason=reason)
