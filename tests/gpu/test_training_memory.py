"""On a GPU, memory that training doesn't take, and memory that it gives back: to the host or for good.

An engine comes first each time that leaves the workspaces of CUDA's libraries, which stay.
"""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ring_ray.config import AlgoConfig
from ring_ray.engines.deepspeed import DeepSpeedEngine
from ring_ray.engines.tiny_model import make_tiny_model
from tests.integration.training import batches, make_engine, references
from tests.unit.test_packing import make_batch, make_segment, make_sequence

CASES = pytest.mark.parametrize(("stage", "dtype"), [(1, "float32"), (1, "bfloat16"), (2, "bfloat16"), (3, "bfloat16")])


def engine_on_gpu(path: Path, **options: Any) -> closing[DeepSpeedEngine]:
    return closing(make_engine(str(path), device="cuda", **options))


def weights(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """A copy on the host."""
    return {name: tensor.cpu() for name, tensor in engine.weights()}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    make_tiny_model(path, seed=0, hidden_size=64)
    return path


@CASES
def test_an_offloaded_engine_gives_its_memory_back_and_takes_it_again(tiny: Path, stage: int, dtype: str) -> None:
    first, second, *_ = batches()
    with engine_on_gpu(tiny, zero_stage=stage, dtype=dtype) as kept:
        kept.update(first, references(first))
        kept.update(second, references(second))
        expected = weights(kept)
    before = torch.cuda.memory_allocated()
    with engine_on_gpu(tiny, zero_stage=stage, dtype=dtype) as engine:
        engine.update(first, references(first))
        between = weights(engine)
        loaded, model_bytes = torch.cuda.memory_allocated() - before, sum(tensor.nbytes for tensor in between.values())
        engine.offload()
        assert loaded > 3 * model_bytes  # weights, master weights and both moments
        assert torch.cuda.memory_allocated() - before < model_bytes / 10
        assert all(torch.equal(tensor, between[name]) for name, tensor in weights(engine).items())
        assert torch.cuda.memory_allocated() - before == pytest.approx(loaded, rel=0.1)
        engine.offload()
        engine.update(second, references(second))
        found = weights(engine)
    # Of the second step; it would be far more without Adam's moments. A GPU adds up in an order of its own.
    error = sum(float((found[name].float() - tensor.float()).square().sum()) for name, tensor in expected.items())
    moved = sum(float((tensor.float() - between[name].float()).square().sum()) for name, tensor in expected.items())
    assert error < 0.02**2 * moved


@CASES
def test_a_closed_engine_frees_its_memory(tiny: Path, stage: int, dtype: str) -> None:
    held = []
    for offloaded in (False, False, True):
        with engine_on_gpu(tiny, zero_stage=stage, dtype=dtype) as engine:
            engine.update(batches()[0], references(batches()[0]))
            model_bytes = sum(tensor.nbytes for tensor in weights(engine).values())
            if offloaded:
                engine.offload()
        held.append(torch.cuda.memory_allocated())
    assert max(held[1:]) - held[0] < model_bytes / 10


@pytest.mark.parametrize("stage", [1, 3])
def test_checkpointing_lowers_the_peak_of_memory(stage: int, tmp_path: Path) -> None:
    make_tiny_model(tmp_path, seed=0, hidden_size=64, layers=8)
    rng = np.random.default_rng(0)
    batch = make_batch([make_segment(make_sequence(rng, 24, 1000, 256), 0, 1000) for _ in range(16)])
    options: dict[str, Any] = {"algo": AlgoConfig(objective="likelihood"), "micro_batch_tokens": 16_384}
    peaks, norms = [], []
    for checkpointed in (False, True):
        with engine_on_gpu(tmp_path, zero_stage=stage, activation_checkpointing=checkpointed, **options) as engine:
            engine.update(batch, None)  # makes the optimizer's state
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            norms.append(engine.update(batch, None).grad_norm)
            peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < peaks[0] / 2
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)  # at the second step: the first has parted them a little
