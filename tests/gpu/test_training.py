"""Training on CUDA: in fp32 it computes what a CPU computes, and bfloat16 stays near that.

TF32 is off, as it is by default in torch: it keeps 10 bits of the mantissa, and the bounds in fp32 would not hold.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import safetensors.torch
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from ring_ray.algo.loss import accumulate
from ring_ray.algo.packing import collate, token_weights
from ring_ray.config import AlgoConfig, ModelConfig
from ring_ray.engines.deepspeed import DeepSpeedEngine
from ring_ray.engines.hf import CausalPolicy, load_model
from ring_ray.engines.tiny_model import make_tiny_model
from ring_ray.types import FloatArray, Segment, TokenBatch
from tests.integration import training
from tests.integration.training import ALGO, LEARNING_RATE, MAX_GRAD_NORM, TEMPERATURE, VARIANTS, references
from tests.unit.test_packing import make_batch, make_segment, make_sequence

DEVICE = "cuda"
LIKELIHOOD = AlgoConfig(objective="likelihood")
# Relative errors: sums in another order in fp32, 8 bits of mantissa in bfloat16. Adam divides by small gradients.
FP32_UPDATE_BOUND, FP32_NORM_BOUND, BF16_LOGPROBS_BOUND, BF16_NORM_BOUND = 1e-4, 1e-5, 0.02, 0.01
STAGES = pytest.mark.parametrize("stage", [1, 3])

MakeEngine = Callable[..., DeepSpeedEngine]


@dataclass(frozen=True)
class Reference:
    """What a plain loop on the CPU in fp32 arrives at."""

    parameters: dict[str, FloatArray]
    grad_norms: list[float]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("tiny")
    make_tiny_model(path, seed=0, hidden_size=64)
    return str(path)


@pytest.fixture
def make_engine(tiny: str) -> Iterator[MakeEngine]:
    engines: list[DeepSpeedEngine] = []

    def make(zero_stage: int, *, path: str = tiny, **options: Any) -> DeepSpeedEngine:
        engines.append(training.make_engine(path, device=DEVICE, zero_stage=zero_stage, warmup_steps=0, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def responses() -> list[Segment]:
    """Whole ones."""
    rng = np.random.default_rng(0)
    return [
        make_segment(make_sequence(rng, prompt, response, 256), 0, response, float(rng.normal()))
        for prompt, response in [(5, 20), (9, 31), (4, 8), (3, 26), (7, 17), (6, 12)]
    ]


def batches() -> list[TokenBatch]:
    """Two steps: the budget of the first cuts a response, whose end is in the second."""
    whole = responses()
    head, tail = replace(whole[3], stop=11), replace(whole[3], start=11)
    return [make_batch([*whole[:3], head]), make_batch([tail, *whole[4:]])]


def joined() -> TokenBatch:
    """The two steps in one, so that both segments of the cut response are in it."""
    return make_batch([segment for batch in batches() for segment in batch.segments])


def weights(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """A copy on the host."""
    return {name: tensor.cpu() for name, tensor in engine.weights()}


def fp32_weights(engine: DeepSpeedEngine) -> dict[str, FloatArray]:
    return {name: tensor.float().numpy() for name, tensor in weights(engine).items()}


def relative_error(found: Sequence[npt.ArrayLike], expected: Sequence[npt.ArrayLike]) -> float:
    """``‖found - expected‖ / ‖expected‖`` over all elements of all arrays."""
    pairs = [(np.asarray(f, np.float64), np.asarray(e, np.float64)) for f, e in zip(found, expected, strict=True)]
    return math.sqrt(sum(((f - e) ** 2).sum() for f, e in pairs) / sum((e**2).sum() for _, e in pairs))


def update_error(
    found: Mapping[str, npt.ArrayLike], expected: Mapping[str, npt.ArrayLike], before: Mapping[str, npt.ArrayLike]
) -> float:
    """Of what training added to the parameters."""
    assert found.keys() == expected.keys() == before.keys()
    return relative_error(
        [np.subtract(found[name], values) for name, values in before.items()],
        [np.subtract(expected[name], values) for name, values in before.items()],
    )


@torch.no_grad()
def forward_logprobs(model: PreTrainedModel, batch: TokenBatch) -> list[FloatArray]:
    """Log-probs of each segment's tokens by transformers alone, a row at a time."""
    logprobs = []
    for segment in batch.segments:
        prompt_ids, response_ids = segment.sequence.prompt_ids, segment.sequence.response_ids
        ids = torch.tensor(np.concatenate([prompt_ids, response_ids]), dtype=torch.int64)
        logprobs_TV = (model(ids[None]).logits[0] / TEMPERATURE).log_softmax(-1)
        taken_T = logprobs_TV[:-1].gather(-1, ids[1:, None]).squeeze(-1)[len(prompt_ids) - 1 :]
        logprobs.append(taken_T[segment.start : segment.stop].numpy())
    return logprobs


def parameters(path: str) -> dict[str, FloatArray]:
    """In fp32, by their name in the model."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}


@pytest.fixture(scope="module")
def on_cpu(tiny: str) -> Reference:
    """The two steps without DeepSpeed and without a GPU, each in one micro-batch."""
    policy = CausalPolicy(load_model(tiny, ModelConfig()), TEMPERATURE, packing="padded")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    norms = []
    for batch in batches():
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
        optimizer.step()
        optimizer.zero_grad()
    trained = {name: parameter.detach().numpy() for name, parameter in policy.model.named_parameters()}
    return Reference(parameters=trained, grad_norms=norms)


@STAGES
def test_logprobs_equal_transformers_forward_on_a_cpu(tiny: str, make_engine: MakeEngine, stage: int) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    engine = make_engine(stage)
    for batch in batches():
        for found, expected in zip(engine.logprobs(batch), forward_logprobs(model, batch), strict=True):
            np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_training_in_fp32_equals_a_plain_loop_on_a_cpu(
    tiny: str, on_cpu: Reference, make_engine: MakeEngine, variant: dict[str, Any], tmp_path: Path
) -> None:
    engine = make_engine(**variant)
    metrics = [engine.update(batch, references(batch)) for batch in batches()]
    engine.save(str(tmp_path))
    assert update_error(parameters(str(tmp_path)), on_cpu.parameters, parameters(tiny)) < FP32_UPDATE_BOUND
    assert [one.grad_norm for one in metrics] == pytest.approx(on_cpu.grad_norms, rel=FP32_NORM_BOUND)
    assert metrics[0].grad_norm > MAX_GRAD_NORM
    assert metrics[0].micro_batches > 1


@pytest.mark.parametrize(
    ("batch", "micro_batch_tokens"), [(joined(), 60), (make_batch(responses()), 10_000)], ids=["cut", "packing"]
)
def test_neither_cutting_a_response_nor_packing_changes_the_update(
    make_engine: MakeEngine, batch: TokenBatch, micro_batch_tokens: int
) -> None:
    whole = make_batch(responses())
    expected_engine, found_engine = make_engine(1), make_engine(1, micro_batch_tokens=micro_batch_tokens)
    before = fp32_weights(expected_engine)
    expected, found = expected_engine.update(whole, references(whole)), found_engine.update(batch, references(batch))
    assert len(batch.segments) > len(whole.segments) or found.micro_batches < expected.micro_batches
    assert found.grad_norm == pytest.approx(expected.grad_norm, rel=FP32_NORM_BOUND)
    assert found.loss == pytest.approx(expected.loss, rel=FP32_NORM_BOUND)
    assert update_error(fp32_weights(found_engine), fp32_weights(expected_engine), before) < FP32_UPDATE_BOUND


@STAGES
def test_logprobs_in_bfloat16_are_near_those_in_fp32(tiny: str, make_engine: MakeEngine, stage: int) -> None:
    batch = joined()
    expected = forward_logprobs(AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32), batch)
    found = make_engine(stage, dtype="bfloat16").logprobs(batch)
    # What a random model says of every token alike is ln of the vocabulary: only the rest is the model's.
    uniform = np.float32(-math.log(259))
    assert relative_error([f - uniform for f in found], [e - uniform for e in expected]) < BF16_LOGPROBS_BOUND


@STAGES
def test_an_update_in_bfloat16_has_nearly_the_gradient_of_fp32(
    on_cpu: Reference, make_engine: MakeEngine, stage: int
) -> None:
    engine, batch = make_engine(stage, dtype="bfloat16"), batches()[0]
    before = fp32_weights(engine)
    metrics = engine.update(batch, references(batch))
    assert metrics.grad_norm == pytest.approx(on_cpu.grad_norms[0], rel=BF16_NORM_BOUND)
    after = fp32_weights(engine)
    # Norm weights are 1 at first, where the next bfloat16 is further than a step goes: theirs is in the fp32 copy only.
    assert all((after[name] != before[name]).any() for name in before if before[name].ndim > 1)


@STAGES
def test_the_likelihood_objective_in_bfloat16_lowers_the_loss(make_engine: MakeEngine, stage: int) -> None:
    """One token over and over, so that a few steps are enough to learn it."""
    rng = np.random.default_rng(0)
    sequences = [make_sequence(rng, 4, 10, 256) for _ in range(8)]
    for sequence in sequences:
        sequence.response_ids[:] = 65
    batch = make_batch([make_segment(sequence, 0, 10) for sequence in sequences])
    engine = make_engine(stage, dtype="bfloat16", algo=LIKELIHOOD)
    losses = [engine.update(batch, None).loss for _ in range(8)]
    assert losses[0] > 5  # ln 259, as no token is preferred yet
    assert losses[-1] < 0.9 * losses[0]


@STAGES
def test_weights_are_those_of_the_saved_model(make_engine: MakeEngine, stage: int, tmp_path: Path) -> None:
    engine, batch = make_engine(stage, dtype="bfloat16"), batches()[0]
    engine.update(batch, references(batch))
    assert {tensor.device.type for _, tensor in engine.weights()} == {DEVICE}
    found = weights(engine)
    engine.save(str(tmp_path))
    saved = safetensors.torch.load_file(tmp_path / "model.safetensors")
    reloaded = weights(make_engine(stage, path=str(tmp_path), dtype="bfloat16"))
    assert found.keys() == saved.keys() == reloaded.keys()
    for name, tensor in saved.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(found[name], tensor), name
        assert torch.equal(reloaded[name], tensor), name
