"""Runs as jobs of a real Ray cluster of two nodes: submit, follow, stop, resubmit; what is left afterwards."""

import re
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.integration.local_cluster import LocalCluster, local_cluster
from tests.integration.test_train import SMALL, read_steps

# Policy, engine and reference fill the first node, so that buffer and reward worker get the second.
QUICK = (*SMALL, "sft.enabled=never", "evaluation.prompts=2", "cluster.policy.cpus=1.25")
NAMES = "policy rank|rollout engine|reference|reward worker|buffer"
ENGINES = r"EngineCore|^ray::(Policy|Rollout|Reward|Reference|Buffer)Worker"


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster(2, 1) as cluster:
        yield cluster


def follow(submission: "subprocess.Popen[str]", text: str) -> None:
    """Read the log that is followed up to a line with ``text``."""
    assert submission.stdout is not None
    seen = []
    for line in submission.stdout:
        seen.append(line)
        if text in line:
            return
    raise AssertionError(f"the job ended before its log had {text!r}:\n{''.join(seen)}")


def assert_nothing_runs(cluster: LocalCluster) -> None:
    assert cluster.wait_until_gone(ENGINES) == []
    assert cluster.listed("actors", "ALIVE") == []
    assert cluster.listed("placement_groups", "CREATED") == []


def test_submit_stop_and_resubmit(cluster: LocalCluster) -> None:
    run_dir = cluster.home / "ring_ray" / "outputs" / "quickstart"  # where a job's results go by default
    submission = cluster.popen("jobs/submit.sh", "--id", "stopped", *QUICK, "train.steps=500")
    follow(submission, "step 2/500")
    names = ["buffer 0", "policy rank 0", "reference 0", "reward worker 0", "rollout engine 0"]
    # All but the archive, which starts when there is something to save.
    ours = [actor for actor in cluster.listed("actors", "ALIVE") if re.match(NAMES, actor["name"])]
    assert sorted(actor["name"] for actor in ours) == sorted(actor["repr_name"] for actor in ours) == names
    node = {actor["name"]: actor["node_id"] for actor in ours}
    assert node["policy rank 0"] == node["rollout engine 0"] != node["buffer 0"] == node["reward worker 0"]
    assert cluster.processes("EngineCore")

    assert cluster.run("ray", "job", "stop", "stopped").returncode == 0
    output, _ = submission.communicate(timeout=60)
    assert submission.returncode == 143, output
    assert "Traceback" not in output
    assert "interrupted" in output
    assert_nothing_runs(cluster)
    assert len(read_steps(run_dir)) >= 2
    assert (run_dir / "report.html").exists()

    again = cluster.run("ray", "job", "submit", "--working-dir", ".", "--", "python", "jobs/train.py", *QUICK)
    assert again.returncode == 0, again.stdout
    assert "step 3/3" in again.stdout
    assert [step["step"] for step in read_steps(run_dir)] == [1, 2, 3]
    assert (run_dir / "summary.json").exists()
    assert_nothing_runs(cluster)


def test_a_killed_driver_leaves_nothing_behind(cluster: LocalCluster, tmp_path: Path) -> None:
    submission = cluster.popen("jobs/submit.sh", *QUICK, "train.steps=500", f"hydra.run.dir={tmp_path}")
    follow(submission, "step 1/500")
    for driver in cluster.processes(r"^python jobs/train\.py"):
        driver.kill()
    output, _ = submission.communicate(timeout=60)
    assert submission.returncode not in (0, 143), output
    assert_nothing_runs(cluster)


def test_a_mistake_is_the_submissions_status(cluster: LocalCluster) -> None:
    mistakes = {
        "algo.token_budget=-1": "error: algo.token_budget=-1",
        "hydra.run.dir=outputs/here": "error: hydra.run.dir=",
        "cluster.policy.cpus=64": "error: the cluster can't hold this run",
    }
    submissions = {override: cluster.popen("jobs/submit.sh", *QUICK, override) for override in mistakes}
    for override, submission in submissions.items():
        output, _ = submission.communicate(timeout=200)
        assert submission.returncode == 2, output
        assert mistakes[override] in output
        assert "Traceback" not in output


def test_driver_and_actors_import_the_uploaded_code(cluster: LocalCluster, tmp_path: Path) -> None:
    (tmp_path / "ring_ray").mkdir()
    (tmp_path / "ring_ray" / "__init__.py").write_text("COLOUR = 'green'\n")
    (tmp_path / "main.py").write_text(
        "import ray\nfrom ring_ray import COLOUR\n\n"
        "@ray.remote\ndef colour():\n    from ring_ray import COLOUR\n    return COLOUR\n\n"
        "print('driver', COLOUR, 'worker', ray.get(colour.remote()))\n"
    )
    found = cluster.run("ray", "job", "submit", "--working-dir", str(tmp_path), "--", "python", "main.py")
    assert "driver green worker green" in found.stdout


def test_without_the_token_nothing_is_told(cluster: LocalCluster) -> None:
    stranger = replace(cluster, environment=cluster.environment | {"RAY_AUTH_TOKEN": "0" * 64})
    found = stranger.run("jobs/submit.sh", *QUICK)
    assert found.returncode != 0
    assert "token" in found.stdout
