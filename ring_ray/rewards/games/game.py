"""What a logic game is: puzzles by seed, a record of each in the data, and a judge that never runs model text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeAlias

from ring_ray.config import RewardConfig
from ring_ray.rewards.base import Record, correct, read_answer, unparsable, wrong
from ring_ray.types import Prompt, Reward

Level: TypeAlias = Literal["easy", "medium", "hard"]
Entry: TypeAlias = Mapping[str, Any]  # of a reasoning-gym data set: question, answer, metadata

ANSWER_LIMIT = 20_000  # characters of an answer: far more than any puzzle's, and few enough for every judge
_OPENING, _CLOSING = "<answer>", "</answer>"


class UnparsableError(ValueError):
    """A response without an answer that the game can read."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a judge found."""

    share: float  # of the puzzle that is solved; 1 only where all of it is
    reason: str


SOLVED = Finding(1.0, "solved")


def unsolved(reason: str, share: float = 0.0) -> Finding:
    return Finding(share, reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class Game(Generic[Record]):
    dataset: str  # reasoning-gym's name of it, and the verifier's
    levels: Mapping[Level, Mapping[str, Any]]  # reasoning-gym's settings for each difficulty
    instruction: str  # how the answer is to be written
    record: type[Record]  # what `judge` needs, as JSON in the data; decoded by its types
    read: Callable[[Entry], Record]
    # Of the record and the text of the answer; raises `UnparsableError`. Never one of reasoning-gym's own scorers: six
    # of them evaluate the text as Python.
    judge: Callable[[Record, str], Finding]
    question: Callable[[Entry], str] = lambda entry: str(entry["question"])
    solution: Callable[[Entry], str] = lambda entry: str(entry["answer"])  # one of those that `judge` accepts
    partial: bool = False  # whether `Finding.share` may be between 0 and 1


def last_answer(response: str) -> str:
    """What the last ``<answer>`` holds; raises `UnparsableError` where there is none or it is never closed."""
    start = response.rfind(_OPENING)
    end = response.find(_CLOSING, start)
    if start < 0 or end < 0:
        raise UnparsableError("no complete <answer></answer> in the response")
    answer = response[start + len(_OPENING) : end].strip()
    if len(answer) > ANSWER_LIMIT:
        raise UnparsableError(f"the answer has more than {ANSWER_LIMIT} characters")
    return answer


class GameVerifier:
    """Scores 1 where the last ``<answer>`` solves the puzzle of ``prompt.answer``, else 0.

    With ``partial`` what is not solved scores the share that is.
    """

    def __init__(self, game: Game[Any], config: RewardConfig, *, partial: bool = False) -> None:
        """``config.timeout_seconds`` is not needed: every judge's work is bounded by `ANSWER_LIMIT`."""
        self._game, self._partial = game, partial

    def verify(self, prompt: Prompt, response: str) -> Reward:
        record = read_answer(prompt, self._game.record)
        try:
            finding = self._game.judge(record, last_answer(response))
        except UnparsableError as error:
            return unparsable(str(error))
        if finding.share == 1.0:
            return correct(finding.reason)
        return wrong(finding.reason, score=finding.share if self._partial else 0.0)
