"""Load balance and z-loss: their scale, and that they add up over micro-batches."""

import math

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from ring_ray.algo.moe import RouterSums, balance_loss, z_loss


def router_logits(layers: int = 2, tokens: int = 12, experts: int = 6) -> Tensor:
    return torch.randn(layers, tokens, experts, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_balance_is_one_when_even_and_the_number_of_experts_when_collapsed() -> None:
    experts = 6
    even = RouterSums.of(20 * torch.eye(experts, dtype=torch.float64)[None], top_k=1)
    assert balance_loss(even.probabilities_LE, even.choices_LE, experts).item() == pytest.approx(1)
    collapsed = RouterSums.of(50 * torch.eye(experts, dtype=torch.float64)[:1].expand(1, 9, experts), top_k=1)
    assert balance_loss(collapsed.probabilities_LE, collapsed.choices_LE, 9).item() == pytest.approx(experts)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_balance_equals_transformers_up_to_its_factor_top_k(top_k: int) -> None:
    logits_LNE = router_logits(layers=1)
    sums = RouterSums.of(logits_LNE, top_k)
    theirs = load_balancing_loss_func((logits_LNE[0],), num_experts=6, top_k=top_k)
    ours = balance_loss(sums.probabilities_LE, sums.choices_LE, positions=12)
    assert isinstance(theirs, Tensor)
    assert top_k * ours.item() == pytest.approx(theirs.item(), rel=1e-6)


def test_balance_and_z_equal_their_definitions() -> None:
    logits_LNE, top_k = router_logits(), 2
    layers, tokens, experts = logits_LNE.shape
    balance = z = 0.0
    for layer in logits_LNE.tolist():
        share, probability = [0.0] * experts, [0.0] * experts
        for logits in layer:
            total = sum(math.exp(logit) for logit in logits)
            z += math.log(total) ** 2 / tokens / layers
            chosen = sorted(range(experts), key=lambda e: -logits[e])[:top_k]
            for expert in range(experts):
                probability[expert] += math.exp(logits[expert]) / total / tokens
                share[expert] += (expert in chosen) / (top_k * tokens)
        balance += experts * sum(p * f for p, f in zip(probability, share, strict=True)) / layers
    sums = RouterSums.of(logits_LNE, top_k)
    assert balance_loss(sums.probabilities_LE, sums.choices_LE, tokens).item() == pytest.approx(balance, rel=1e-12)
    assert z_loss(sums.squared_logsumexp_L, tokens).item() == pytest.approx(z, rel=1e-12)


def test_terms_of_micro_batches_add_up() -> None:
    logits_LNE, top_k = router_logits(), 2
    whole = RouterSums.of(logits_LNE, top_k)
    parts = [RouterSums.of(part_LNE, top_k) for part_LNE in logits_LNE.split([0, 5, 7], dim=1)]
    balance = sum(balance_loss(part.probabilities_LE, whole.choices_LE, 12) for part in parts)
    assert float(balance) == pytest.approx(balance_loss(whole.probabilities_LE, whole.choices_LE, 12).item(), rel=1e-12)
    z = sum(z_loss(part.squared_logsumexp_L, 12) for part in parts)
    assert float(z) == pytest.approx(z_loss(whole.squared_logsumexp_L, 12).item(), rel=1e-12)


def test_choices_carry_no_gradient_and_half_precision_is_widened() -> None:
    sums = RouterSums.of(router_logits().bfloat16().requires_grad_(), top_k=2)
    assert sums.probabilities_LE.dtype == torch.float32
    assert sums.probabilities_LE.requires_grad
    assert not sums.choices_LE.requires_grad
