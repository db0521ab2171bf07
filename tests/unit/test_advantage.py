import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_ray.algo.advantage import group_advantages

rewards = st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=32)


def reference(rewards: list[float], epsilon: float) -> list[float]:
    mean = math.fsum(rewards) / len(rewards)
    deviation = math.sqrt(math.fsum((reward - mean) ** 2 for reward in rewards) / len(rewards))
    return [(reward - mean) / (deviation + epsilon) for reward in rewards]


@given(rewards, st.sampled_from([1e-6, 1e-3, 1.0]))
@settings(deadline=None)
def test_equals_the_formula(rewards: list[float], epsilon: float) -> None:
    np.testing.assert_allclose(group_advantages(rewards, epsilon), reference(rewards, epsilon), rtol=1e-5, atol=1e-6)


def test_deviation_is_the_populations() -> None:
    np.testing.assert_allclose(group_advantages([1, 0, 0, 0], 0.0), [3**0.5, *[-(3**-0.5)] * 3], rtol=1e-6)


def test_epsilon_is_added_to_the_deviation() -> None:
    np.testing.assert_allclose(group_advantages([1, 0], 0.5), [0.5, -0.5])


def test_is_float32_but_computed_in_float64() -> None:
    advantages = group_advantages([1e8 + 1, 1e8], 1e-6)
    assert advantages.dtype == np.float32
    np.testing.assert_allclose(advantages, [1, -1], rtol=1e-5)


@given(st.floats(-1e6, 1e6), st.integers(1, 64))
@settings(deadline=None)
def test_equal_rewards_give_exactly_zero(reward: float, group_size: int) -> None:
    assert not group_advantages([reward] * group_size, 0.0).any()


@pytest.mark.parametrize("rewards", [[], [0.0, math.nan], [math.inf, 1.0], [[0.0, 1.0]], 1.0])
def test_refuses_what_is_not_a_vector_of_finite_numbers(rewards: object) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        group_advantages(rewards, 1e-6)  # type: ignore[arg-type]
