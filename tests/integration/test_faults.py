"""A run whose processes are killed under it, one after the other: it goes on, and loses nothing."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import Command, command_line
from tests.integration.test_train import SMALL, assert_balanced, read_steps

# By the title of its process, the kind that it is reported as.
VICTIMS = {
    "ray::RolloutWorker": "rollout",
    "VLLM::EngineCore": "rollout",
    "ray::RewardWorker": "reward",
    "ray::ReferenceWorker": "reference",
    "ray::BufferWorker": "buffer",
    "ray::PolicyWorker": "policy",
}
STEPS = 60


def kill(command: Command, title: str) -> None:
    (victim,) = [process for process in command.descendants() if command_line(process).startswith(title)]
    os.kill(victim.pid, signal.SIGKILL)


def faults(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "faults.jsonl").read_text().splitlines()]


@pytest.mark.timeout(400)
def test_a_run_survives_the_death_of_each_of_its_processes(tmp_path: Path) -> None:
    command = Command(
        "jobs/train.py", *SMALL, f"train.steps={STEPS}", "checkpoint.every=2", f"hydra.run.dir={tmp_path}"
    )
    command.wait_for("step 3/")
    for title in VICTIMS:
        kill(command, title)
        command.wait_for("recovered in ")
        command.wait_for("step ")
    finished = command.finish()
    assert finished.status == 0, finished.output
    assert finished.left_over == []
    assert [fault["kind"] for fault in faults(tmp_path)] == list(VICTIMS.values())
    steps = read_steps(tmp_path)
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    assert [step["c3po/trained_tokens"] for step in steps] == [1000] * STEPS
    assert [step["ledger/trained"] for step in steps] == [1000 * number for number in range(1, STEPS + 1)]
    for step in steps:
        assert_balanced(step)
