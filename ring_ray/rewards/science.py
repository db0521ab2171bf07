"""Numbers of the natural sciences: within a tolerance, in any unit that measures the same."""

import math
import re
from typing import Annotated

import msgspec

from ring_ray.config import RewardConfig
from ring_ray.rewards.base import correct, read_answer, timed_out, unparsable, wrong
from ring_ray.rewards.boxed import last_boxed, shorten
from ring_ray.rewards.math import MathVerifier, OutOfTimeError, off_main_thread, parse_answer, time_limit
from ring_ray.rewards.units import Unit, separate_unit
from ring_ray.types import Prompt, Reward

_DECIMAL = re.compile(
    r"([+-]?(?:[0-9][0-9,]*(?:\.[0-9]*)?|\.[0-9]+))"
    r"(?:(?:[eE]|(?:\\times|\\cdot|×|\*)10\^)\{?([+-]?[0-9]{1,3})\}?)?(\\?%)?"
)
_INTEGER = re.compile(r"[+-]?[0-9,]+")
_RECORD = re.compile(r'\s*\{\s*"')
_SAME = 1e-12  # relative difference of what is the same but for rounding
_SPACES = re.compile(r"\\[,;:! ]|[\s~$]|(?<=[0-9])\{,\}(?=[0-9])")


class ScienceAnswer(msgspec.Struct, forbid_unknown_fields=True):
    """An answer in the data that names its own tolerance."""

    answer: str
    tolerance: Annotated[float, msgspec.Meta(ge=0, lt=1)]  # relative


class ScienceVerifier:
    """Scores 1 where the last ``\\boxed{}`` is ``prompt.answer`` within a relative tolerance, else 0.

    Units are converted where both name one, and left out where only one does. Integers without a unit are counts,
    which are exact. What is not one number, such as a formula, is judged as by `MathVerifier`.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._math = MathVerifier(config)
        self._timeout_seconds, self._tolerance = config.timeout_seconds, config.tolerance

    def verify(self, prompt: Prompt, response: str) -> Reward:
        if unable := off_main_thread():
            return unable
        expected, tolerance = self._expected(prompt)
        answer = last_boxed(response)
        if answer is None:
            return unparsable(r"no complete \boxed{} in the response")
        try:
            with time_limit(self._timeout_seconds):
                quantity, given = _quantity(expected), _quantity(answer)
        except OutOfTimeError:
            reason = f"{shorten(answer)} took longer than reward.timeout_seconds={self._timeout_seconds:g}"
            return timed_out(reason)
        if quantity is None or given is None:
            return self._math.compare(prompt, expected, answer)
        value, unit = quantity
        given_value, given_unit = given
        if unit and given_unit:
            if unit.dimensions != given_unit.dimensions:
                return wrong(f"{shorten(answer)} is in another kind of unit than {shorten(expected)}")
            try:
                given_value *= float(given_unit.scale / unit.scale)
            except OverflowError:
                return wrong(f"{shorten(answer)} instead of {shorten(expected)}")
        count, given_count = _integer(expected), _integer(answer)
        counted = tolerance == 0 and count is not None and given_count is not None
        if count == given_count if counted else _is_close(given_value, value, tolerance):
            return correct(f"{shorten(answer)} is right")
        return wrong(f"{shorten(answer)} instead of {shorten(expected)}, with a tolerance of {tolerance:g}")

    def _expected(self, prompt: Prompt) -> tuple[str, float]:
        """The answer in the data, and its tolerance."""
        if _RECORD.match(prompt.answer):
            record = read_answer(prompt, ScienceAnswer)
            return record.answer, record.tolerance
        boxed = last_boxed(prompt.answer)
        expected = prompt.answer if boxed is None else boxed
        return expected, 0.0 if _integer(expected) is not None else self._tolerance


def _is_close(given: float, expected: float, tolerance: float) -> bool:
    return math.isclose(given, expected, rel_tol=_SAME) or abs(given - expected) <= tolerance * abs(expected)


def _plain(latex: str) -> str:
    return latex.strip().strip("$").rstrip(".")


def _integer(latex: str) -> int | None:
    """A count, without a unit."""
    digits = _SPACES.sub("", _plain(latex))
    return int(digits.replace(",", "")) if len(digits) < 1000 and _INTEGER.fullmatch(digits) else None


def _quantity(latex: str) -> tuple[float, Unit | None] | None:
    """One finite number and its unit; None for anything else."""
    number, unit = separate_unit(_plain(latex), bare=True)
    decimal = _DECIMAL.fullmatch(_SPACES.sub("", number))
    if decimal:
        value = float(f"{decimal[1].replace(',', '')}e{decimal[2] or 0}") / (100 if decimal[3] else 1)
    elif len(parsed := [item for item in parse_answer(number) if not isinstance(item, str)]) == 1:
        if not getattr(parsed[0], "is_number", False) or not parsed[0].is_extended_real:
            return None
        value = float(parsed[0])
    else:
        return None
    return (value, unit) if math.isfinite(value) else None
