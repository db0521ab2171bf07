"""What each trained token adds to the policy-gradient objective, before its weight: one pure function an objective.

r = π / π_behaviour is the ratio of a token, A its advantage, and `clip(x)` bounds x to 1 - ``clip_range`` and
1 + ``clip_range_high`` (where that is null, 1 + ``clip_range``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ring_ray.config import AlgoConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class LossInputs:
    """Trained tokens, flat. Log-probs and entropies in nats."""

    logprobs_N: Tensor
    entropies_N: Tensor
    behaviour_logprobs_N: Tensor  # under the policy versions that sampled the tokens
    advantages_N: Tensor
    weights_N: Tensor
    rows_N: Tensor  # int64, from 0: the segment that each token is in
    reference_logprobs_N: Tensor | None = None


class Surrogate(NamedTuple):
    values_N: Tensor  # to be maximized
    clipped_N: Tensor  # bool: where the clip changed the value, or for CISPO the gradient


Objective: TypeAlias = Callable[[LossInputs, Tensor, AlgoConfig], Surrogate]
"""Called with the logarithms of r, [N], through which the gradient flows."""


def clip(inputs: LossInputs, log_ratio_N: Tensor, algo: AlgoConfig) -> Surrogate:
    """``min(r A, clip(r) A)``: PPO, GRPO and C3PO (arXiv 2506.14731, section 3).

    With an upper range of its own it is the clip-higher of DAPO (arXiv 2503.14476, section 3.1).
    """
    return _pessimistic(log_ratio_N.exp(), inputs.advantages_N, algo)


def gspo(inputs: LossInputs, log_ratio_N: Tensor, algo: AlgoConfig) -> Surrogate:
    """``min(s A, clip(s) A)`` with one ratio s = exp(mean log r) for a whole response: GSPO (arXiv 2507.18071).

    Weighted by ``aggregation: response``, the tokens of a response add up to the paper's mean over responses. Written
    as its GSPO-token (section 4.3), ``s_t = sg[s] π_t / sg[π_t]``: value and gradient are the same, since a response
    has one advantage and one weight, and a token that the correction masks passes no gradient to the others.

    Of a response that was cut, s is taken over the span that is in this step; each span is clipped by itself.
    """
    detached_N = log_ratio_N.detach()
    # Every row has a token, so there are at most N rows.
    means_N = torch.zeros_like(detached_N).scatter_reduce(0, inputs.rows_N, detached_N, "mean", include_self=False)
    ratio_N = (means_N[inputs.rows_N] + (log_ratio_N - detached_N)).exp()
    return _pessimistic(ratio_N, inputs.advantages_N, algo)


def cispo(inputs: LossInputs, log_ratio_N: Tensor, algo: AlgoConfig) -> Surrogate:
    """``sg[clip(r)] A log π``: every token keeps a gradient of bounded size: CISPO (arXiv 2506.13585, section 3.1)."""
    ratio_N = log_ratio_N.detach().exp()
    bounded_N = _clamp(ratio_N, algo)
    clipped_N = (bounded_N != ratio_N) & (inputs.advantages_N != 0)
    return Surrogate(bounded_N * inputs.advantages_N * inputs.logprobs_N, clipped_N)


OBJECTIVES: Mapping[str, Objective] = {"clip": clip, "gspo": gspo, "cispo": cispo}


def _pessimistic(ratio_N: Tensor, advantages_N: Tensor, algo: AlgoConfig) -> Surrogate:
    unclipped_N, clipped_N = ratio_N * advantages_N, _clamp(ratio_N, algo) * advantages_N
    return Surrogate(torch.minimum(unclipped_N, clipped_N), clipped_N < unclipped_N)


def _clamp(ratio_N: Tensor, algo: AlgoConfig) -> Tensor:
    high = algo.clip_range if algo.clip_range_high is None else algo.clip_range_high
    return ratio_N.clamp(1 - algo.clip_range, 1 + high)


class Correction(NamedTuple):
    """How much of each token's policy gradient counts."""

    weights_N: Tensor  # without gradient
    truncated_N: Tensor  # bool: cut at the upper bound
    masked_N: Tensor  # bool: set to 0


def correct(mismatch_N: Tensor, algo: AlgoConfig) -> Correction:
    """Correct for tokens that another policy sampled than the trained one; k = π_train / π_rollout, without gradient.

    The two engines compute the same weights differently, most of all where a router chooses other experts. Here k
    holds the staleness as well, since the rollout's log-probs are those of the versions that sampled.

    - "truncated": min(k, ``correction_high``): truncated importance sampling (Yao et al. 2025, "Your Efficient RL
      Framework Secretly Brings You Off-Policy RL Training").
    - "icepop": k from ``correction_low`` to ``correction_high``, else 0: IcePop (Ring-1T, arXiv 2510.18855).
    """
    nowhere_N = torch.zeros_like(mismatch_N, dtype=torch.bool)
    if algo.correction == "truncated":
        high = algo.correction_high
        return Correction(mismatch_N.clamp(max=high), mismatch_N > high, nowhere_N)
    if algo.correction == "icepop":
        inside_N = (mismatch_N >= algo.correction_low) & (mismatch_N <= algo.correction_high)
        # Chosen, not multiplied by 0 or 1: k may have overflowed.
        return Correction(torch.where(inside_N, mismatch_N, 0.0), nowhere_N, ~inside_N)
    return Correction(torch.ones_like(mismatch_N), nowhere_N, nowhere_N)
