"""How large a number is that a response writes: some few characters can hold more digits than any memory."""

import math
from typing import Any

import sympy

MOST_BITS = 1e6  # of any number: computing with such takes milliseconds
MOST_FACTORS = 1e5  # of a factorial or a binomial coefficient


def is_too_large(expression: Any) -> bool:
    """Whether computing ``expression`` would take a number of more than a million bits.

    Python can't interrupt arithmetic on one number, so that no time limit would end it.
    """
    try:
        return not _bits(expression) <= MOST_BITS
    except (OverflowError, RecursionError):
        return True


def _bits(expression: Any) -> float:
    """At least log2 of the absolute value of the largest number in an expression; infinite where it is too large."""
    if isinstance(expression, sympy.Rational):
        return math.log2(max(abs(expression.p), expression.q))
    if isinstance(expression, sympy.Float):
        return abs(math.log2(abs(expression))) if expression and expression.is_finite else 0.0
    parts = [_bits(part) for part in getattr(expression, "args", ())]
    most = max(parts, default=0.0)
    if most > MOST_BITS:
        return math.inf
    if isinstance(expression, sympy.Pow):
        base, exponent = parts
        return base * (2.0**exponent if exponent < 64 else math.inf) if base else exponent
    if isinstance(expression, sympy.factorial | sympy.binomial):
        return most * MOST_FACTORS if 2.0 ** min(most, 64) <= MOST_FACTORS else math.inf
    return sum(parts) if isinstance(expression, sympy.Mul) else most + math.log2(1 + len(parts))
