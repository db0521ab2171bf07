"""The CPU kernels against loops in float64. The paged attention and the norm are tested with the engine."""

import math

import numpy as np
import pytest
import torch

from ring_ray.engines.vllm_cpu import register
from ring_ray.engines.vllm_cpu.kernels import (
    compute_slot_mapping,
    experts_forward,
    random_sample,
    rotary_embedding,
    silu_and_mul,
    topk_softmax,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def test_platform_is_offered_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RING_RAY_VLLM_CPU", raising=False)
    assert register() is None
    monkeypatch.setenv("RING_RAY_VLLM_CPU", "1")
    assert register() == "ring_ray.engines.vllm_cpu.platform.TorchCpuPlatform"


def test_silu_and_mul() -> None:
    gate_up, out = torch.randn(5, 12), torch.empty(5, 6)
    silu_and_mul(out, gate_up)
    expected = gate_up.double().numpy()
    np.testing.assert_allclose(out, silu(expected[:, :6]) * expected[:, 6:], atol=1e-6)


@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("rotated", [8, 4])
def test_rotary_embedding(is_neox: bool, rotated: int) -> None:
    heads, size = 3, 8
    positions = torch.tensor([0, 7, 2, 7])
    angles = torch.outer(torch.arange(10.0), 100.0 ** -torch.linspace(0, 1, rotated // 2))
    query, key = torch.randn(4, heads * size), torch.randn(4, size)
    before = query.double().view(4, heads, size).numpy(), key.double().view(4, 1, size).numpy()
    rotary_embedding(positions, query, key, size, torch.cat((angles.cos(), angles.sin()), dim=-1), is_neox)
    for x, actual in zip(before, (query.view(4, heads, size), key.view(4, 1, size)), strict=True):
        expected = x.copy()
        for token, position in enumerate(positions.tolist()):
            for i in range(rotated // 2):
                a, b = (i, i + rotated // 2) if is_neox else (2 * i, 2 * i + 1)
                cos, sin = math.cos(angles[position, i]), math.sin(angles[position, i])
                expected[token, :, a] = x[token, :, a] * cos - x[token, :, b] * sin
                expected[token, :, b] = x[token, :, b] * cos + x[token, :, a] * sin
        np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_compute_slot_mapping() -> None:
    block_table = torch.tensor([[5, 3, 0], [7, 0, 0], [1, 2, 9]], dtype=torch.int32)
    new_positions = [[15, 16, 17], [0], [46, 47]]
    starts = torch.tensor([0, 3, 4, 6], dtype=torch.int32)
    positions = torch.tensor([p for request in new_positions for p in request] + [99, 99])
    slots = torch.full((8,), -1)
    compute_slot_mapping(starts, positions, block_table, slots, 16)
    expected = [
        int(block_table[request, p // 16]) * 16 + p % 16 for request, ps in enumerate(new_positions) for p in ps
    ]
    assert slots.tolist() == [*expected, -1, -1]


@pytest.mark.parametrize("renormalize", [True, False])
def test_topk_softmax(renormalize: bool) -> None:
    logits = torch.randn(6, 5)
    weights, ids = torch.empty(6, 2), torch.empty(6, 2, dtype=torch.int32)
    topk_softmax(weights, ids, torch.empty(0), logits, renormalize)
    for token in range(6):
        exponentials = [math.exp(x) for x in logits[token].tolist()]
        best = sorted(range(5), key=lambda expert: -exponentials[expert])[:2]
        total = sum(exponentials[expert] for expert in best) if renormalize else sum(exponentials)
        assert ids[token].tolist() == best
        np.testing.assert_allclose(weights[token], [exponentials[expert] / total for expert in best], rtol=1e-5)


def test_random_sample_draws_from_the_softmax() -> None:
    draws, masked = 40_000, [0, 5, 6, 11]  # as top-p leaves them: at both ends, and two in a row
    logits_V = torch.randn(12) * 2
    logits_V[masked] = -torch.inf
    drawn = random_sample(logits_V.expand(draws, -1), torch.rand(draws, dtype=torch.float64))
    exponentials = [math.exp(x) for x in logits_V.tolist()]
    for token, exponential in enumerate(exponentials):
        share = exponential / sum(exponentials)
        five_sigma = 5 * math.sqrt(share * (1 - share) / draws)
        assert abs(drawn.eq(token).double().mean().item() - share) <= five_sigma


@pytest.mark.parametrize("experts_used", [6, 1])  # with 1, five experts get no token
def test_experts_forward(experts_used: int) -> None:
    tokens, hidden, experts, inner = 7, 8, 6, 12
    x, w13, w2 = (
        torch.randn(tokens, hidden),
        torch.randn(experts, 2 * inner, hidden),
        torch.randn(experts, hidden, inner),
    )
    ids, weights = torch.randint(experts_used, (tokens, 2), dtype=torch.int32), torch.rand(tokens, 2)
    expected = np.zeros((tokens, hidden))
    for token in range(tokens):
        for expert, weight in zip(ids[token].tolist(), weights[token].tolist(), strict=True):
            gate_up = w13[expert].double().numpy() @ x[token].double().numpy()
            expected[token] += weight * (w2[expert].double().numpy() @ (silu(gate_up[:inner]) * gate_up[inner:]))
    np.testing.assert_allclose(experts_forward(x, w13, w2, weights, ids), expected, atol=1e-5)
