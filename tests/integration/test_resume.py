"""A run whose driver is killed, and one that was never interrupted: the same prompts, budgets and parameters."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.integration.commands import Command, train
from tests.integration.test_train import OFFLINE, SMALL

STEPS = 5
# Nothing may depend on who is faster, nor on what else the engine decodes at the same time.
EXACT = (
    *SMALL,
    OFFLINE,
    "cluster=colocated",
    "rollout.deterministic=true",
    "algo.behaviour=recomputed",
    f"train.steps={STEPS}",
)


def reported(run_dir: Path) -> list[dict[str, Any]]:
    """What does not depend on the clock, by step."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    families = ("step", "c3po", "ledger", "policy", "moe", "reward", "rollout")
    return [{name: value for name, value in row.items() if name.split("/")[0] in families} for row in rows]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


def kill_after(step: int, *overrides: str) -> None:
    """A run whose driver is killed once it has reported ``step``."""
    command = Command("jobs/train.py", *overrides)
    command.wait_for(f"step {step}/")
    command.process.kill()
    command.finish()


@pytest.mark.timeout(900)  # three runs
def test_a_killed_run_goes_on_to_the_same_parameters(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(*EXACT, f"hydra.run.dir={whole}", "checkpoint.every=0").status == 0
    assert not (whole / "checkpoints").exists()
    overrides = (*EXACT, f"hydra.run.dir={broken}", "checkpoint.every=2")
    kill_after(3, *overrides)
    assert len(reported(broken)) >= 3
    finished = train(*overrides)
    assert finished.status == 0, finished.output
    assert "going on after step 2 " in finished.output
    assert reported(broken) == reported(whole)
    expected, found = weights(whole), weights(broken)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    accuracies = [json.loads((run / "summary.json").read_text())["accuracy"] for run in (whole, broken)]
    assert accuracies[0] == accuracies[1]
