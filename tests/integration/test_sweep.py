"""Sweeps through a real job server: cheap commands first, then the real thing."""

import json
import os
import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import psutil
import pytest
import yaml
from omegaconf import OmegaConf

from ring_ray.config import ClusterConfig, RoleResources, RunConfig
from ring_ray.sweep import JobRecord, SweepJob, launch_sweep
from tests.integration.commands import MARK, Command, command_line, marked
from tests.integration.local_cluster import local_cluster
from tests.integration.test_train import SMALL

NO_ROLE = RoleResources(cpus=0.01)


@pytest.fixture
def own_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cluster is named, and the processes of the one that the sweep starts bear a mark."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(MARK, str(tmp_path))


def assert_nothing_left(tmp_path: Path) -> None:
    _, alive = psutil.wait_procs(marked(str(tmp_path)), timeout=20)
    left_over = [command_line(process) for process in alive]
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


def launched(jobs: list[SweepJob], upload: Path | None = None) -> tuple[JobRecord, ...]:
    working_dir = str(upload) if upload else None
    return launch_sweep(jobs, address=None, working_dir=working_dir, max_parallel=None, poll_seconds=0.2)


@pytest.mark.usefixtures("own_cluster")
def test_jobs_of_a_sweep_run_fail_and_are_kept(tmp_path: Path) -> None:
    """Two at a time at most: each asks for more than a third of the cores. One runs in what was uploaded for it."""
    cores = float(os.cpu_count() or 1)
    together = "ls -d ../busy-* | wc -l >> ../together"
    meet = "for try in $(seq 600); do [ $(ls ../met-* | wc -l) -ge 2 ] && break; sleep 0.1; done"
    busy = f'mkdir "../busy-$$" && touch "../met-$$"; {meet}; {together}; rmdir "../busy-$$"'
    jobs = [
        job(0, tmp_path, f"{busy}; {DONE}", cpus=0.4 * cores),
        job(1, tmp_path, f"{busy}; echo progress; echo 'error: seed=1: no luck' >&2; exit 2", cpus=0.4 * cores),
        job(2, tmp_path, f"{busy}; {DONE}", cpus=0.4 * cores),
        job(3, tmp_path, DONE, cpus=2 * cores),
    ]
    (upload := tmp_path / "upload").mkdir()
    (upload / "greeting").write_text("hello")
    own = jobs[0].directory
    jobs[0] = replace(jobs[0], command=f"pwd > {own}/place && cp greeting {own} && {jobs[0].command}")
    records = launched(jobs, upload)
    assert [record.state for record in records] == ["done", "failed", "done", "failed"]
    assert (own / "greeting").read_text() == "hello"
    assert (own / "place").read_text().strip() != str(upload)
    assert records[1].error == "error: seed=1: no luck"
    assert "cluster.policy" in records[3].error
    assert max(map(int, (tmp_path / "together").read_text().split())) == 2
    again = launched([jobs[0], job(1, tmp_path, DONE), jobs[2]])
    assert [record.state for record in again] == ["kept", "done", "kept"]
    assert_nothing_left(tmp_path)


@contextmanager
def interrupted_once_there(path: Path) -> Iterator[None]:
    """What Ctrl-C does, when ``path`` comes to be within the context."""
    over = Event()

    def watch() -> None:
        while not over.wait(0.1):
            if path.exists():
                os.kill(os.getpid(), signal.SIGINT)
                return

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


@pytest.mark.usefixtures("own_cluster")
def test_an_interrupted_sweep_stops_its_jobs_and_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    """The running job gets to tidy up, the queued one is not started."""
    cores = float(os.cpu_count() or 1)
    tidy = "trap 'touch tidied; exit 1' TERM; touch started; while true; do sleep 0.1; done"
    jobs = [job(0, tmp_path, DONE), job(1, tmp_path, tidy, cpus=0.9 * cores), job(2, tmp_path, DONE, cpus=0.9 * cores)]
    with pytest.raises(KeyboardInterrupt), interrupted_once_there(tmp_path / "1" / "started"):
        launched(jobs)
    assert (tmp_path / "1" / "tidied").exists()
    assert not (tmp_path / "2" / "summary.json").exists()
    assert_nothing_left(tmp_path)
    records = launched([jobs[0], job(1, tmp_path, DONE), jobs[2]])
    assert [record.state for record in records] == ["kept", "done", "done"]
    assert_nothing_left(tmp_path)


@pytest.mark.timeout(600)  # two sweeps
def test_a_sweep_on_a_running_cluster_with_one_job_that_fails(tmp_path: Path) -> None:
    quick = [*SMALL, "sft.enabled=never"]
    command = (
        "python", "jobs/train.py", "-m", *quick, "rollout.max_response_tokens=24,100000",
        "hydra/launcher=ray_job", f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${hydra.job.num}",
    )  # fmt: skip
    with local_cluster(2, 1) as cluster:
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
        assert tracking["overrides"] == quick  # which have the same length of responses
        assert cluster.listed("actors", "ALIVE") == []
        again = cluster.run(*command)
        assert "2 jobs: 1 failed, 1 kept" in again.stdout
        assert json.loads((tmp_path / "0" / "summary.json").read_text()) == summary


def test_ctrl_c_ends_a_real_sweep_cleanly(tmp_path: Path) -> None:
    command = Command(
        "jobs/train.py", "-m", *SMALL, "sft.enabled=never", "seed=0,1", "train.steps=500", "hydra/launcher=ray_job",
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
