"""What a row of data says about a problem of programming, checked when it is read."""

import json
import re
from typing import Any, get_args

import msgspec

from ring_ray.rewards.sandbox.compare import COMPARISONS, Comparison
from ring_ray.rewards.sandbox.languages import Language

_CHOICES = {"language": get_args(Language), "comparison": COMPARISONS}


class ProblemError(ValueError):
    """A problem that can't be judged. The message names the field."""


class StreamTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the program reads, and what it must print."""

    input: str = ""
    output: str = ""


class CallTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Arguments of one call of the entry, and what it must return."""

    arguments: list[Any] = []
    keywords: dict[str, Any] = {}
    returns: Any = None


class Checker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A program that reads the files `input`, `expected` and `output` and ends with status 0 where the output is right.

    Their names are its arguments, in the order `input output expected`, as testlib has it.
    """

    language: Language
    source: str


class Problem(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Exactly one of ``tests``, ``calls`` and ``unit_tests``."""

    language: Language = "python"
    tests: list[StreamTest] = []
    calls: list[CallTest] = []  # Python only
    entry: str = ""  # of calls: a function, or Class.method
    unit_tests: str = ""  # Python only: asserts, test_* functions, unittest.TestCase
    harness: str = ""  # source that has the entry point and uses the submission; for tests
    comparison: Comparison = "tokens"
    tolerance: float | None = None  # of comparison=floats, 1e-6 where not given; of calls, exact where not given
    checker: Checker | None = None  # in place of the comparison
    cpu_seconds: float | None = None  # null is the config's
    memory_mib: int | None = None


def read_problem(text: str) -> Problem:
    """From the JSON of a row's answer; raises `ProblemError`."""
    try:
        problem = msgspec.convert(json.loads(text), Problem)
    except (ValueError, msgspec.ValidationError, RecursionError) as error:
        raise ProblemError(f"a problem of programming can't be read: {error}{_choices(str(error))}") from error
    kinds = [name for name in ("tests", "calls", "unit_tests") if getattr(problem, name)]
    if len(kinds) != 1:
        raise ProblemError(f"tests, calls, unit_tests: there must be exactly one of them, not {kinds or 'none'}")
    if problem.language != "python" and kinds != ["tests"]:
        raise ProblemError(f"{kinds[0]}: only for Python; in {problem.language}, a harness calls the submission")
    if bool(problem.calls) != bool(problem.entry):
        raise ProblemError(f"entry={problem.entry!r}: calls need it, and only they do")
    for name in ("tolerance", "cpu_seconds", "memory_mib"):
        value = getattr(problem, name)
        if value is not None and not 0 < value < 1e6:
            raise ProblemError(f"{name}={value!r}: must be above 0 and below 1e6")
    return problem


def _choices(message: str) -> str:
    """The end of msgspec's ``message`` about a value that is none of a few: those few, which it leaves out."""
    field = re.search(r"^Invalid enum value .* at `\$[\w.]*?(\w+)`$", message, re.DOTALL)
    return f": must be one of {', '.join(_CHOICES[field[1]])}" if field else ""
