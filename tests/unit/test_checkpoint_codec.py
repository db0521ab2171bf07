"""What is written is what is read, and what can't be read is refused."""

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ring_ray.buffer import BufferState, RolloutBuffer
from ring_ray.checkpoint.codec import decode, encode
from ring_ray.config import AlgoConfig
from ring_ray.types import Reward, Rollout, Sequence, Verdict
from tests.unit.rollouts import rewards, rollout_of

DTYPES = (np.int16, np.int32, np.float32, np.bool_)
State = tuple[BufferState, dict[int, Rollout]]


def written() -> bytes:
    """A buffer with something in every place, and an unfinished rollout with and without a token."""
    buffer = RolloutBuffer(AlgoConfig(token_budget=4, group_size=2), seed=0)
    for index in range(4):
        buffer.add(rollout_of(index, 5, 3))
    for index in (0, 2):
        buffer.score(index, rewards(1.0, 0.0))
    buffer.take()
    return encode((buffer.state(), {9: rollout_of(9, 2, 0)}))


@given(st.sampled_from(DTYPES).flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, min_side=0))))
def test_an_array_keeps_its_dtype_its_shape_and_every_bit(array: npt.NDArray[Any]) -> None:
    for laid_out in (array, np.asfortranarray(array)):
        read = decode(encode(laid_out), npt.NDArray[array.dtype.type])  # type: ignore[name-defined]
        assert (read.dtype, read.shape, read.tobytes()) == (array.dtype, laid_out.shape, array.tobytes())


@pytest.mark.parametrize("score", [math.nan, math.inf, -0.0, 0.1])
@pytest.mark.parametrize("verdict", Verdict)
def test_a_reward_keeps_its_score_and_verdict(score: float, verdict: Verdict) -> None:
    read = decode(encode(Reward(score=score, verdict=verdict, reason="¬ Φ")), Reward)
    assert repr(read) == repr(Reward(score=score, verdict=verdict, reason="¬ Φ"))
    assert read.verdict is verdict


@pytest.mark.parametrize("experts", [None, np.arange(12, dtype=np.int16).reshape(3, 2, 2)])
def test_a_sequence_keeps_its_routed_experts(experts: npt.NDArray[np.int16] | None) -> None:
    sequence = Sequence(
        prompt_ids=np.ones(2, np.int32),
        response_ids=np.arange(2, dtype=np.int32),
        logprobs=np.array([-0.5, np.nan], np.float32),
        versions=np.array([3, 4], np.int32),
        finish_reason="unfinished",
        routed_experts=experts,
    )
    read = decode(encode(sequence), Sequence)
    for name in ("prompt_ids", "response_ids", "logprobs", "versions"):
        np.testing.assert_array_equal(getattr(read, name), getattr(sequence, name))
    assert (read.routed_experts is None) == (experts is None)
    assert experts is None or np.array_equal(read.routed_experts, experts)  # type: ignore[arg-type]
    assert read.finish_reason == "unfinished"


def test_the_state_of_a_run_is_read_as_it_was_written() -> None:
    assert encode(decode(written(), State)) == written()


@given(st.data())
def test_a_file_that_is_cut_short_is_refused(data: st.DataObject) -> None:
    whole = written()
    length = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match=f"can't read {length} bytes as .*BufferState"):
        decode(whole[:length], State)


@given(st.data())
def test_a_damaged_file_is_read_or_refused_but_breaks_nothing(data: st.DataObject) -> None:
    damaged = bytearray(written())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ValueError):  # damage inside of an array can't be seen from here
        decode(bytes(damaged), State)


@dataclass(frozen=True)
class Later:
    """A `Reward` of another version of this software."""

    score: str
    verdict: str


@pytest.mark.parametrize(
    ("value", "type", "message"),
    [
        (np.zeros(1, np.int64), npt.NDArray[np.int32], "an array of <i8 where one of <i4 was expected"),
        (("<i4", (3,), bytes(8)), npt.NDArray[np.int32], "cannot reshape"),
        (("|O", (1,), bytes(8)), npt.NDArray[np.int32], r"an array of \|O where one of <i4"),
        (("nonsense", (1,), bytes(8)), npt.NDArray[np.int32], "an array of nonsense where"),
        ("text", npt.NDArray[np.int32], "Expected `array`, got `str`"),
        (Later(score="1", verdict="correct"), Reward, r"Expected `float`, got `str` - at `\$.score`"),
        (Reward(score=1, verdict=Verdict.WRONG, reason=""), Rollout, "missing required field `prompt`"),
    ],
)
def test_what_is_something_else_is_refused_and_named(value: object, type: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode(encode(value), type)


@pytest.mark.parametrize("value", [object(), np.array([object()]), {"of": [encode]}, 1j])
def test_what_is_no_data_is_not_written(value: object) -> None:
    with pytest.raises(TypeError, match="can't encode"):
        encode(value)
