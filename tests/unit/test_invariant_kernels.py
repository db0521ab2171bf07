"""The CPU kernels of ``rollout.deterministic``: what they calculate, and that a row's bits are its own."""

import pytest
import torch
import torch.nn.functional as F

from ring_ray.engines.vllm_cpu.kernels import (
    INVARIANT_ROWS,
    experts_forward,
    invariant_grouped_linear,
    invariant_linear,
)

ROWS, HIDDEN = 2 * INVARIANT_ROWS + 5, 128


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("inner", [8, 192, 259])  # a router's, an expert's, a vocabulary's
def test_linear(inner: int) -> None:
    x, weight, bias = torch.randn(ROWS, HIDDEN), torch.randn(inner, HIDDEN), torch.randn(inner)
    whole = invariant_linear(x, weight, bias)
    torch.testing.assert_close(whole, F.linear(x, weight, bias), atol=1e-4, rtol=1e-5)
    for count in (1, 2, 3, 8, INVARIANT_ROWS, INVARIANT_ROWS + 1):
        some = torch.randperm(ROWS)[:count]
        assert torch.equal(invariant_linear(x[some], weight, bias), whole[some])
    assert invariant_linear(x[:0], weight, bias).shape == (0, inner)


def test_experts() -> None:
    experts, inner = 6, 96
    x, w13, w2 = (
        torch.randn(ROWS, HIDDEN),
        torch.randn(experts, 2 * inner, HIDDEN) * HIDDEN**-0.5,
        torch.randn(experts, HIDDEN, inner) * inner**-0.5,
    )
    ids, weights = torch.rand(ROWS, experts).topk(2).indices, torch.rand(ROWS, 2)
    whole = experts_forward(x, w13, w2, weights, ids, invariant_grouped_linear)
    torch.testing.assert_close(whole, experts_forward(x, w13, w2, weights, ids), atol=1e-5, rtol=1e-5)
    for count in (1, 2, 3, 8, 40):
        some = torch.randperm(ROWS)[:count]
        assert torch.equal(
            experts_forward(x[some], w13, w2, weights[some], ids[some], invariant_grouped_linear), whole[some]
        )
