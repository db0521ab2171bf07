"""Values that cross the border of the sandbox."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring_ray.rewards.sandbox.inside import values

HASHABLE = st.none() | st.booleans() | st.integers() | st.text() | st.binary()
PLAIN = st.recursive(
    HASHABLE | st.floats(allow_nan=False) | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(HASHABLE, inner) | st.frozensets(HASHABLE)
    ),
)


@given(PLAIN)
def test_a_plain_value_comes_back(value: object) -> None:
    again = values.loads(values.dumps(value))
    assert again == value
    assert type(again) is type(value)


@given(st.text() | st.binary())
def test_anything_else_is_refused_by_name(text: str | bytes) -> None:
    for read in (
        values.loads,
        lambda text: values.as_json(text if isinstance(text, bytes) else text.encode("utf-8", "replace")),
    ):
        try:
            read(text)
        except values.NotPlainError:
            continue


@pytest.mark.parametrize(
    "text", ['{"list": 3}', '{"set": [{"list": []}]}', '{"remote": 0}', "[1]", "{}", "[" * 100_000]
)
def test_what_dumps_can_not_have_written_is_refused(text: str) -> None:
    with pytest.raises(values.NotPlainError):
        values.loads(text)


def test_objects_do_not_cross() -> None:
    class Everything(int):
        def __eq__(self, other: object) -> bool:
            return True

    for value in (Everything(3), object(), [Everything(3)], {1: print}):
        with pytest.raises(values.NotPlainError):
            values.dumps(value)


def test_a_value_within_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(values.NotPlainError):
        values.dumps(loop)


def test_as_json_makes_nothing_a_key_that_the_submission_chose() -> None:
    modulus = 2**61 - 1  # of Python's hash of integers: all of these have the hash 0
    hostile = values.dumps(dict.fromkeys((modulus * factor for factor in range(3)), 0))
    assert values.as_json(hostile.encode()) == {str(modulus * factor): 0 for factor in range(3)}
    with pytest.raises(values.NotPlainError):
        values.as_json(json.dumps({"set": [1, 2]}).encode())


def test_as_json_reads_tuples_as_lists() -> None:
    assert values.as_json(values.dumps((1, [2, (3,)], {"a": (4,)})).encode()) == [1, [2, [3]], {"a": [4]}]
