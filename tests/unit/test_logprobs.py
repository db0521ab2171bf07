"""Log-probs and entropies against float64 definitions written out."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ring_ray.algo.logprobs import token_logprobs


def example(tokens: int = 7, vocabulary: int = 11) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits_NV = 3 * torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64)
    return logits_NV, torch.randint(0, vocabulary, (tokens,), generator=generator)


@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_values_equal_the_definitions(chunk_tokens: int, temperature: float) -> None:
    logits_NV, target_ids_N = example()
    logprobs_N, entropies_N = token_logprobs(logits_NV, target_ids_N, temperature, chunk_tokens)
    for token, logits in enumerate(logits_NV.tolist()):
        weights = [math.exp(logit / temperature) for logit in logits]
        probabilities = [weight / sum(weights) for weight in weights]
        assert logprobs_N[token].item() == pytest.approx(math.log(probabilities[target_ids_N[token]]), rel=1e-12)
        assert entropies_N[token].item() == pytest.approx(-sum(p * math.log(p) for p in probabilities), rel=1e-12)


def test_gradients_equal_finite_differences() -> None:
    logits_NV, target_ids_N = example()

    def outputs(logits: Tensor) -> tuple[Tensor, Tensor]:
        return token_logprobs(logits, target_ids_N, 0.7, chunk_tokens=3)

    assert torch.autograd.gradcheck(outputs, logits_NV.requires_grad_())


def test_a_peaked_distribution_has_finite_gradients() -> None:
    logits_NV = torch.tensor([[0.0, 500.0, -500.0]], requires_grad=True)
    logprobs_N, entropies_N = token_logprobs(logits_NV, torch.tensor([1]), 1.0)
    (logprobs_N.sum() + entropies_N.sum()).backward()
    assert entropies_N.item() == 0
    assert logits_NV.grad is not None
    assert logits_NV.grad.isfinite().all()


def test_half_precision_logits_are_computed_in_fp32_without_holding_a_copy() -> None:
    logits_NV, target_ids_N = example(tokens=64)
    half_NV = logits_NV.bfloat16().requires_grad_()
    held: list[Tensor] = []

    def hold(tensor: Tensor) -> Tensor:
        held.append(tensor)
        return tensor

    def give(tensor: Any) -> Any:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, give):
        logprobs_N, entropies_N = token_logprobs(half_NV, target_ids_N, 1.0, chunk_tokens=8)
    expected_N, _ = token_logprobs(half_NV.detach().double(), target_ids_N, 1.0)
    torch.testing.assert_close(logprobs_N.double(), expected_N, atol=1e-6, rtol=0)
    assert not [tensor for tensor in held if tensor.dim() == 2 and tensor.dtype == torch.float32]
    (logprobs_N + entropies_N).sum().backward()
    assert half_NV.grad is not None


def test_no_tokens_give_empty_outputs_with_a_graph() -> None:
    logits_NV = torch.zeros(0, 5, requires_grad=True)
    logprobs_N, entropies_N = token_logprobs(logits_NV, torch.zeros(0, dtype=torch.int64), 1.0)
    (logprobs_N.sum() + entropies_N.sum()).backward()
    assert logprobs_N.shape == entropies_N.shape == (0,)
    assert logits_NV.grad is not None
