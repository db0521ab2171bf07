"""What DeepSpeed holds between two steps is what the memory plan says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ring_ray.engines.optimizer
from ring_ray.config import ClusterConfig, ModelConfig, RoleResources, RunConfig, TrainConfig
from ring_ray.engines.host_memory import tensors_in
from ring_ray.engines.tiny_model import make_tiny_model
from ring_ray.memory import memory_plan, model_shape
from tests.integration.training import batches, make_engine, references, run_ranks

CASES = [("float32", 2), ("bfloat16", 1), ("bfloat16", 3)]


def held(path: str, rank: int, ranks: int, port: int) -> dict[str, int]:
    """Bytes after a step, by case, with hardly any bucket: ZeRO-1 and 2 make theirs anew in every backward pass."""
    ring_ray.engines.optimizer.REDUCE_BUCKET = 1000
    found: dict[str, int] = {}
    for dtype, stage in CASES:
        engine = make_engine(path, rank, ranks, port, dtype=dtype, zero_stage=stage)
        engine.update(batches()[0], references(batches()[0]))
        optimizers: list[Any] = [vars(engine._engine.optimizer), vars(engine._engine.basic_optimizer)]
        tensors = tensors_in([*engine._policy.parameters(), *optimizers])
        storages = {one.untyped_storage()._cdata: one.untyped_storage() for one in tensors if one.device.type == "cpu"}
        found[f"{dtype} {stage}"] = sum(storage.nbytes() for storage in storages.values())
        engine.close()
    return found


def planned(path: str, dtype: str, stage: int, ranks: int) -> float:
    config = RunConfig(model=ModelConfig(dtype=dtype), train=TrainConfig(zero_stage=stage))
    config = replace(config, cluster=ClusterConfig(policy=RoleResources(workers=ranks)))
    rows = memory_plan(config, model_shape(path, config.model), 0)
    parts = [row.part for row in rows if (row.phase, row.role) == ("generate", "policy")]
    return sum(part.nbytes for part in parts if part.name != "gradient bucket")


def test_what_is_there_between_steps(tmp_path: Path) -> None:
    path = str(tmp_path / "model")
    make_tiny_model(path, seed=0, hidden_size=256)
    for ranks, found in run_ranks(held, str(tmp_path), path).items():
        for dtype, stage in CASES:
            expected = planned(path, dtype, stage, ranks)
            assert found[0][f"{dtype} {stage}"] == pytest.approx(expected, rel=0.01), (ranks, dtype, stage)
