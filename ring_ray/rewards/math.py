"""Mathematical equality by math-verify (Ring-lite, arXiv 2506.14731: math and science score 1 or 0 on their answer)."""

import logging
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from ring_ray.config import RewardConfig
from ring_ray.rewards.base import correct, failed, timed_out, unparsable, wrong
from ring_ray.rewards.boxed import last_boxed, shorten
from ring_ray.rewards.magnitude import is_too_large
from ring_ray.rewards.units import separate_unit
from ring_ray.types import Prompt, Reward

# math-verify warns that its own time limits are off; ours is in their place.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_NUMBER = r"(?<![\d.])(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)|\\[dt]?frac\{[^{}]*\}\{[^{}]*\}"
_NO_COMMAND = re.compile(r"(?<!\\)(?:\\\\)*\\[0-9]")  # math-verify drops it, with the digit
_PERCENT = re.compile(rf"({_NUMBER})\s*(?:\\?%|\\text\{{\s*(?:percent|\\?%)\s*\}}|percent\b)")


class OutOfTimeError(BaseException):
    """Not an Exception: the libraries below catch those and would go on."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` in the body after ``seconds`` of the process's CPU time, however busy the machine is.

    Only in the main thread, where Python handles signals.
    """

    def expire(signum: int, frame: FrameType | None) -> None:
        raise OutOfTimeError

    previous = signal.signal(signal.SIGPROF, expire)
    # It rings again, in case the first ring fell into a place that swallows every exception (a finalizer).
    signal.setitimer(signal.ITIMER_PROF, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, previous)


def normalize_percent(latex: str) -> str:
    r"""Write ``12\%``, ``12%`` and ``12 percent`` as ``\frac{12}{100}``.

    A percentage is its value: ``12\%`` equals ``0.12`` and ``3/25``, and does not equal ``12``. Left to math-verify,
    the verdict depends on the installed ANTLR runtime and on whether the number is whole.
    """
    return _PERCENT.sub(lambda match: rf"\frac{{{match[1].replace(',', '')}}}{{100}}", latex)


def parse_answer(answer: str) -> list[Any]:
    """The answer as SymPy objects; empty where it is not mathematics, or too large. Only within `time_limit`."""
    latex = normalize_percent(answer.strip().rstrip("."))
    parsed: list[Any] = parse(
        rf"\boxed{{{latex}}}", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None
    )
    return [] if any(map(is_too_large, parsed)) else parsed


def in_one_unit(expected: str, given: str) -> tuple[str, str] | None:
    r"""Both as numbers of the unit of ``expected``; None where their units measure different things.

    A unit that only one of them names is left out: math-verify, which ignores all units, would hold ``5\text{ cm}``
    and ``5\text{ m}`` for equal.
    """
    expected_number, unit = separate_unit(expected, bare=False)
    given_number, given_unit = separate_unit(given, bare=unit is not None)
    if not unit:
        bare_number, bare_unit = separate_unit(expected, bare=True)
        other_number, other_unit = separate_unit(given, bare=True)
        if bare_unit and (given_unit or other_unit):
            expected_number, unit, given_number, given_unit = bare_number, bare_unit, other_number, other_unit
    if unit is None or given_unit is None:
        return expected_number, given_number
    if unit.dimensions != given_unit.dimensions:
        return None
    ratio = given_unit.scale / unit.scale
    if ratio != 1:
        given_number = rf"({given_number}) \cdot \frac{{{ratio.numerator}}}{{{ratio.denominator}}}"
    return expected_number, given_number


def off_main_thread() -> Reward | None:
    """Why no verdict can be reached here, where that is so."""
    if threading.current_thread() is threading.main_thread():
        return None
    return failed("math-verify needs its process's main thread: its time limit is a signal")


class MathVerifier:
    """Scores 1 where the last ``\\boxed{}`` equals ``prompt.answer`` mathematically, else 0.

    Must run in a process's main thread: the time limit is a signal. Elsewhere every verdict is FAILED.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._timeout_seconds = config.timeout_seconds

    def verify(self, prompt: Prompt, response: str) -> Reward:
        if unable := off_main_thread():
            return unable
        answer = last_boxed(response)
        if answer is None:
            return unparsable(r"no complete \boxed{} in the response")
        boxed = last_boxed(prompt.answer)  # the answer in the data may stand in one of its own
        return self.compare(prompt, prompt.answer if boxed is None else boxed, answer)

    def compare(self, prompt: Prompt, expected: str, answer: str) -> Reward:
        """The verdict on ``answer``; ``prompt`` is for errors."""
        if _NO_COMMAND.search(answer):
            return unparsable(f"{shorten(answer)} is not mathematics")
        try:
            with time_limit(self._timeout_seconds):
                numbers = in_one_unit(normalize_percent(expected), normalize_percent(answer))
                given = parse_answer(numbers[1]) if numbers else []
            if numbers is None:
                return wrong(f"{shorten(answer)} is in another kind of unit than {shorten(expected)}")
            if not (parsed := self._parse_expected(numbers[0])):
                return failed(f"{prompt.id}: math-verify can't read the expected answer {shorten(expected)}")
            if not given:
                return unparsable(f"{shorten(answer)} is not mathematics, or of too many digits")
            with time_limit(self._timeout_seconds):
                equal = verify(parsed, given, timeout_seconds=None)
        except OutOfTimeError:
            reason = (
                f"comparing {shorten(answer)} with {shorten(expected)} took longer than "
                f"reward.timeout_seconds={self._timeout_seconds:g}"
            )
            return timed_out(reason)
        if equal:
            return correct(f"{shorten(answer)} is right")
        return wrong(f"{shorten(answer)} instead of {shorten(expected)}")

    def _parse_expected(self, answer: str) -> list[Any]:
        """Empty where it can't be read."""
        try:
            with time_limit(self._timeout_seconds):
                return parse_answer(answer)
        except OutOfTimeError:
            return []
