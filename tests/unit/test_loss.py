"""The loss of a step and its gradients, against the formulas written out token by token in float64."""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

from ring_ray.algo.loss import StepSums, accumulate, k3, policy_loss, update_metrics
from ring_ray.algo.objectives import LossInputs
from ring_ray.algo.packing import Rows, collate, pack, token_weights
from ring_ray.config import AlgoConfig
from ring_ray.engines.hf import CausalPolicy
from ring_ray.types import FloatArray, TokenBatch, UpdateMetrics
from tests.unit.test_packing import make_batch, make_segment, make_sequence

TEMPERATURE, TOP_K = 0.8, 2
# Large enough for each term to show in the gradient: the defaults would hide an error in B or Z.
ALGO = AlgoConfig(kl_coefficient=0.1, entropy_coefficient=0.2, balance_coefficient=0.3, z_coefficient=0.05)
PLAIN = AlgoConfig(entropy_coefficient=0.0, balance_coefficient=0.0, z_coefficient=0.0)
# Norms and routers of transformers' models compute in fp32 whatever the dtype of the model.
FP32_INSIDE = 2e-6


@pytest.fixture(scope="module")
def model() -> Iterator[PreTrainedModel]:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=TOP_K,
        initializer_range=0.3,
    )
    model = Qwen3MoeForCausalLM(config).double().eval()
    model.set_experts_implementation("eager")
    return model


@pytest.fixture
def batch() -> TokenBatch:
    rng = np.random.default_rng(1)
    segments = []
    for prompt, response in [(3, 9), (5, 4), (2, 12), (4, 7), (3, 1)]:
        sequence = make_sequence(rng, prompt, response)
        segments.append(make_segment(sequence, response // 3, response, float(rng.normal())))
    return make_batch(segments, token_budget=40)


def references(batch: TokenBatch) -> tuple[FloatArray, ...]:
    return tuple(s.sequence.logprobs[s.start : s.stop] + np.float32(0.3) for s in batch.segments)


def step(
    model: PreTrainedModel, batch: TokenBatch, algo: AlgoConfig, micro_batches: tuple[Rows, ...] | None = None
) -> tuple[dict[str, Tensor], StepSums]:
    """Gradients of one step on one rank, and its sums."""
    model.zero_grad()
    weights = token_weights(batch, algo.aggregation)
    rows = pack(batch, 1, 40)[0] if micro_batches is None else micro_batches
    sums = accumulate(
        CausalPolicy(model, TEMPERATURE),
        [collate(batch, each, weights, references(batch), torch.float64) for each in rows],
        algo,
        trained_tokens=batch.trained_tokens,
        backward=Tensor.backward,
        sum_over_ranks=lambda values: values,
    )
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, sums


def metrics(sums: StepSums, batch: TokenBatch, algo: AlgoConfig) -> UpdateMetrics:
    return update_metrics(
        sums, algo, trained_tokens=batch.trained_tokens, grad_norm=0.0, learning_rate=0.0, micro_batches=1
    )


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    scale = max(gradient.abs().max().item() for gradient in right.values())
    assert scale > 1e-3
    for name, gradient in left.items():
        torch.testing.assert_close(gradient, right[name], atol=FP32_INSIDE * scale, rtol=0, msg=lambda m, n=name: n + m)


def plain_loss(model: PreTrainedModel, batch: TokenBatch, algo: AlgoConfig) -> Tensor:
    """The formulas of algo/loss.py, one response and one token at a time: no padding, no packing, no chunks."""
    m = batch.trained_tokens
    loss = torch.zeros((), dtype=torch.float64)
    routers: list[list[Tensor]] = [[], []]
    for segment, reference in zip(batch.segments, references(batch), strict=True):
        prompt, response = segment.sequence.prompt_ids, segment.sequence.response_ids
        ids = torch.tensor(np.concatenate([prompt, response]), dtype=torch.int64)
        outputs = model(ids[None], output_router_logits=True, use_cache=False)
        for t in range(segment.start, segment.stop):
            position = len(prompt) + t - 1
            log_policy = torch.log_softmax(outputs.logits[0, position] / TEMPERATURE, -1)
            new = log_policy[response[t]]
            ratio = torch.exp(new - float(segment.sequence.logprobs[t]))
            clipped = min(max(ratio, torch.tensor(1 - algo.clip_range)), torch.tensor(1 + algo.clip_range))
            surrogate = min(ratio * segment.advantage, clipped * segment.advantage)
            log_gap = float(reference[t - segment.start]) - new
            kl = torch.exp(log_gap) - log_gap - 1
            entropy = -sum(p * p.log() for p in log_policy.exp())
            loss = loss - (surrogate - algo.kl_coefficient * kl) / batch.token_budget
            loss = loss - algo.entropy_coefficient * entropy / m
            for layer, logits in enumerate(outputs.router_logits):
                routers[layer].append(logits[position].double())
    for layer in routers:
        experts = len(layer[0])
        probability = sum(torch.softmax(logits, -1) for logits in layer) / m
        share = torch.zeros(experts, dtype=torch.float64)
        for logits in layer:
            share[logits.topk(TOP_K).indices] += 1 / (TOP_K * m)
        loss = loss + algo.balance_coefficient * experts * (probability * share).sum() / len(routers)
        z = sum(torch.logsumexp(logits, -1) ** 2 for logits in layer) / m
        loss = loss + algo.z_coefficient * z / len(routers)
    return loss


def test_loss_and_gradients_equal_the_formulas(model: PreTrainedModel, batch: TokenBatch) -> None:
    gradients, sums = step(model, batch, ALGO)
    model.zero_grad()
    loss = plain_loss(model, batch, ALGO)
    loss.backward()
    assert_same(gradients, {name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert metrics(sums, batch, ALGO).loss == pytest.approx(loss.item(), abs=1e-6)
    assert 0 < metrics(sums, batch, ALGO).clip_fraction < 1


@pytest.mark.parametrize("aggregation", ["budget", "token", "response"])
@pytest.mark.parametrize("cut", [1, 5, 11])
def test_a_cut_response_has_the_gradient_of_the_whole_one(
    model: PreTrainedModel, batch: TokenBatch, cut: int, aggregation: str
) -> None:
    algo = replace(ALGO, aggregation=aggregation)
    whole = make_segment(batch.segments[2].sequence, 0, 12, 0.7)
    head, tail = replace(whole, stop=cut), replace(whole, start=cut)
    rest = list(batch.segments[:2])
    expected, expected_sums = step(model, make_batch([*rest, whole], 40), algo)
    cut_batch = make_batch([head, *rest, tail], 40)
    gradients, sums = step(model, cut_batch, algo)
    assert_same(gradients, expected)
    left, right = metrics(sums, cut_batch, algo), metrics(expected_sums, cut_batch, algo)
    assert left.balance_loss == pytest.approx(right.balance_loss, abs=1e-6)
    assert left.loss == pytest.approx(right.loss, abs=1e-6)


@pytest.mark.parametrize(
    "micro_batches", [((0, 1, 2, 3, 4),), ((4,), (2,), (0,), (3,), (1,)), ((3, 0), (), (1, 4, 2), ())]
)
@pytest.mark.parametrize(
    "algo",
    [
        ALGO,
        replace(ALGO, objective="gspo"),
        replace(ALGO, objective="cispo"),
        replace(ALGO, behaviour="recomputed", correction="icepop"),
    ],
    ids=["clip", "gspo", "cispo", "icepop"],
)
def test_any_packing_has_the_same_gradient(
    model: PreTrainedModel, batch: TokenBatch, algo: AlgoConfig, micro_batches: tuple[Rows, ...]
) -> None:
    expected, expected_sums = step(model, batch, algo)
    gradients, sums = step(model, batch, algo, micro_batches)
    assert_same(gradients, expected)
    assert metrics(sums, batch, algo).loss == pytest.approx(metrics(expected_sums, batch, algo).loss, abs=1e-6)
    assert sums.ratio_max.item() == pytest.approx(expected_sums.ratio_max.item(), abs=1e-5)


def test_the_scale_is_one_over_the_budget_whatever_the_number_of_responses(
    model: PreTrainedModel, batch: TokenBatch
) -> None:
    two = make_batch(list(batch.segments[:2]), 40)
    expected, _ = step(model, two, PLAIN)
    # Responses that pull nowhere leave the gradient as it is: a mean over tokens or responses would shrink it.
    idle = [replace(segment, advantage=0.0) for segment in batch.segments[2:]]
    assert_same(step(model, make_batch([*two.segments, *idle], 40), PLAIN)[0], expected)
    halved, _ = step(model, replace(two, token_budget=80), PLAIN)
    assert_same({name: 2 * gradient for name, gradient in halved.items()}, expected)


def test_balance_is_a_metric_even_where_it_is_no_term(model: PreTrainedModel, batch: TokenBatch) -> None:
    with_term, without = step(model, batch, ALGO)[1], step(model, batch, replace(ALGO, balance_coefficient=0.0))[1]
    assert metrics(with_term, batch, ALGO).balance_loss > 1
    assert metrics(without, batch, ALGO).balance_loss == metrics(with_term, batch, ALGO).balance_loss


@pytest.mark.parametrize(("balance_coefficient", "forward_passes"), [(0.0, 3), (0.1, 5)])
def test_the_micro_batch_counted_last_is_not_run_twice(
    model: PreTrainedModel, batch: TokenBatch, balance_coefficient: float, forward_passes: int
) -> None:
    calls: list[bool] = []
    handle = model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    step(model, batch, replace(ALGO, balance_coefficient=balance_coefficient), ((0, 1), (2,), (3, 4)))
    handle.remove()
    assert len(calls) == forward_passes
    assert sum(calls) == 3


def test_a_dense_model_has_no_router_terms(batch: TokenBatch) -> None:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )
    dense = Qwen3ForCausalLM(config).double().eval()
    gradients, sums = step(dense, batch, ALGO)
    without, _ = step(dense, batch, replace(ALGO, balance_coefficient=0.0, z_coefficient=0.0))
    assert_same(gradients, without)
    assert metrics(sums, batch, ALGO).balance_loss == metrics(sums, batch, ALGO).z_loss == 0


def flat(
    new: list[float], old: list[float], advantage: list[float], reference: list[float] | None = None
) -> LossInputs:
    def tensor(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    return LossInputs(
        logprobs_N=tensor(new).requires_grad_(),
        entropies_N=tensor([0.5] * len(new)),
        behaviour_logprobs_N=tensor(old),
        advantages_N=tensor(advantage),
        weights_N=tensor([0.01] * len(new)),
        rows_N=torch.zeros(len(new), dtype=torch.int64),
        reference_logprobs_N=None if reference is None else tensor(reference),
    )


def test_clipping_stops_the_gradient_only_where_it_would_go_further() -> None:
    # Ratios 1.5 and 0.5, advantages of both signs: the surrogate is pessimistic, so two of the four are clipped.
    up, down = math.log(1.5), math.log(0.5)
    inputs = flat([up, up, down, down], [0.0] * 4, [2.0, -2.0, 2.0, -2.0])
    outputs = policy_loss(inputs, PLAIN, trained_tokens=4)
    assert outputs.loss.item() == pytest.approx(-0.01 * (1.2 * 2 - 1.5 * 2 + 0.5 * 2 - 0.8 * 2))
    outputs.loss.backward()
    assert inputs.logprobs_N.grad is not None
    assert inputs.logprobs_N.grad.tolist() == pytest.approx([0, 0.03, -0.01, 0])
    assert outputs.sums["clipped"] == 2
    assert outputs.ratio_max.item() == pytest.approx(1.5)


def test_a_clamped_ratio_that_changes_nothing_is_not_counted_as_clipped() -> None:
    outputs = policy_loss(flat([math.log(1.5), 0.0], [0.0, 0.0], [0.0, 1.0]), PLAIN, trained_tokens=2)
    assert outputs.sums["clipped"] == 0


def test_k3_is_unbiased_and_never_negative() -> None:
    policy = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    other = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    estimates = k3(policy.log(), other.log())
    assert (estimates >= 0).all()
    expected = sum(p * math.log(p / q) for p, q in zip(policy.tolist(), other.tolist(), strict=True))
    assert (policy * estimates).sum().item() == pytest.approx(expected)


def test_behaviour_kl_estimates_the_divergence_from_the_sampling_policy() -> None:
    outputs = policy_loss(flat([-1.0, -2.0], [-1.5, -1.8], [1.0, 1.0]), PLAIN, trained_tokens=2)
    expected = (math.exp(0.5) - 0.5 - 1) + (math.exp(-0.2) + 0.2 - 1)
    assert outputs.sums["behaviour_kl"].item() == pytest.approx(expected)


def test_likelihood_is_the_weighted_negative_log_likelihood_and_nothing_else() -> None:
    algo = replace(ALGO, objective="likelihood")
    outputs = policy_loss(flat([-1.0, -3.0], [-9.0, 5.0], [7.0, -7.0], [1.0, 1.0]), algo, trained_tokens=2)
    assert outputs.loss.item() == pytest.approx(0.04)
    assert {name: float(value) for name, value in outputs.sums.items()} == pytest.approx(
        {"loss": 0.04, "entropy": 1.0} | dict.fromkeys(("kl", "behaviour_kl", "clipped", "truncated", "masked"), 0.0)
    )


def test_kl_without_reference_logprobs_is_refused() -> None:
    with pytest.raises(ValueError, match="reference"):
        policy_loss(flat([-1.0], [-1.0], [1.0]), ALGO, trained_tokens=1)
