"""What a row of data says about a problem of programming, checked when it is read."""

import json
from typing import Any

import msgspec

from ring_ray.rewards.sandbox.compare import COMPARISONS, Comparison
from ring_ray.rewards.sandbox.languages import Language


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
        raise ProblemError(f"a problem of programming can't be read: {error}") from error
    kinds = [name for name in ("tests", "calls", "unit_tests") if getattr(problem, name)]
    if len(kinds) != 1:
        raise ProblemError(f"tests, calls, unit_tests: there must be exactly one of them, not {kinds or 'none'}")
    if problem.language != "python" and kinds != ["tests"]:
        raise ProblemError(f"{kinds[0]}: only for Python; in {problem.language}, a harness calls the submission")
    if bool(problem.calls) != bool(problem.entry):
        raise ProblemError(f"entry={problem.entry!r}: calls need it, and only they do")
    if problem.comparison not in COMPARISONS:
        raise ProblemError(f"comparison={problem.comparison!r}: must be one of {', '.join(COMPARISONS)}")
    for name in ("tolerance", "cpu_seconds", "memory_mib"):
        value = getattr(problem, name)
        if value is not None and not 0 < value < 1e6:
            raise ProblemError(f"{name}={value!r}: must be above 0 and below 1e6")
    return problem
