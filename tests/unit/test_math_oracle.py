"""Generated mathematics: equal forms of an answer are accepted and changed ones refused, and any text is judged.

The oracle is Python's own arithmetic on the numbers, which the verifiers only see as text.
"""

import json
import random
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_ray.config import RewardConfig
from ring_ray.rewards.base import Response
from ring_ray.rewards.registry import Verifiers
from ring_ray.types import Prompt, Reward, Verdict

VERIFIERS = Verifiers(RewardConfig(timeout_seconds=1.0))
NUMBERS = st.fractions(-50, 50, max_denominator=20)
Form = Callable[[Fraction], str]
FORMS: list[Form] = [
    lambda number: rf"\frac{{{number.numerator}}}{{{number.denominator}}}",
    lambda number: rf"\frac{{{number.numerator * 3}}}{{{number.denominator * 3}}}",
    lambda number: rf"{number.numerator}/{number.denominator}",
    lambda number: rf"\frac{{{number.numerator * 100}}}{{{number.denominator}}}\%",
]


def judge(verifier: str, answer: str, response: str) -> Reward:
    ids = np.zeros(1, np.int32)
    prompt = Prompt(index=0, id="d:7", domain="d", text="?", token_ids=ids, verifier=verifier, answer=answer)
    return VERIFIERS.judge(prompt, [Response(response, tokens=0)])[0]


def agrees(answer: str, given: str, equal: bool) -> None:
    reward = judge("math", answer, rf"\boxed{{{given}}}")
    assert reward.verdict is (Verdict.CORRECT if equal else Verdict.WRONG), (answer, given, reward)


@settings(deadline=None)
@given(one=NUMBERS, other=NUMBERS, same=st.booleans(), forms=st.tuples(*[st.sampled_from(FORMS)] * 2))
def test_numbers(one: Fraction, other: Fraction, same: bool, forms: tuple[Form, Form]) -> None:
    chosen = one if same else other
    agrees(forms[0](one), forms[1](chosen), one == chosen)


@settings(deadline=None)
@given(st.lists(NUMBERS, min_size=2, max_size=5, unique=True), st.randoms(use_true_random=False), st.booleans())
def test_sets(numbers: list[Fraction], generator: random.Random, change: bool) -> None:
    given = generator.sample(numbers, len(numbers))
    if change:
        given[0] += 1
    written, shuffled = (", ".join(map(FORMS[0], some)) for some in (numbers, given))
    agrees(rf"\{{{written}\}}", rf"\{{{shuffled}\}}", set(numbers) == set(given))


@settings(deadline=None)
@given(
    bounds=st.lists(st.integers(-20, 20), min_size=2, max_size=2, unique=True).map(sorted),
    brackets=st.tuples(*[st.sampled_from(["()", "(]", "[)", "[]"])] * 2),
    shift=st.integers(0, 1),
)
def test_intervals(bounds: list[int], brackets: tuple[str, str], shift: int) -> None:
    (low, high), (one, other) = bounds, brackets
    agrees(
        f"{one[0]}{low}, {high}{one[1]}",
        rf"\left{other[0]}{low}, {high + shift}\right{other[1]}",
        one == other and shift == 0,
    )


@settings(deadline=None)
@given(st.integers(1, 3), st.integers(2, 3), st.data(), st.booleans())
def test_matrices(rows: int, columns: int, data: st.DataObject, change: bool) -> None:
    matrix = [[data.draw(st.integers(-9, 9)) for _ in range(columns)] for _ in range(rows)]
    given = [list(row) for row in matrix]
    if change:
        given[data.draw(st.integers(0, rows - 1))][data.draw(st.integers(0, columns - 1))] += 1

    def written(cells: list[list[int]], kind: str) -> str:
        return rf"\begin{{{kind}}}" + r" \\ ".join(" & ".join(map(str, row)) for row in cells) + rf"\end{{{kind}}}"

    agrees(written(matrix, "pmatrix"), written(given, "bmatrix"), not change)


INSTRUCTION = {"instruction_id_list": ["startend:end_checker"], "kwargs": [{"end_phrase": "7919"}]}
ANSWERS = {
    "choice": "Q",
    "ifeval": json.dumps(INSTRUCTION),
    "ifeval_loose": json.dumps(INSTRUCTION),
    "integer": "7919",
    "math": "7919",
    "science": "7919.5 kg",
}
PIECES = [*r"03+-*/^_{}()[]|,.;:!=<>%$&", *"aexÅ½٣", r"\frac", r"\sqrt", r"\text{ m}", r"\%", r"\\", r"\infty", r"\cup"]
PIECES += [r"\begin{pmatrix}", r"\end{pmatrix}", r"\boxed{", r"\sum", r"\mathrm{kg}", "\0", "\n", "__import__('os')"]
TEXTS = st.text(max_size=100) | st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize(
    "code",
    [
        "__import__('os').system('touch {}')",
        "open('{}', 'w')",
        r"\text{{open('{}', 'w')}}",
        r"\operatorname{{exec}}(\"open('{}', 'w')\")",
        r"7919 + 0*int(open('{}', 'w').write(''))",
        r"\frac{{__import__('pathlib').Path('{}').touch()}}{{1}}",
        r"\input{{|touch {}}}",
        "Lambda(x, open('{}', 'w'))(1)",
    ],
)
def test_code_in_an_answer_is_not_run(name: str, code: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    answer = code.format(trace)
    for response in (answer, rf"\boxed{{{answer}}}", f"<answer>{answer}</answer>", f"Answer: {answer}"):
        reward = judge(name, ANSWERS[name], response)
        assert (reward.score, reward.verdict.reached) == (0.0, True), reward
    assert not trace.exists()


@pytest.mark.parametrize("name", ANSWERS)
@settings(deadline=None)
@given(text=TEXTS | st.binary(max_size=100).map(lambda data: data.decode("latin-1")))
def test_any_text_is_judged_and_earns_nothing(name: str, text: str) -> None:
    for response in (text, rf"\boxed{{{text}}}"):
        reward = judge(name, ANSWERS[name], response)
        assert reward.verdict is not Verdict.FAILED, reward
        assert reward.score == 0.0 or ("Q" if name == "choice" else "7919") in text, (text, reward)
        assert len(reward.reason) < 400
