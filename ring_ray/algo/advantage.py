"""Rewards of a group become advantages (Ring-lite, arXiv 2506.14731, section 3)."""

import numpy as np
import numpy.typing as npt

from ring_ray.types import FloatArray


def group_advantages(rewards: npt.ArrayLike, epsilon: float) -> FloatArray:
    """`A_i = (R_i - mean(R)) / (std(R) + epsilon)` over the K responses of one prompt.

    The paper does not say which deviation it means: ours is the population's (divisor K), since the group is all there
    is to compare with and not a sample of something larger.

    Args:
        rewards: [K], finite.
        epsilon: keeps the quotient finite; in the unit of the rewards.

    Returns:
        [K]; exactly 0 where all rewards are equal.

    Raises:
        ValueError: ``rewards`` is not a non-empty vector of finite numbers.
    """
    rewards_K = np.asarray(rewards, np.float64)
    if rewards_K.ndim != 1 or rewards_K.size == 0 or not np.isfinite(rewards_K).all():
        raise ValueError(f"rewards must be a non-empty vector of finite numbers, got {rewards!r}")
    if (rewards_K == rewards_K[0]).all():  # the mean is rounded, so the formula alone would leave tiny advantages
        return np.zeros(rewards_K.size, np.float32)
    advantages_K: FloatArray = ((rewards_K - rewards_K.mean()) / (rewards_K.std() + epsilon)).astype(np.float32)
    return advantages_K
