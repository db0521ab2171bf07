"""Exact integers: cheap enough for sums by the thousand."""

import re

from ring_ray.config import RewardConfig
from ring_ray.rewards.base import AnswerError, correct, unparsable, wrong
from ring_ray.rewards.boxed import last_boxed, shorten
from ring_ray.types import Prompt, Reward

# The bound keeps int() fast: Python refuses integers beyond some thousand digits.
_INTEGER = re.compile(r"\s*([+-]?[0-9]{1,1000})\s*")


class IntegerVerifier:
    """Scores 1 where the last ``\\boxed{}`` holds exactly the integer of ``prompt.answer``, else 0."""

    def __init__(self, config: RewardConfig) -> None:
        """``config.timeout_seconds`` is not needed: the work is bounded by the length of the response."""

    def verify(self, prompt: Prompt, response: str) -> Reward:
        expected = _INTEGER.fullmatch(prompt.answer)
        if expected is None:
            raise AnswerError(f"{prompt.id}: the expected answer {shorten(prompt.answer)} is not an integer")
        answer = last_boxed(response)
        if answer is None:
            return unparsable(r"no complete \boxed{} in the response")
        given = _INTEGER.fullmatch(answer)
        if given is None:
            return unparsable(f"{shorten(answer)} is not an integer")
        if int(given[1]) == int(expected[1]):
            return correct(f"{shorten(answer)} is right")
        return wrong(f"{shorten(answer)} instead of {shorten(prompt.answer)}")
