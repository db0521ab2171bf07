"""W&B for real: what a run leaves on disk, read back with W&B's own tools, and what a dead network does to a run."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ring_ray.metrics import FAMILIES, METRICS, NOTES
from tests.unit.test_metrics import matches

ROOT = Path(__file__).parents[2]
KEY = "5ec2e7" + "0123456789abcdef" * 2 + "00"  # made up, of the length that W&B asks for
STEPS = 20
PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
from ring_ray.tracking import Tracker
from ring_ray.types import Fault
from tests.unit.test_tracking import distinct_metrics, run_config, sample
run_dir, mode, steps = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
config = run_config(run_dir, wandb=mode, steps=steps)
config.tracking.progress, config.tracking.artifacts = True, True
config.tracking.group, config.tracking.job_number, config.tracking.overrides = "sums", 3, ["seed=7"]
(run_dir / "model").mkdir(parents=True)
(run_dir / "model" / "model.safetensors").write_bytes(b"weights")
(run_dir / "step-00000020").mkdir()
(run_dir / "step-00000020" / "manifest.json").write_text("{}")
with Tracker(config) as tracker:
    tracker.note({"accuracy/base": 0.25})
    tracker.note({"sft/step": 1, "sft/loss": 2.5, "sft/entropy": 1.5, "sft/accuracy": 0.5})
    for step in range(1, steps + 1):
        tracker.fault(Fault(kind="rollout", what="an engine died", seconds=2.0))
        tracker.log(replace(distinct_metrics(), step=step))
        tracker.rollouts(step, [sample(response=f"response {step}")])
    tracker.artifacts([run_dir / "model", run_dir / "step-00000020"])
    print("all is logged", "and W&B had not begun" if not list(run_dir.glob("wandb/offline-run-*")) else "", flush=True)
"""


@dataclass(frozen=True)
class Tracked:
    directory: Path
    output: str

    @property
    def steps(self) -> list[int]:
        """In metrics.jsonl."""
        lines = (self.directory / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["step"] for line in lines]

    def records(self) -> list[dict[str, Any]]:
        """What W&B has on disk, by W&B's own reader."""
        (run,) = self.directory.glob("wandb/offline-run-*")
        command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", str(run)]
        lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
        return [json.loads(line) for line in lines]


def track(tmp_path: Path, mode: str, **environment: str) -> Tracked:
    """A process that reports some steps, in a home directory of its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_") and name != "NETRC"}
    directory = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory), mode, str(STEPS)],
        cwd=ROOT,
        env=clean | {"HOME": str(tmp_path)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout
    return Tracked(directory, done.stdout)


def of_type(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> Tracked:
    return track(tmp_path_factory.mktemp("offline"), "auto", WANDB_API_KEY="")


def test_an_offline_run_has_every_documented_metric_of_every_step(offline: Tracked) -> None:
    rows = [history["item"] for history in of_type(offline.records(), "history")]
    steps = [row for row in rows if "policy/loss" in row]
    assert [row["step"] for row in steps] == offline.steps == list(range(1, STEPS + 1))
    names = {name for row in rows for name in row}
    undocumented = [name for name in steps[0] if not name.startswith("_")]
    for metric in (*METRICS, *FAMILIES, *NOTES):
        undocumented = [name for name in undocumented if not matches(name, metric.name)]
        if metric.name not in ("sys/gpu<index>_memory_used_gib", "accuracy/<stage>/<domain>"):  # no GPU, and one domain
            assert any(matches(name, metric.name) for name in names), metric.name
    assert undocumented == []


def test_curves_are_over_the_steps_and_can_be_over_the_trained_tokens(offline: Tracked) -> None:
    records = offline.records()
    metrics = of_type(records, "metric")
    over = {metric.get("glob_name") or metric["name"]: metric.get("step_metric") for metric in metrics}
    prefixes = {metric.name.split("/")[0] for metric in (*METRICS, *FAMILIES)} - {"step"}
    assert over.items() >= {f"{prefix}/*": "step" for prefix in prefixes}.items()
    assert over["sft/*"] == "sft/step"
    assert over["ledger/trained"] == "step"
    for row in (history["item"] for history in of_type(records, "history")):
        assert ("ledger/trained" in row) == ("policy/loss" in row)  # an x-axis must be in the rows that it is for


def test_the_run_says_what_it_was_and_from_which_commit(offline: Tracked) -> None:
    (run,) = of_type(offline.records(), "run")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert run["git"]["commit"] == commit.strip()
    assert (run["run_group"], run["job_type"]) == ("sums", "sweep")
    tracking = run["config"]["update"]["tracking"]
    assert (tracking["job_number"], tracking["overrides"]) == (3, ["seed=7"])


def test_each_step_has_a_table_of_its_rollouts(offline: Tracked) -> None:
    rows = [history["item"] for history in of_type(offline.records(), "history")]
    tables = [row["rollouts.path"] for row in rows if "rollouts.path" in row]
    (files,) = offline.directory.glob("wandb/offline-run-*/files")
    contents = [json.loads((files / table).read_text()) for table in tables]
    written = [json.loads(line) for line in (offline.directory / "rollouts.jsonl").read_text().splitlines()]
    assert [dict(zip(one["columns"], row, strict=True)) for one in contents for row in one["data"]] == written
    assert [row["response"] for row in written] == [f"response {step}" for step in range(1, STEPS + 1)]


@pytest.mark.parametrize(
    ("kind", "file"), [("model", "model/model.safetensors"), ("checkpoint", "step-00000020/manifest.json")]
)
def test_models_and_checkpoints_are_artifacts_that_are_not_copied(offline: Tracked, kind: str, file: str) -> None:
    artifacts = of_type(offline.records(), "artifact")
    (artifact,) = [artifact for artifact in artifacts if artifact["type"] == kind]
    (content,) = artifact["manifest"]["contents"]
    assert content["local_path"] == str(offline.directory / file)


def test_an_offline_run_says_how_to_send_it(offline: Tracked) -> None:
    (directory,) = re.findall(r"wandb sync (\S+)$", offline.output, re.MULTILINE)
    command = [Path(sys.executable).with_name("wandb"), "sync", "--dry-run", directory]
    seen = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert "Would sync 1 run" in seen.stdout + seen.stderr


@contextmanager
def dead_server(*, accepts: bool) -> Iterator[str]:
    """The address of a server that refuses connections, or accepts them and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        if accepts:
            yield address  # the kernel accepts, nobody reads
    if not accepts:
        yield address


@pytest.mark.parametrize("accepts", [False, True], ids=["refuses", "never answers"])
def test_a_dead_network_neither_stops_nor_delays_a_run(tmp_path: Path, accepts: bool) -> None:
    with dead_server(accepts=accepts) as address:
        run = track(tmp_path, "online", WANDB_BASE_URL=address, WANDB_API_KEY=KEY)
    assert run.steps == list(range(1, STEPS + 1))
    assert "all is logged and W&B had not begun" in run.output
    assert "The run goes on; metrics.jsonl has every step." in run.output
    assert "wandb sync " in run.output
    rows = [history["item"] for history in of_type(run.records(), "history")]
    assert [row["step"] for row in rows if "policy/loss" in row] == run.steps  # what was logged meanwhile, too
    assert KEY not in run.output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
