"""Sweeps through a real job server: cheap commands first, then the real thing."""

import json
import os
import shlex
import signal
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread

import psutil
import pytest
import yaml
from omegaconf import OmegaConf

from ring_ray.config import ClusterConfig, RoleResources, RunConfig
from ring_ray.sweep import JobRecord, SweepJob, launch_sweep
from tests.integration.commands import Command
from tests.integration.local_cluster import local_cluster
from tests.integration.test_train import SMALL

MARK = "RING_RAY_SWEEP_TEST"
NO_ROLE = RoleResources(cpus=0.01)


@pytest.fixture
def own_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster is named, and the processes of the one that the sweep starts bear a mark."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(MARK, str(tmp_path))


def marked(tmp_path: Path) -> list[psutil.Process]:
    """Processes that the sweep's cluster has started and that are still there."""
    return [process for process in psutil.process_iter() if _mark(process) == str(tmp_path)]


def _mark(process: psutil.Process) -> str | None:
    if process.pid == os.getpid():
        return None
    try:
        return process.environ().get(MARK)
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None


def assert_nothing_left(tmp_path: Path) -> None:
    _, alive = psutil.wait_procs(marked(tmp_path), timeout=20)
    left_over = [" ".join(process.cmdline()) for process in alive]
    for process in alive:
        process.kill()
    assert left_over == []


def job(number: int, directory: Path, script: str, *, cpus: float = 0.01) -> SweepJob:
    """A shell script in place of a run; with ``$DIRECTORY/done`` it leaves a result."""
    own = directory / str(number)
    own.mkdir(exist_ok=True)
    run = RunConfig(
        seed=number,
        cluster=ClusterConfig(policy=RoleResources(cpus=cpus), rollout=NO_ROLE, reward=NO_ROLE, buffer=NO_ROLE),
    )
    OmegaConf.save(OmegaConf.structured(run), own / "config.yaml")
    return SweepJob(
        number=number,
        name=f"sweep {number}",
        overrides=(f"seed={number}",),
        directory=own,
        command=f"cd {shlex.quote(str(own))} && {script}",
        config=run,
    )


DONE = """echo '{"accuracy": {"rl": {"value": 0.5}}}' > summary.json"""


def launched(jobs: list[SweepJob]) -> tuple[JobRecord, ...]:
    return launch_sweep(jobs, address=None, working_dir=None, max_parallel=None, poll_seconds=0.2)


@pytest.mark.usefixtures("own_cluster")
def test_jobs_of_a_sweep_run_fail_and_are_kept(tmp_path: Path) -> None:
    """Two at a time at most: each asks for more than a third of the cores."""
    cores = float(os.cpu_count() or 1)
    busy = 'mkdir "../busy-$$" && ls -d ../busy-* | wc -l >> ../together; sleep 0.5; rmdir "../busy-$$"'
    jobs = [
        job(0, tmp_path, f"{busy}; {DONE}", cpus=0.4 * cores),
        job(1, tmp_path, f"{busy}; echo progress; echo 'error: seed=1: no luck' >&2; exit 2", cpus=0.4 * cores),
        job(2, tmp_path, f"{busy}; {DONE}", cpus=0.4 * cores),
        job(3, tmp_path, DONE, cpus=2 * cores),
    ]
    records = launched(jobs)
    assert [record.state for record in records] == ["done", "failed", "done", "failed"]
    assert records[1].error == "error: seed=1: no luck"
    assert "cluster.policy" in records[3].error
    assert max(map(int, (tmp_path / "together").read_text().split())) <= 2
    again = launched([jobs[0], job(1, tmp_path, DONE), jobs[2]])
    assert [record.state for record in again] == ["kept", "done", "kept"]
    assert_nothing_left(tmp_path)


@pytest.mark.usefixtures("own_cluster")
def test_a_directory_is_uploaded_for_the_jobs_to_run_in(tmp_path: Path) -> None:
    (upload := tmp_path / "upload").mkdir()
    (upload / "greeting").write_text("hello")
    uploaded = job(0, tmp_path, "")
    command = f"pwd > {uploaded.directory}/place && cp greeting {uploaded.directory}"
    (record,) = launch_sweep(
        [replace(uploaded, command=command)], address=None, working_dir=str(upload), max_parallel=1, poll_seconds=0.2
    )
    assert record.state == "done", record.error
    assert (uploaded.directory / "greeting").read_text() == "hello"
    assert (uploaded.directory / "place").read_text().strip() != str(upload)
    assert_nothing_left(tmp_path)


def interrupt_once_there(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.usefixtures("own_cluster")
def test_an_interrupted_sweep_stops_its_jobs_and_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    """The running job gets to tidy up, the queued one is not started."""
    cores = float(os.cpu_count() or 1)
    tidy = "trap 'touch tidied; exit 1' TERM; touch started; while true; do sleep 0.1; done"
    jobs = [job(0, tmp_path, DONE), job(1, tmp_path, tidy, cpus=0.9 * cores), job(2, tmp_path, DONE, cpus=0.9 * cores)]
    watch = Thread(target=interrupt_once_there, args=(tmp_path / "1" / "started",))
    watch.start()
    with pytest.raises(KeyboardInterrupt):
        launched(jobs)
    watch.join()
    assert (tmp_path / "1" / "tidied").exists()
    assert not (tmp_path / "2" / "summary.json").exists()
    assert_nothing_left(tmp_path)
    records = launched([jobs[0], job(1, tmp_path, DONE), jobs[2]])
    assert [record.state for record in records] == ["kept", "done", "done"]
    assert_nothing_left(tmp_path)


@pytest.mark.timeout(600)  # two sweeps
def test_a_sweep_on_a_running_cluster_with_one_job_that_fails(tmp_path: Path) -> None:
    command = (
        "python", "jobs/train.py", "-m", *SMALL, "sft.enabled=never", "rollout.max_response_tokens=24,100000",
        "hydra/launcher=ray_job", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${hydra.job.num}",
    )  # fmt: skip
    with local_cluster() as cluster:
        sweep = cluster.run(*command, timeout=400)
        assert sweep.returncode == 1, sweep.stdout
        assert "Traceback" not in sweep.stdout
        assert "2 jobs: 1 done, 1 failed" in sweep.stdout
        assert "error: rollout.max_response_tokens" in sweep.stdout
        summary = json.loads((tmp_path / "0" / "summary.json").read_text())
        assert f"accuracy {summary['accuracy']['rl']['value']:.3f}" in sweep.stdout
        assert not (tmp_path / "1" / "summary.json").exists()
        tracking = yaml.safe_load((tmp_path / "0" / "config.yaml").read_text())["tracking"]
        assert (tracking["group"], tracking["job_number"]) == (tmp_path.name, 0)
        assert tracking["overrides"] == [*SMALL, "sft.enabled=never"]  # which have the same length of responses
        assert cluster.listed("actors", "ALIVE") == []
        again = cluster.run(*command)
        assert "2 jobs: 1 failed, 1 kept" in again.stdout
        assert json.loads((tmp_path / "0" / "summary.json").read_text()) == summary


def test_ctrl_c_ends_a_real_sweep_cleanly(tmp_path: Path) -> None:
    command = Command(
        "jobs/train.py", "-m", *SMALL, "seed=0,1", "train.steps=500", "hydra/launcher=ray_job",
        f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${hydra.job.num}",
    )  # fmt: skip
    command.wait_for("job 0  running")
    deadline = time.monotonic() + 200
    while not (tmp_path / "0" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.5)
    command.interrupt()
    run = command.finish()
    assert run.status == 130, run.output
    assert "Traceback" not in run.output
    assert run.left_over == []
