"""Which output, and which value, counts as the expected one."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring_ray.rewards.sandbox.compare import same_output, same_value

NAN = float("nan")


@pytest.mark.parametrize(
    ("how", "output", "expected", "same"),
    [
        ("exact", "1\n", "1\n", True),
        ("exact", "1", "1\n", False),
        ("lines", "1  \n2\n\n", "1\n2", True),
        ("lines", "1 2", "1  2", False),
        ("lines", " 1", "1", False),
        ("tokens", " 1\n2 ", "1 2", True),
        ("tokens", "12", "1 2", False),
        ("tokens", "1.0", "1.00", False),
        ("floats", "1.0000001", "1.0", True),
        ("floats", "1.00001", "1.0", False),
        ("floats", "1000000.1", "1000000.0", True),
        ("floats", "2", "2.0", True),
        ("floats", "2.0", "2", False),  # an integer is asked for
        ("floats", "1 1.0", "1.0", False),
        ("floats", "nan", "1.0", False),
        ("floats", "inf", "1e300", False),
        ("floats", "1_0.0", "10.0", False),
        ("floats", "yes 0.1", "no 0.1", False),
    ],
)
def test_output(how: str, output: str, expected: str, same: bool) -> None:
    assert same_output(output, expected, how) is same


def test_the_tolerance_is_the_problems() -> None:
    assert same_output("0.11", "0.1", "floats", tolerance=0.02)
    assert not same_output("0.13", "0.1", "floats", tolerance=0.02)


def test_an_unknown_comparison_is_refused() -> None:
    with pytest.raises(ValueError, match="exact, lines, tokens, floats"):
        same_output("", "", "fuzzy")


@pytest.mark.parametrize(
    ("value", "expected", "same"),
    [
        (1, 1.0, True),
        (True, 1, False),
        ("1", 1, False),
        ([1, 2], [1, 2], True),
        ([1, 2], [2, 1], False),
        ({"a": [1]}, {"a": [1]}, True),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        (None, None, True),
        (None, 0, False),
        (NAN, NAN, True),
        (0.1 + 0.2, 0.3, False),
    ],
)
def test_values(value: object, expected: object, same: bool) -> None:
    assert same_value(value, expected) is same


def test_values_within_a_tolerance() -> None:
    assert same_value([0.1 + 0.2], [0.3], tolerance=1e-9)
    assert not same_value([0.31], [0.3], tolerance=1e-9)
    assert not same_value(10**400, 1.0, tolerance=1e-9)  # beyond any float
    assert not same_value(1_000_000_001, 1_000_000_000, tolerance=1e-3)  # integers are exact


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(PLAIN)
def test_a_value_is_itself(value: object) -> None:
    assert same_value(value, value)
    assert same_value(value, value, tolerance=1e-9)


@given(st.text(), st.sampled_from(["exact", "lines", "tokens", "floats"]))
def test_an_output_is_itself(text: str, how: str) -> None:
    assert same_output(text, text, how)


@given(st.text(), st.text(), st.sampled_from(["lines", "tokens", "floats"]))
def test_only_white_space_and_numbers_may_differ(one: str, other: str, how: str) -> None:
    if same_output(one, other, how) and "." not in other and "e" not in other.lower():
        assert one.split() == other.split()
