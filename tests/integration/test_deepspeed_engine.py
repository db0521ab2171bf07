"""DeepSpeed for real, on the CPU: ZeRO stages and ranks agree, and what comes out is a Hugging Face model."""

import math
import socket
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.multiprocessing as mp
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from ring_ray.algo.loss import accumulate
from ring_ray.algo.packing import collate, token_weights
from ring_ray.config import AlgoConfig, ModelConfig, TrainConfig
from ring_ray.engines.deepspeed import DeepSpeedEngine
from ring_ray.engines.hf import CausalPolicy, ReferenceModel, load_model
from ring_ray.engines.tiny_model import make_tiny_model
from ring_ray.types import FloatArray, TokenBatch, Weights
from tests.unit.test_packing import make_batch, make_segment, make_sequence

TEMPERATURE, MICRO_BATCH_TOKENS, MAX_GRAD_NORM = 0.9, 60, 0.01
ALGO = AlgoConfig(kl_coefficient=0.05, entropy_coefficient=0.01, balance_coefficient=0.1, z_coefficient=0.01)
# Sums over ranks and micro-batches come in another order; Adam divides by gradients as small as 1e-6.
FP32_BOUND = 2e-6


def batches() -> list[TokenBatch]:
    """Three steps: a response is cut by the budget of the first and ends in the second; the third is one response."""
    rng = np.random.default_rng(0)
    segments = [
        make_segment(make_sequence(rng, prompt, response, 256), 0, response, float(rng.normal()))
        for prompt, response in [(5, 20), (9, 31), (4, 8), (7, 17), (3, 26), (6, 12), (8, 5)]
    ]
    cut = segments[4].sequence
    return [
        make_batch([*segments[:4], make_segment(cut, 0, 11, 0.8)], 90),
        make_batch([make_segment(cut, 11, 26, 0.8), *segments[5:]], 90),
        make_batch(segments[1:2], 90),
    ]


def unbounded() -> TokenBatch:
    batch = batches()[2]
    return replace(batch, segments=tuple(replace(segment, advantage=math.inf) for segment in batch.segments))


def demonstrations() -> TokenBatch:
    """One token over and over, so that a few steps are enough to learn it."""
    rng = np.random.default_rng(0)
    sequences = [make_sequence(rng, 4, 10, 256) for _ in range(8)]
    for sequence in sequences:
        sequence.response_ids[:] = 65
    return make_batch([make_segment(sequence, 0, 10) for sequence in sequences])


def make_engine(
    path: str, stage: int, rank: int, world_size: int, port: int, dtype: str = "float32", **algo: Any
) -> DeepSpeedEngine:
    return DeepSpeedEngine(
        path,
        model=ModelConfig(dtype=dtype),
        train=TrainConfig(
            zero_stage=stage,
            learning_rate=1e-3,
            warmup_steps=2,
            max_grad_norm=MAX_GRAD_NORM,
            micro_batch_tokens=MICRO_BATCH_TOKENS,
        ),
        algo=AlgoConfig(**algo) if algo else ALGO,
        temperature=TEMPERATURE,
        rank=rank,
        world_size=world_size,
        master_port=port,
    )


def train(rank: int, path: str, stages: tuple[int, ...], world_size: int, port: int, out: str) -> None:
    """One rank: an engine for each stage after the other, then the cold start; what it sees goes to ``out``."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for stage in stages:
        engine = make_engine(path, stage, rank, world_size, port)
        logprobs = [engine.logprobs(batch) for batch in batches()]
        metrics = [engine.update(batch, lowered(values)) for batch, values in zip(batches(), logprobs, strict=True)]
        engine.save(f"{out}-model-{stage}")
        weights = engine.weights()
        results[f"stage {stage}"] = {
            "metrics": metrics,
            "logprobs": logprobs,
            "weights": {name: values.copy() for name, values in weights.items()},
        }
        engine.update(batches()[0], lowered(logprobs[0]))
        results[f"stage {stage}"]["weights later"] = weights
        before = engine.weights()
        with pytest.raises(FloatingPointError):
            engine.update(unbounded(), lowered(logprobs[2]))
        for name, values in engine.weights().items():
            np.testing.assert_array_equal(values, before[name], err_msg=name)
        engine.close()
        engine.close()
    engine = make_engine(path, 1, rank, world_size, port, objective="likelihood")
    results["losses"] = [engine.update(demonstrations(), None).loss for _ in range(6)]
    engine.close()
    engine = make_engine(path, 3, rank, world_size, port, "bfloat16")
    results["bfloat16 metrics"] = engine.update(batches()[0], lowered(engine.logprobs(batches()[0])))
    engine.save(f"{out}-bfloat16")
    results["bfloat16 weights"] = engine.weights()
    engine.close()
    torch.save(results, f"{out}-rank-{rank}")


def lowered(logprobs: tuple[FloatArray, ...]) -> tuple[FloatArray, ...]:
    """A reference policy that is somewhat less likely to say what was said."""
    return tuple(values - np.float32(0.1) for values in logprobs)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tiny")
    make_tiny_model(path, seed=0, hidden_size=32)
    return str(path)


@pytest.fixture(scope="module")
def out(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where one rank and, at the same time, two ranks have left their results: ``out-{ranks}-rank-{rank}``."""
    out = str(tmp_path_factory.mktemp("runs") / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        groups = [
            mp.spawn(train, (tiny, stages, ranks, port, f"{out}-{ranks}"), nprocs=ranks, join=False)
            for ranks, stages, port in [(1, (0, 1, 2, 3), 0), (2, (1, 2, 3), free_port())]
        ]
    for group in groups:
        while not group.join():
            pass
    return out


def results(out: str, ranks: int, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(f"{out}-{ranks}-rank-{rank}", weights_only=False)
    return found


@pytest.fixture(scope="module")
def plain(tiny: str) -> tuple[Weights, list[float]]:
    """The same three steps without DeepSpeed, each in one micro-batch: weights by name in the model, gradient norms."""
    policy = CausalPolicy(load_model(tiny, ModelConfig()), TEMPERATURE)
    reference = ReferenceModel(
        tiny, ModelConfig(), temperature=TEMPERATURE, micro_batch_tokens=MICRO_BATCH_TOKENS, device="cpu"
    )
    optimizer = torch.optim.AdamW(policy.parameters(), weight_decay=0.0)
    norms = []
    for batch, learning_rate in zip(batches(), [5e-4, 1e-3, 1e-3], strict=True):
        rows = tuple(range(len(batch.segments)))
        weights = token_weights(batch, ALGO.aggregation)
        accumulate(
            policy,
            [collate(batch, rows, weights, lowered(reference.logprobs(batch)))],
            ALGO,
            trained_tokens=batch.trained_tokens,
            backward=torch.Tensor.backward,
            sum_over_ranks=lambda values: values,
        )
        norms.append(float(torch.nn.utils.clip_grad_norm_(policy.parameters(), MAX_GRAD_NORM)))
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().numpy() for name, p in policy.model.named_parameters()}, norms


@pytest.mark.parametrize(("ranks", "stage"), [(1, 0), (1, 1), (1, 2), (1, 3), (2, 1), (2, 2), (2, 3)])
def test_every_stage_and_number_of_ranks_trains_like_plain_torch(
    out: str, plain: tuple[Weights, list[float]], ranks: int, stage: int
) -> None:
    expected, norms = plain
    found = results(out, ranks)[f"stage {stage}"]
    trained = AutoModelForCausalLM.from_pretrained(f"{out}-{ranks}-model-{stage}", dtype=torch.float32)
    for name, parameter in trained.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], atol=FP32_BOUND, rtol=0, err_msg=name)
    assert [metrics.grad_norm for metrics in found["metrics"]] == pytest.approx(norms, rel=1e-4)
    assert norms[0] > MAX_GRAD_NORM
    assert [metrics.learning_rate for metrics in found["metrics"]] == [5e-4, 1e-3, 1e-3]


def test_every_rank_returns_the_same_metrics(out: str) -> None:
    first, second = results(out, 2, 0)["stage 1"], results(out, 2, 1)["stage 1"]
    assert first["metrics"] == second["metrics"]
    assert [metrics.micro_batches for metrics in first["metrics"]] == [2, 1, 1]
    assert second["weights"] == {}


def test_metrics_do_not_depend_on_the_number_of_ranks(out: str) -> None:
    one, two = (results(out, ranks)["stage 2"]["metrics"] for ranks in (1, 2))
    for left, right in zip(one, two, strict=True):
        assert asdict(left) | {"micro_batches": 0} == pytest.approx(asdict(right) | {"micro_batches": 0}, rel=1e-4)
        assert left.balance_loss > 1
        assert left.kl > 0


def test_logprobs_equal_transformers_forward(tiny: str, out: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    for ranks in (1, 2):
        for batch, found in zip(batches(), results(out, ranks)["stage 3"]["logprobs"], strict=True):
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


@pytest.mark.parametrize(("ranks", "stage"), [(1, 1), (2, 3)])
def test_weights_are_a_snapshot_under_the_names_of_the_checkpoint(tiny: str, out: str, ranks: int, stage: int) -> None:
    found = results(out, ranks)[f"stage {stage}"]
    saved = load_file(f"{out}-{ranks}-model-{stage}/model.safetensors")
    assert found["weights"].keys() == saved.keys() == load_file(f"{tiny}/model.safetensors").keys()
    for name, values in saved.items():
        np.testing.assert_array_equal(found["weights"][name], values)
        np.testing.assert_array_equal(found["weights later"][name], values)


@pytest.mark.parametrize("ranks", [1, 2])
def test_bfloat16_weights_travel_as_their_bits(out: str, plain: tuple[Weights, list[float]], ranks: int) -> None:
    found = results(out, ranks)
    saved = safetensors.torch.load_file(f"{out}-{ranks}-bfloat16/model.safetensors")
    assert found["bfloat16 weights"].keys() == saved.keys()
    for name, tensor in saved.items():
        assert tensor.dtype == torch.bfloat16
        np.testing.assert_array_equal(found["bfloat16 weights"][name], tensor.view(torch.uint16).numpy())
    assert found["bfloat16 metrics"].grad_norm == pytest.approx(plain[1][0], rel=0.02)


def test_a_saved_model_has_its_tokenizer(tiny: str, out: str) -> None:
    saved, original = (AutoTokenizer.from_pretrained(path) for path in (f"{out}-2-model-1", tiny))
    assert saved.encode("12+34=") == original.encode("12+34=")
    assert saved.chat_template == original.chat_template


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_likelihood_objective_lowers_the_loss(out: str, ranks: int) -> None:
    losses = results(out, ranks)["losses"]
    assert losses[0] > 5  # ln 259, as no token is preferred yet
    assert losses[-1] < 0.9 * losses[0]
