"""DeepSpeed for real, on the CPU: it trains as plain torch does, however a model is sharded and kept on the host."""

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ring_ray.algo.loss import accumulate
from ring_ray.algo.packing import collate, pack, token_weights
from ring_ray.config import AlgoConfig, ModelConfig
from ring_ray.engines.hf import CausalPolicy, load_model
from ring_ray.types import FloatArray, TokenBatch
from tests.integration.training import (
    ALGO,
    LEARNING_RATE,
    MAX_GRAD_NORM,
    MICRO_BATCH_TOKENS,
    STEPS,
    TEMPERATURE,
    VARIANTS,
    batches,
    make_engine,
    references,
    run_ranks,
)
from tests.unit.test_packing import make_batch, make_segment, make_sequence

# Sums over ranks and micro-batches come in another order, and Adam divides by small gradients. Five steps move a
# parameter by up to 4.5e-3; 3e-7 was the largest difference found, and 2e-7 that of a gradient's norm.
FP32_BOUND, FP32_NORM_BOUND = 1e-6, 1e-6
ALONE = {"no ZeRO": {"zero_stage": 0}, "no ZeRO, checkpointed": {"zero_stage": 0, "activation_checkpointing": True}}
CASES = [(1, name) for name in ALONE | VARIANTS] + [(2, name) for name in VARIANTS]


def demonstrations() -> TokenBatch:
    """One token over and over, so that a few steps are enough to learn it."""
    rng = np.random.default_rng(0)
    sequences = [make_sequence(rng, 4, 10, 256) for _ in range(8)]
    for sequence in sequences:
        sequence.response_ids[:] = 65
    return make_batch([make_segment(sequence, 0, 10) for sequence in sequences])


def train(path: str, directory: str, rank: int, ranks: int, port: int) -> dict[str, Any]:
    """One rank: an engine for each variant after the other, then the cold start and an update in bfloat16."""
    found: dict[str, Any] = {}
    for name, variant in (ALONE | VARIANTS if ranks == 1 else VARIANTS).items():
        engine = make_engine(path, rank, ranks, port, **variant)
        logprobs = [engine.logprobs(batch) for batch in batches()]
        metrics = [engine.update(batch, references(batch)) for batch in batches()]
        saved = f"{directory}/{ranks} {name}"
        engine.save(saved)
        engine.close()
        engine.close()
        found[name] = {"metrics": metrics, "logprobs": logprobs, "saved": saved}
    engine = make_engine(path, rank, ranks, port, algo=AlgoConfig(objective="likelihood"))
    found["losses"] = [engine.update(demonstrations(), None).loss for _ in range(6)]
    engine.close()
    engine = make_engine(path, rank, ranks, port, zero_stage=3, dtype="bfloat16")
    found["bfloat16"] = engine.update(batches()[0], references(batches()[0]))
    engine.close()
    return found


@pytest.fixture(scope="module")
def results(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    directory = str(tmp_path_factory.mktemp("runs"))
    return run_ranks(train, directory, tiny, directory)


@pytest.fixture(scope="module")
def plain(tiny: str) -> tuple[dict[str, FloatArray], list[float]]:
    """The same steps without DeepSpeed, each in one padded micro-batch: parameters by name, gradient norms."""
    policy = CausalPolicy(load_model(tiny, ModelConfig()), TEMPERATURE, packing="padded")
    optimizer = torch.optim.AdamW(policy.parameters(), weight_decay=0.0)
    norms = []
    for step, batch in enumerate(batches()):
        rows = tuple(range(len(batch.segments)))
        accumulate(
            policy,
            [collate(batch, rows, token_weights(batch, ALGO.aggregation), references(batch))],
            ALGO,
            trained_tokens=batch.trained_tokens,
            backward=torch.Tensor.backward,
            sum_over_ranks=lambda values: values,
        )
        norms.append(float(torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)))
        optimizer.param_groups[0]["lr"] = LEARNING_RATE / 2 if step == 0 else LEARNING_RATE
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().numpy() for name, p in policy.model.named_parameters()}, norms


@pytest.mark.parametrize("padded", [False, True])
def test_the_steps_are_as_hard_to_share_as_they_should_be(padded: bool) -> None:
    """What the comparison with plain torch rests on."""
    for batch in batches():
        assert batch.segments[-1].stop < len(batch.segments[-1].sequence)
        first, second = pack(batch, 2, MICRO_BATCH_TOKENS, padded=padded)
        assert sum(map(len, first)) != sum(map(len, second))
    assert any(batch.segments[0].start > 0 for batch in batches())
    assert len(batches()) == STEPS


@pytest.mark.parametrize(("ranks", "name"), CASES)
def test_every_variant_and_number_of_ranks_trains_like_plain_torch(
    results: dict[int, list[Any]], plain: tuple[dict[str, FloatArray], list[float]], ranks: int, name: str
) -> None:
    expected, norms = plain
    found = results[ranks][0][name]
    trained = AutoModelForCausalLM.from_pretrained(found["saved"], dtype=torch.float32)
    for parameter_name, parameter in trained.named_parameters():
        np.testing.assert_allclose(
            parameter.detach().numpy(), expected[parameter_name], atol=FP32_BOUND, rtol=0, err_msg=parameter_name
        )
    assert [metrics.grad_norm for metrics in found["metrics"]] == pytest.approx(norms, rel=FP32_NORM_BOUND)
    assert min(norms) > MAX_GRAD_NORM
    assert [metrics.learning_rate for metrics in found["metrics"]] == [LEARNING_RATE / 2] + [LEARNING_RATE] * 4


def test_every_rank_returns_the_same_metrics(results: dict[int, list[Any]]) -> None:
    first, second = results[2]
    for name in VARIANTS:
        assert first[name]["metrics"] == second[name]["metrics"]


def test_metrics_do_not_depend_on_the_number_of_ranks(results: dict[int, list[Any]]) -> None:
    one, two = (results[ranks][0]["ZeRO-2"]["metrics"] for ranks in (1, 2))
    for left, right in zip(one, two, strict=True):
        assert asdict(left) | {"micro_batches": 0} == pytest.approx(asdict(right) | {"micro_batches": 0}, rel=1e-4)
        assert left.balance_loss > 1
        assert left.kl > 0


def test_logprobs_equal_transformers_forward(tiny: str, results: dict[int, list[Any]]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    for ranks in (1, 2):
        for batch, found in zip(batches(), results[ranks][0]["ZeRO-3"]["logprobs"], strict=True):
            for segment, logprobs in zip(batch.segments, found, strict=True):
                prompt = len(segment.sequence.prompt_ids)
                ids = np.concatenate([segment.sequence.prompt_ids, segment.sequence.response_ids])
                with torch.no_grad():
                    logits = model(torch.tensor(ids, dtype=torch.int64)[None]).logits[0] / TEMPERATURE
                expected = [
                    float(logits[prompt + t - 1].log_softmax(-1)[segment.sequence.response_ids[t]])
                    for t in range(segment.start, segment.stop)
                ]
                np.testing.assert_allclose(logprobs, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_gradient_in_bfloat16_is_near_that_in_fp32(
    results: dict[int, list[Any]], plain: tuple[dict[str, FloatArray], list[float]], ranks: int
) -> None:
    assert results[ranks][0]["bfloat16"].grad_norm == pytest.approx(plain[1][0], rel=0.02)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_likelihood_objective_lowers_the_loss(results: dict[int, list[Any]], ranks: int) -> None:
    losses = results[ranks][0]["losses"]
    assert losses[0] > 5  # ln 259, as no token is preferred yet
    assert losses[-1] < 0.9 * losses[0]
