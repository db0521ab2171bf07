"""`CausalPolicy` in both packings against transformers alone, a row at a time."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, NemotronConfig, PreTrainedModel, StableLmConfig

from ring_ray.algo.packing import collate, pack
from ring_ray.config import ConfigError, ModelConfig
from ring_ray.engines.hf import CausalPolicy, ReferenceModel, rank_logprobs
from ring_ray.types import FloatArray, TokenBatch
from tests.unit.models import DENSE, FAMILIES, SIZES, VOCABULARY, make_model
from tests.unit.test_packing import make_batch, make_segment, make_sequence

TEMPERATURE, CAP = 0.8, 40
# Sums in another order; log-probs are about -3.
FP32_BOUND = 2e-5
PACKINGS = pytest.mark.parametrize("packing", ["varlen", "padded"])


@pytest.fixture(scope="module")
def batch() -> TokenBatch:
    rng = np.random.default_rng(0)
    segments = []
    for prompt, response in [(3, 9), (5, 24), (2, 1), (4, 14), (1, 6), (6, 11)]:
        start = response // 3
        segments.append(make_segment(make_sequence(rng, prompt, response, VOCABULARY), start, response))
    return make_batch(segments)


def step_gradients(model: PreTrainedModel, losses: list[Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    for loss in losses:
        loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def alone(
    model: PreTrainedModel, batch: TokenBatch, aim: Callable[[Tensor, Tensor], Tensor]
) -> tuple[list[Tensor], ...]:
    """Log-probs, and losses of log-probs and entropies, by transformers' own attention, a row at a time."""
    logprobs, losses = [], []
    for segment in batch.segments:
        prompt_ids, response_ids = segment.sequence.prompt_ids, segment.sequence.response_ids
        ids = torch.tensor(np.concatenate([prompt_ids, response_ids]), dtype=torch.int64)
        distributions_TV = (model(ids[None]).logits[0] / TEMPERATURE).log_softmax(-1)[len(prompt_ids) - 1 : -1]
        taken_N = distributions_TV.gather(-1, ids[len(prompt_ids) :, None]).squeeze(-1)[segment.start :]
        entropies_N = -(distributions_TV.exp() * distributions_TV).sum(-1)[segment.start :]
        logprobs.append(taken_N.detach())
        losses.append(aim(taken_N, entropies_N))
    return logprobs, losses


def aim(logprobs_N: Tensor, entropies_N: Tensor) -> Tensor:
    """Unlike a plain sum, another gradient for each token."""
    return (logprobs_N.square() + 0.3 * entropies_N).sum()


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@PACKINGS
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_and_gradients_are_those_of_single_rows(
    family: str, packing: str, checkpointing: bool, batch: TokenBatch
) -> None:
    plain = make_model(family)
    logprobs, losses = alone(plain, batch, aim)
    expected = step_gradients(plain, losses)

    model = make_model(family)
    policy = CausalPolicy(model, TEMPERATURE, packing=packing)
    assert policy.padded == (packing == "padded")
    if checkpointing:
        model.activation_checkpointing_enable()
        model.train()  # transformers keeps nothing only then
    (shares,) = pack(batch, 1, CAP, padded=policy.padded)
    assert len(shares) > 1
    losses = []
    for rows in shares:
        micro_batch = collate(batch, rows, [0.0] * 6, None, padded=policy.padded)
        outputs = policy(*micro_batch.inputs)
        torch.testing.assert_close(
            outputs.logprobs_N, torch.cat([logprobs[row] for row in rows]), atol=FP32_BOUND, rtol=0
        )
        losses.append(aim(outputs.logprobs_N, outputs.entropies_N))
    found = step_gradients(model, losses)
    assert found.keys() == expected.keys()
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(
            found[name], gradient, atol=FP32_BOUND * scale, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_router_sums_do_not_depend_on_the_packing(batch: TokenBatch) -> None:
    policy = CausalPolicy(make_model("qwen3_moe"), TEMPERATURE)
    padded, varlen = (
        policy(*collate(batch, (0, 1, 3), [0.0] * 6, None, padded=padded).inputs).router for padded in (True, False)
    )
    assert padded.choices_LE.sum() == 2 * 3 * sum(len(batch.segments[row]) for row in (0, 1, 3))
    for left, right in zip(padded, varlen, strict=True):
        torch.testing.assert_close(left, right)


@PACKINGS
def test_a_micro_batch_without_rows_has_no_tokens_and_zero_gradients(packing: str, batch: TokenBatch) -> None:
    model = make_model("llama")
    policy = CausalPolicy(model, TEMPERATURE, packing=packing)
    outputs = policy(*collate(batch, (), [0.0] * 6, None, padded=policy.padded).inputs)
    assert outputs.logprobs_N.shape == (0,)
    gradients = step_gradients(model, [outputs.logprobs_N.sum()])
    assert gradients
    assert not any(gradient.any() for gradient in gradients.values())


def test_varlen_on_a_model_that_cannot_is_refused_and_auto_pads() -> None:
    model = AutoModelForCausalLM.from_config(StableLmConfig(**SIZES)).eval()
    with pytest.raises(ConfigError, match=r"train\.packing='varlen'.*StableLmForCausalLM"):
        CausalPolicy(model, TEMPERATURE, packing="varlen")
    assert CausalPolicy(model, TEMPERATURE).padded


def test_rows_end_to_end_are_refused_where_they_would_see_each_other(batch: TokenBatch) -> None:
    policy = CausalPolicy(make_model("llama"), TEMPERATURE, packing="padded")
    with pytest.raises(ValueError, match="end to end"):
        policy(*collate(batch, (0, 1), [0.0] * 6, None, padded=False).inputs)


def test_a_model_that_does_not_tell_its_attention_where_rows_end_is_refused(batch: TokenBatch) -> None:
    """Its layers drop what they don't know, though it says that its attention can be replaced."""
    model = AutoModelForCausalLM.from_config(NemotronConfig(**SIZES)).eval()
    policy = CausalPolicy(model, TEMPERATURE)
    assert not policy.padded
    with pytest.raises(NotImplementedError, match=r"NemotronAttention needs train\.packing=padded: .* drop"):
        policy(*collate(batch, (0, 1), [0.0] * 6, None, padded=False).inputs)
    logprobs, _ = alone(model, batch, aim)
    found = policy(*collate(batch, (0, 1), [0.0] * 6, None).inputs).logprobs_N
    torch.testing.assert_close(found, torch.cat(logprobs[:2]), atol=FP32_BOUND, rtol=0)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("model")
    make_model("qwen3_moe").save_pretrained(path)
    return str(path)


def reference(path: str, packing: str) -> ReferenceModel:
    return ReferenceModel(
        path, ModelConfig(), temperature=TEMPERATURE, micro_batch_tokens=CAP, device="cpu", packing=packing
    )


@pytest.mark.parametrize("ranks", [1, 2, 4])
@PACKINGS
def test_reference_workers_share_a_batch(saved: str, batch: TokenBatch, packing: str, ranks: int) -> None:
    with torch.no_grad():
        expected, _ = alone(make_model("qwen3_moe"), batch, aim)
    model = reference(saved, packing)
    found: dict[int, FloatArray] = {}
    for rank in range(ranks):
        share = model.logprobs(batch, rank, ranks)
        assert not share.keys() & found.keys()
        found |= share
        model.offload()
    assert sorted(found) == list(range(len(expected)))
    for index, logprobs_N in enumerate(expected):
        np.testing.assert_allclose(found[index], logprobs_N.numpy(), atol=FP32_BOUND, rtol=0)


@PACKINGS
def test_rank_logprobs_are_by_segment(batch: TokenBatch, packing: str) -> None:
    policy = CausalPolicy(make_model("llama"), TEMPERATURE, packing=packing)
    found = rank_logprobs(policy, batch, ((4, 1), (2,)), torch.device("cpu"), padded=policy.padded)
    expected, _ = alone(make_model("llama"), batch, aim)
    assert sorted(found) == [1, 2, 4]
    for index, logprobs_N in found.items():
        np.testing.assert_allclose(logprobs_N, expected[index].numpy(), atol=FP32_BOUND, rtol=0)


def test_a_saved_model_says_nothing_of_our_attention(tmp_path: Path) -> None:
    for family in DENSE:
        policy = CausalPolicy(make_model(family), TEMPERATURE)
        policy.model.save_pretrained(tmp_path)
        assert "ring_ray" not in json.dumps(json.loads((tmp_path / "config.json").read_text()))
