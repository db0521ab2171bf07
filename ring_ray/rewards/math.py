"""Mathematical equality by math-verify (Ring-lite, arXiv 2506.14731: math and science score 1 or 0 on their answer)."""

import logging
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from math_verify import LatexExtractionConfig, parse, verify

from ring_ray.config import RewardConfig
from ring_ray.rewards.boxed import last_boxed, shorten
from ring_ray.types import Prompt, Reward, Verdict

# math-verify warns that its own time limits are off; ours is in their place.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_NUMBER = r"(?<![\d.])(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)|\\[dt]?frac\{[^{}]*\}\{[^{}]*\}"
_PERCENT = re.compile(rf"({_NUMBER})\s*(?:\\?%|\\text\{{\s*(?:percent|\\?%)\s*\}}|percent\b)")


class _OutOfTimeError(BaseException):
    """Not an Exception: the libraries below catch those and would go on."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise `_OutOfTimeError` in the body after ``seconds``; only in the main thread, where Python handles signals."""

    def expire(signum: int, frame: FrameType | None) -> None:
        raise _OutOfTimeError

    previous = signal.signal(signal.SIGALRM, expire)
    # It rings again, in case the first ring fell into a place that swallows every exception (a finalizer).
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def normalize_percent(latex: str) -> str:
    r"""Write ``12\%``, ``12%`` and ``12 percent`` as ``\frac{12}{100}``.

    A percentage is its value: ``12\%`` equals ``0.12`` and ``3/25``, and does not equal ``12``. Left to math-verify,
    the verdict depends on the installed ANTLR runtime and on whether the number is whole.
    """
    return _PERCENT.sub(lambda match: rf"\frac{{{match[1].replace(',', '')}}}{{100}}", latex)


def _parse(answer: str) -> list[object]:
    """The answer as SymPy objects; empty where it is not mathematics."""
    latex = normalize_percent(answer.strip().rstrip("."))
    parsed: list[object] = parse(
        rf"\boxed{{{latex}}}", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None
    )
    return parsed


class MathVerifier:
    """Scores 1 where the last ``\\boxed{}`` equals ``prompt.answer`` mathematically, else 0.

    Must run in a process's main thread: the time limit is a signal. Elsewhere every verdict is FAILED.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._timeout_seconds = config.timeout_seconds

    def verify(self, prompt: Prompt, response: str) -> Reward:
        if threading.current_thread() is not threading.main_thread():
            reason = "math-verify needs its process's main thread: its time limit is a signal"
            return Reward(score=0.0, verdict=Verdict.FAILED, reason=reason)
        answer = last_boxed(response)
        if answer is None:
            return Reward(score=0.0, verdict=Verdict.UNPARSABLE, reason=r"no complete \boxed{} in the response")
        expected = self._expected(prompt.answer)
        if not expected:
            reason = f"{prompt.id}: math-verify can't read the expected answer {shorten(prompt.answer)}"
            return Reward(score=0.0, verdict=Verdict.FAILED, reason=reason)
        try:
            with _time_limit(self._timeout_seconds):
                given = _parse(answer)
                equal = bool(given) and verify(expected, given, timeout_seconds=None)
        except _OutOfTimeError:
            reason = (
                f"comparing {shorten(answer)} with {shorten(prompt.answer)} took longer than "
                f"reward.timeout_seconds={self._timeout_seconds:g}"
            )
            return Reward(score=0.0, verdict=Verdict.TIMED_OUT, reason=reason)
        if not given:
            return Reward(score=0.0, verdict=Verdict.UNPARSABLE, reason=f"{shorten(answer)} is not mathematics")
        if equal:
            return Reward(score=1.0, verdict=Verdict.CORRECT, reason=f"{shorten(answer)} is right")
        reason = f"{shorten(answer)} instead of {shorten(prompt.answer)}"
        return Reward(score=0.0, verdict=Verdict.WRONG, reason=reason)

    def _expected(self, answer: str) -> list[object]:
        """The answer in the data, which may stand in a ``\\boxed{}`` of its own; empty where it can't be read."""
        boxed = last_boxed(answer)
        try:
            with _time_limit(self._timeout_seconds):
                return _parse(answer if boxed is None else boxed)
        except _OutOfTimeError:
            return []
