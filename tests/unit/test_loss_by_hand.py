"""Each objective and correction on a few tokens, against numbers worked out by hand."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ring_ray.algo.loss import policy_loss
from ring_ray.algo.objectives import LossInputs
from ring_ray.algo.packing import token_weights
from ring_ray.config import AlgoConfig
from tests.unit.test_loss_variants import CORRECTIONS, SHIPPED
from tests.unit.test_packing import make_batch, make_segment, make_sequence


def by_hand(ratios: list[float], advantages: list[float], rows: list[int]) -> LossInputs:
    """Tokens whose π_train / π_rollout are ``ratios``, of weight 1, for hand-made expectations."""
    old_N = torch.full((len(ratios),), -2.0, dtype=torch.float64)
    return LossInputs(
        logprobs_N=(old_N + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_(),
        entropies_N=torch.zeros_like(old_N),
        behaviour_logprobs_N=old_N,
        advantages_N=torch.tensor(advantages, dtype=torch.float64),
        weights_N=torch.ones_like(old_N),
        rows_N=torch.tensor(rows),
    )


def gradient(inputs: LossInputs, algo: AlgoConfig) -> list[float]:
    policy_loss(inputs, algo, len(inputs.rows_N)).loss.backward()
    assert inputs.logprobs_N.grad is not None
    values: list[float] = inputs.logprobs_N.grad.tolist()
    return values


def test_dapo_lets_a_token_rise_further_than_it_lets_it_fall() -> None:
    ratios, advantages = [1.27, 1.29, 0.79, 0.81], [1.0, 1.0, -1.0, -1.0]
    assert gradient(by_hand(ratios, advantages, [0, 1, 2, 3]), SHIPPED["dapo"]) == pytest.approx([-1.27, 0, 0, 0.81])


def test_gspo_clips_a_response_as_a_whole() -> None:
    # Far from 1 token by token, but the geometric mean of row 0 is 1; that of row 1 is not.
    inputs = by_hand([4.0, 0.25, 1.1, 1.0], [1.0] * 4, [0, 0, 1, 1])
    assert gradient(inputs, SHIPPED["gspo"]) == pytest.approx([-1, -1, 0, 0])


def test_cispo_keeps_the_gradient_of_a_clipped_token_at_the_bound() -> None:
    inputs = by_hand([9.0, 9.0, 0.01, 1.0], [1.0, -1.0, 1.0, 2.0], [0, 1, 2, 3])
    assert gradient(inputs, SHIPPED["cispo"]) == pytest.approx([-5, 5, -0.01, -2])
    assert policy_loss(inputs, SHIPPED["cispo"], 4).sums["clipped"] == 2
    bounded_below = replace(SHIPPED["cispo"], clip_range=0.2)
    assert gradient(by_hand([0.01], [1.0], [0]), bounded_below) == pytest.approx([-0.8])


@pytest.mark.parametrize("name", SHIPPED)
def test_a_mismatch_outside_the_band_is_masked_and_counted(name: str) -> None:
    algo = replace(SHIPPED[name], entropy_coefficient=0.0, **CORRECTIONS["icepop"])
    inputs = by_hand([0.59, 0.61, 1.0, 1.49, 1.51], [1.0] * 5, [0] * 5)
    assert gradient(inputs, algo) == pytest.approx([0, -0.61, -1, -1.49, 0])
    assert policy_loss(inputs, algo, 5).sums["masked"] == 2


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize(("correction", "weight"), [("icepop", 0.0), ("truncated", 1.5)])
def test_a_mismatch_that_overflows_stays_finite(name: str, correction: str, weight: float) -> None:
    algo = replace(SHIPPED[name], kl_coefficient=0.0, **CORRECTIONS[correction])
    inputs = by_hand([1.0, 1.0], [1.0, 1.0], [0, 0])
    inputs = replace(inputs, behaviour_logprobs_N=torch.tensor([-2.0, -1000.0], dtype=torch.float64))
    assert gradient(inputs, algo) == pytest.approx([-1, -weight])
    outputs = policy_loss(inputs, algo, 2)
    assert outputs.loss.isfinite()
    assert outputs.sums["masked"] + outputs.sums["truncated"] == 1


def test_the_correction_leaves_kl_and_entropy_alone() -> None:
    masked = replace(SHIPPED["c3po"], kl_coefficient=0.1, entropy_coefficient=0.2, **CORRECTIONS["icepop"])
    inputs = by_hand([10.0], [3.0], [0])
    inputs = replace(inputs, reference_logprobs_N=inputs.logprobs_N.detach() - 1, entropies_N=torch.tensor([0.5]))
    assert policy_loss(inputs, masked, 1).loss.item() == pytest.approx(0.1 * (math.exp(-1) + 1 - 1) - 0.2 * 0.5)


def test_a_weight_by_token_counts_what_is_trained_not_the_budget() -> None:
    rng = np.random.default_rng(0)
    cut = make_segment(make_sequence(rng, 2, 10), 4, 9)
    batch = make_batch([cut, make_segment(make_sequence(rng, 2, 3), 0, 3)], token_budget=100)
    assert token_weights(batch, "token") == [1 / 8, 1 / 8]
