"""Numbers with units and tolerances, and multiple choice."""

import json
import random
import threading
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_ray.config import ConfigError, RewardConfig
from ring_ray.rewards.base import AnswerError
from ring_ray.rewards.choice import ChoiceVerifier
from ring_ray.rewards.science import ScienceVerifier
from ring_ray.rewards.units import read_unit, separate_unit
from ring_ray.types import Prompt, Reward, Verdict

SCIENCE = ScienceVerifier(RewardConfig())
CHOICE = ChoiceVerifier(RewardConfig())


def prompt(answer: str) -> Prompt:
    ids = np.zeros(1, np.int32)
    return Prompt(index=0, id="d.jsonl:7", domain="d", text="?", token_ids=ids, verifier="v", answer=answer)


def science(answer: str, given: str) -> Reward:
    return SCIENCE.verify(prompt(answer), rf"so \boxed{{{given}}}")


@pytest.mark.parametrize(
    ("text", "scale", "dimensions"),
    [
        (r"\text{ cm}", "0.01", {"m": 1}),
        ("m/s^2", "1", {"m": 1, "s": -2}),
        (r"\mathrm{kg\,m^{-3}}", "1", {"kg": 1, "m": -3}),
        (r"\frac{\text{m}}{\text{s}^2}", "1", {"m": 1, "s": -2}),
        ("J/mol K", "1", {"kg": 1, "m": 2, "s": -2, "mol": -1, "K": -1}),
        ("J/(mol K)", "1", {"kg": 1, "m": 2, "s": -2, "mol": -1, "K": -1}),
        ("kWh", "3600000", {"kg": 1, "m": 2, "s": -2}),
        ("µF", "0.000001", {"A": 2, "s": 4, "kg": -1, "m": -2}),
        (r"\mu\text{m}", "0.000001", {"m": 1}),
        ("cm²", "0.0001", {"m": 2}),
        ("square meters", "1", {"m": 2}),
        ("°C", "1", {"°C": 1}),
        (r"^\circ\text{C}", "1", {"°C": 1}),
    ],
)
def test_units(text: str, scale: str, dimensions: dict[str, int]) -> None:
    unit = read_unit(text)
    assert unit is not None
    assert (unit.scale, dict(unit.dimensions)) == (Fraction(scale), dimensions)


@pytest.mark.parametrize("text", ["apples", "", "and", "and 2", "x^2", r"\sqrt{m}", "m" * 1000])
def test_what_is_no_unit(text: str) -> None:
    assert read_unit(text) is None


@pytest.mark.parametrize(
    ("text", "bare", "number"),
    [
        (r"5\text{ cm}", False, "5"),
        ("5m", False, "5m"),
        ("5m", True, "5"),
        (r"\text{A}", True, r"\text{A}"),
        (r"1\text{ and }2", True, r"1\text{ and }2"),
        (r"2\sqrt{3}\text{ m}", False, r"2\sqrt{3}"),
        (r"3.0\times 10^8 m/s", True, r"3.0\times 10^8 "),
    ],
)
def test_where_a_number_ends_and_its_unit_begins(text: str, bare: bool, number: str) -> None:
    assert separate_unit(text, bare=bare)[0] == number


@pytest.mark.parametrize(
    ("answer", "given", "verdict"),
    [
        ("9.8 m/s^2", r"9.81\ \mathrm{m/s^2}", Verdict.CORRECT),
        ("9.8 m/s^2", "9.8 m/s", Verdict.WRONG),
        ("9.8 m/s^2", "9.8", Verdict.CORRECT),
        ("9.8 m/s^2", "10.5 m/s^2", Verdict.WRONG),
        (r"3.0\times 10^8 \text{ m/s}", r"3\times10^5\text{ km/s}", Verdict.CORRECT),
        (r"3.0\times 10^8 \text{ m/s}", r"3\times10^8\text{ km/s}", Verdict.WRONG),
        ("300 K", "300 °C", Verdict.WRONG),
        ("12", "12.0", Verdict.CORRECT),
        ("12", "12.1", Verdict.WRONG),
        ("12.", "12.1", Verdict.WRONG),
        ("2147483648", "2147483647", Verdict.WRONG),
        ("5 weeks", "35 days", Verdict.CORRECT),
        ("5 weeks", "5 days", Verdict.WRONG),
        ("5 ft 6 in", "5", Verdict.WRONG),
        ("760 mmHg", "1 atm", Verdict.CORRECT),
        ("20 °C", "20 degrees Celsius", Verdict.CORRECT),
        ("5 m", "5 km^99 mm^-98", Verdict.WRONG),
        ('{ "answer": "10", "tolerance": 0.2}', "11", Verdict.CORRECT),
        ('{"answer": "10", "tolerance": 0.2}', "13", Verdict.WRONG),
        ("0.333", "1/3", Verdict.CORRECT),
        ("1.41", r"\sqrt{2}", Verdict.CORRECT),
        ("0.12", r"12\%", Verdict.CORRECT),
        (r"12\%", "12", Verdict.WRONG),
        ("1,000.5", "1000.5", Verdict.CORRECT),
        ("1.0e-3", "0.001", Verdict.CORRECT),
        ("-3.2", "3.2", Verdict.WRONG),
        ("0", "0.001", Verdict.WRONG),
        ("x^2", "x*x", Verdict.CORRECT),
        ("x^2", "x^3", Verdict.WRONG),
        ('{"answer": "10", "tolerance": 0.2}', "11.9", Verdict.CORRECT),
        ('{"answer": "10", "tolerance": 0.2}', "12.1", Verdict.WRONG),
    ],
)
def test_science_verdicts(answer: str, given: str, verdict: Verdict) -> None:
    reward = science(answer, given)
    assert reward.verdict is verdict, reward.reason
    assert reward.score == float(verdict is Verdict.CORRECT)


# The oracle is arithmetic on the generated numbers, which the verifier only sees as text.
@settings(deadline=None)
@given(
    value=st.floats(1e-6, 1e6),
    error=st.floats(-0.05, 0.05).filter(lambda error: abs(abs(error) - 0.01) > 1e-4),
    units=st.sampled_from(
        [("m", "cm", 100), ("km", "m", 1000), ("J", "kJ", 0.001), ("h", "s", 3600), ("g", "kg", 0.001)]
    ),
    negative=st.booleans(),
)
def test_a_number_is_right_within_its_tolerance(
    value: float, error: float, units: tuple[str, str, float], negative: bool
) -> None:
    sign = -1 if negative else 1
    expected, given = f"{sign * value:.9e} {units[0]}", f"{sign * value * (1 + error) * units[2]:.9e} {units[1]}"
    assert science(expected, given).score == float(abs(error) < 0.01)


def test_science_refuses_to_judge_what_it_cannot_read() -> None:
    assert science("9.8", "").verdict is Verdict.UNPARSABLE
    assert SCIENCE.verify(prompt("9.8"), "9.8").verdict is Verdict.UNPARSABLE
    assert science(r"\frac{", "9.8").verdict is Verdict.FAILED
    with pytest.raises(AnswerError, match=r"d\.jsonl:7.*tolerance"):
        science('{"answer": "10"}', "10")
    with pytest.raises(ConfigError, match=r"reward\.tolerance=1"):
        RewardConfig(tolerance=1)


def test_science_off_the_main_thread_fails_instead_of_scoring_zero() -> None:
    rewards: list[Reward] = []
    thread = threading.Thread(target=lambda: rewards.append(science("9.8", "9.8")))
    thread.start()
    thread.join()
    assert rewards[0].verdict is Verdict.FAILED


def test_science_stops_at_its_time_limit() -> None:
    verifier = ScienceVerifier(RewardConfig(timeout_seconds=0.3))
    assert verifier.verify(prompt("2.5"), r"\boxed{\sum_{n=1}^{10^9} \frac{1}{n^n}}").verdict is Verdict.TIMED_OUT


@pytest.mark.parametrize(
    ("response", "verdict"),
    [
        (r"\boxed{B}", Verdict.CORRECT),
        (r"\boxed{\text{(B)}}", Verdict.CORRECT),
        (r"\boxed{\textbf{B}}", Verdict.CORRECT),
        (r"\boxed{B. The second}", Verdict.CORRECT),
        (r"\boxed{A} no, \boxed{B}", Verdict.CORRECT),
        ("The answer is (B).", Verdict.CORRECT),
        ("Answer: A. No: the answer is **B**", Verdict.CORRECT),
        (r"The answer is B, so \boxed{A}", Verdict.WRONG),
        (r"\boxed{B} no, \boxed{A}", Verdict.WRONG),
        (r"\boxed{A and B}", Verdict.UNPARSABLE),
        (r"\boxed{A, B}", Verdict.UNPARSABLE),
        (r"\boxed{B or A or C}", Verdict.UNPARSABLE),
        (r"\boxed{(B) and (C)}", Verdict.UNPARSABLE),
        (r"\boxed{B. A. C. D}", Verdict.UNPARSABLE),
        (r"\boxed{B A}", Verdict.UNPARSABLE),
        ("The answer is B or C", Verdict.UNPARSABLE),
        ("The answer is $B$", Verdict.CORRECT),
        (r"The answer is \(B\).", Verdict.CORRECT),
        ("answer" + " " * 100_000 + "x", Verdict.UNPARSABLE),
        (r"\boxed{Both}", Verdict.UNPARSABLE),
        (r"\boxed{b}", Verdict.UNPARSABLE),
        (r"\boxed{}", Verdict.UNPARSABLE),
        ("The answer is Berlin", Verdict.UNPARSABLE),
        ("The answer is Bé", Verdict.UNPARSABLE),
        ("The answerB", Verdict.UNPARSABLE),
        ("the answer is a number", Verdict.UNPARSABLE),
        ("B", Verdict.UNPARSABLE),
    ],
)
def test_choice_verdicts(response: str, verdict: Verdict) -> None:
    reward = CHOICE.verify(prompt("B"), response)
    assert reward.verdict is verdict, reward.reason
    assert reward.score == float(verdict is Verdict.CORRECT)


def test_choice_accepts_its_letter_alone() -> None:
    letters = "ABCDEFGHIJ"
    generator = random.Random(0)
    for expected in letters:
        for chosen in letters:
            form = generator.choice([r"\boxed{{{}}}", r"\boxed{{\text{{{}}}}}", r"\boxed{{({})}}", "The answer is {}."])
            assert CHOICE.verify(prompt(expected), form.format(chosen)).score == float(chosen == expected)


@pytest.mark.parametrize("answer", ["", "AB", "A or B", "A cat", "3", json.dumps({"answer": "B"})])
def test_choice_never_blames_the_response_for_the_data(answer: str) -> None:
    with pytest.raises(AnswerError, match=r"d\.jsonl:7"):
        CHOICE.verify(prompt(answer), r"\boxed{B}")
