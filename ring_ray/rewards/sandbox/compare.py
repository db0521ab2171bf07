"""Whether a program's output is the one expected. Pure."""

import math
import re
from collections.abc import Iterator
from itertools import zip_longest
from typing import Literal, get_args

Comparison = Literal["exact", "lines", "tokens", "floats"]
COMPARISONS: tuple[str, ...] = get_args(Comparison)
_TOKEN = re.compile(r"\S+")
_LONGEST_NUMBER = 400  # characters; Python reads longer ones slowly, and nobody prints them


def same_output(given: str, expected: str, how: str, tolerance: float = 1e-6) -> bool:
    """`exact`: character by character. `lines`: but for white space at the ends of lines and of the text.

    `tokens`: but for how white space is spread. `floats`: and but for numbers that differ by at most ``tolerance``,
    absolutely or as a share of the expected one, where a token of the expected output is written as a decimal.
    """
    match how:
        case "exact":
            return given == expected
        case "lines":
            return _lines(given) == _lines(expected)
        case "tokens":
            return all(one == other for one, other in zip_longest(_tokens(given), expected.split()))
        case "floats":
            return all(
                one is not None and other is not None and _same_token(one, other, tolerance)
                for one, other in zip_longest(_tokens(given), expected.split())
            )
    raise ValueError(f"comparison {how!r}: must be one of {', '.join(COMPARISONS)}")


def same_value(given: object, expected: object, tolerance: float | None = None) -> bool:
    """Of what functions return: a list is no tuple and True is no 1, but 1 is 1.0; NaN is NaN.

    With a ``tolerance`` floating-point numbers may differ by it, absolutely or as a share of the expected one.
    """
    numbers = (int, float)
    if type(given) in numbers and type(expected) in numbers:
        if tolerance is not None and float in (type(given), type(expected)):
            return _close(given, expected, tolerance)  # type: ignore[arg-type]
        return given == expected or (given != given and expected != expected)
    if type(given) is not type(expected):
        return False
    if isinstance(given, list | tuple) and isinstance(expected, list | tuple):
        return len(given) == len(expected) and all(
            same_value(one, other, tolerance) for one, other in zip(given, expected, strict=True)
        )
    if isinstance(given, dict) and isinstance(expected, dict):
        typed = {(type(key), key) for key in given} == {(type(key), key) for key in expected}
        return typed and all(same_value(given[key], value, tolerance) for key, value in expected.items())
    return given == expected


def _tokens(text: str) -> Iterator[str]:
    """One at a time: a program may print millions, of which the first is wrong."""
    return (match[0] for match in _TOKEN.finditer(text))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _same_token(given: str, expected: str, tolerance: float) -> bool:
    if given == expected:
        return True
    if not any(mark in expected for mark in ".eE"):  # an integer or a word is either right or not
        return False
    numbers = _number(given), _number(expected)
    return None not in numbers and _close(*numbers, tolerance)  # type: ignore[arg-type]


def _number(token: str) -> float | None:
    if len(token) > _LONGEST_NUMBER or "_" in token:  # Python reads 1_000; no other language writes it
        return None
    try:
        return float(token)
    except ValueError:
        return None


def _close(given: float, expected: float, tolerance: float) -> bool:
    try:
        if math.isnan(given) or math.isnan(expected):
            return math.isnan(given) and math.isnan(expected)
        if math.isinf(given) or math.isinf(expected):
            return given == expected
        return abs(given - expected) <= tolerance * max(1.0, abs(expected))
    except OverflowError:  # an integer beyond all floating-point numbers
        return given == expected
