"""Numbers that are not finite, for real: DeepSpeed leaves everything as it was, and a run stops with the batch kept."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ring_ray.algo.packing import pack
from ring_ray.checkpoint.batch import read_batch
from ring_ray.engines.deepspeed import DeepSpeedEngine
from ring_ray.types import FloatArray, TokenBatch
from tests.integration.commands import train as train_command
from tests.integration.training import MICRO_BATCH_TOKENS, batches, make_engine, references, run_ranks

VARIANTS: dict[str, dict[str, Any]] = {
    **{f"ZeRO-{stage}": {"zero_stage": stage} for stage in (0, 1, 2, 3)},
    "ZeRO-1, optimizer on the host": {"zero_stage": 1, "offload_optimizer": True},
    "ZeRO-2, optimizer on the host": {"zero_stage": 2, "offload_optimizer": True},
    "ZeRO-3, all on the host": {"zero_stage": 3, "offload_parameters": True, "offload_optimizer": True},
}
VARIANTS |= {
    f"{name}, bfloat16": {**variant, "dtype": "bfloat16"} for name, variant in VARIANTS.items() if name != "ZeRO-0"
}

Input = tuple[TokenBatch, tuple[FloatArray, ...]]


def with_advantage(advantage: float) -> Input:
    """Of one response, which only one rank sees."""
    batch = batches()[1]
    first, *rest = batch.segments
    return replace(batch, segments=(replace(first, advantage=advantage), *rest)), references(batch)


def impossible_token() -> Input:
    """Of one response, under the reference policy, which has no part in the gradient."""
    batch = batches()[1]
    first, *rest = references(batch)
    return batch, (np.where(np.arange(len(first)) == 0, np.float32(-math.inf), first), *rest)


FAULTS: dict[str, Input] = {
    "gradient": with_advantage(3e38),  # the loss is large, its gradient overflows
    "loss": impossible_token(),
    "both": with_advantage(math.inf),
}


def state(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """This rank's share of master weights, moments and step count, and all the weights that it computes with."""
    return engine.snapshot() | {f"weight {name}": tensor.clone() for name, tensor in engine.weights()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> list[str]:
    """Names of the tensors that are not the same bit for bit."""
    assert before.keys() == after.keys()
    return [name for name in before if not torch.equal(as_bytes(before[name]), as_bytes(after[name]))]


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def train(path: str, rank: int, ranks: int, port: int) -> dict[str, Any]:
    """One rank: for each variant, steps with each fault between them, and the same steps without."""
    found: dict[str, Any] = {}
    for name, variant in VARIANTS.items():
        engine = make_engine(path, rank, ranks, port, **variant)
        good, faulty, harmed = [], {}, {}
        for batch in batches()[:2]:
            for fault, spoiled in FAULTS.items():  # before the first step as well, when AdamW has no state yet
                before = state(engine)
                faulty[fault, len(good)] = engine.update(*spoiled)
                harmed[fault, len(good)] = changed(before, state(engine))
            good.append(engine.update(batch, references(batch)))
        end = state(engine)
        engine.close()
        engine = make_engine(path, rank, ranks, port, **variant)
        expected = [engine.update(batch, references(batch)) for batch in batches()[:2]]
        harmed["later steps", 2] = changed(state(engine), end)
        engine.close()
        found[name] = {"good": good, "expected": expected, "faulty": faulty, "harmed": harmed}
    return found


@pytest.fixture(scope="module")
def results(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    return run_ranks(train, str(tmp_path_factory.mktemp("runs")), tiny)


CASES = [(ranks, name) for ranks in (1, 2) for name in VARIANTS]


@pytest.mark.parametrize(("ranks", "name"), CASES)
def test_a_skipped_step_changes_nothing_then_or_later(results: dict[int, list[Any]], ranks: int, name: str) -> None:
    for rank in results[ranks]:
        assert rank[name]["harmed"] == {key: [] for key in rank[name]["harmed"]}
        assert rank[name]["good"] == rank[name]["expected"], "learning rates among them"
        assert not any(update.skipped for update in rank[name]["good"])


@pytest.mark.parametrize(("ranks", "name"), CASES)
def test_every_rank_says_that_a_step_was_skipped_and_why(results: dict[int, list[Any]], ranks: int, name: str) -> None:
    for rank in results[ranks]:
        for (fault, _), update in rank[name]["faulty"].items():
            assert update.skipped
            assert math.isfinite(update.loss) == (fault == "gradient")
            assert math.isfinite(update.grad_norm) == (fault == "loss")


def test_the_one_response_is_on_one_rank() -> None:
    """What an infinite gradient on one rank only rests on."""
    shares = pack(batches()[1], 2, MICRO_BATCH_TOKENS, padded=False)
    assert [any(0 in rows for rows in share) for share in shares] in ([True, False], [False, True])
    assert all(shares)


def test_a_run_whose_loss_is_never_finite_stops_and_keeps_its_batch(tmp_path: Path) -> None:
    run = train_command(
        "algo.entropy_coefficient=1e39",  # more than float32 holds
        "algo.token_budget=400",
        "algo.kl_coefficient=1e-3",
        "sft.enabled=never",
        "evaluation.prompts=8",
        "rollout.max_response_tokens=16",
        "tracking.wandb=disabled",
        f"hydra.run.dir={tmp_path}",
    )
    kept = tmp_path / "skipped-step-00000003.msgpack"
    assert run.status == 2, run.output
    assert "error: train.max_skipped_steps=3" in run.output
    assert f"{kept} has its batch" in run.output
    assert "Traceback" not in run.output
    assert run.left_over == []
    steps = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(step["policy/skipped"], step["policy/loss"]) for step in steps] == [(1, None)] * 3
    assert [(step["ledger/trained"], step["ledger/dropped"]) for step in steps] == [(0, 400), (0, 800), (0, 1200)]
    saved = read_batch(str(kept))
    assert (saved.batch.version, saved.batch.trained_tokens) == (2, 400)
    assert saved.reference is not None
    assert [len(logprobs) for logprobs in saved.reference] == [len(segment) for segment in saved.batch.segments]
