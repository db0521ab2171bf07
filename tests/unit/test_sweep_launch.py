"""A sweep from its jobs to their records, and what is shown meanwhile."""

import io
import shlex
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ring_ray.config import ConfigError
from ring_ray.sweep import command, launch_sweep
from ring_ray.sweep.launch import follow, git_variables, interruptible
from ring_ray.sweep.scheduler import Sweep
from ring_ray.sweep.view import SweepView
from tests.unit.sweeps import Clock, Cluster, config, leave_result, make_job, states

OPTIONS: dict[str, Any] = {"address": None, "working_dir": None, "max_parallel": None, "poll_seconds": 1.0}


def test_the_command_survives_the_shell() -> None:
    overrides = ["hydra.run.dir='/a b/seed=1,algo=$x'", "model.path=it's"]
    here = command("/venv/bin/python", overrides, Path("/home/my project"))
    change, _, run = here.partition(" && ")
    assert shlex.split(change) == ["cd", "/home/my project"]
    assert shlex.split(run)[:2] == ["exec", "/venv/bin/python"]
    assert Path(shlex.split(run)[2]).samefile("jobs/train.py")
    assert shlex.split(run)[3:] == overrides
    assert shlex.split(command("python", overrides, None)) == ["exec", "python", "jobs/train.py", *overrides]


def test_a_copy_knows_the_commit_but_no_password_of_its_remote(tmp_path: Path) -> None:
    assert git_variables(tmp_path) == {}
    for arguments in (
        ["init", "--quiet"],
        ["remote", "add", "origin", "https://me:secret@example.org/ring_ray.git"],
        ["-c", "user.name=me", "-c", "user.email=me@example.org", "commit", "--quiet", "--allow-empty", "-m", "first"],
    ):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True)
    found = git_variables(tmp_path)
    assert len(found.pop("WANDB_GIT_COMMIT")) == 40
    assert found == {"WANDB_GIT_REMOTE_URL": "https://example.org/ring_ray.git"}


def test_without_a_terminal_every_change_is_one_line(tmp_path: Path) -> None:
    cluster, clock, output = Cluster(1.5), Clock(), io.StringIO()
    jobs = [make_job(0, directory=tmp_path), make_job(1, config(9.0), tmp_path)]
    sweep = Sweep(jobs, cluster, clock=clock)
    with SweepView(sweep, Console(file=output)) as view:
        view.show()
        sweep.advance()
        view.show()
        view.show()
        clock.now = 90
        leave_result(tmp_path / "0", config(), 0.625)
        (tmp_path / "0" / "metrics.jsonl").write_text('{"step": 100, "reward/mean": 0.75}\n')
        cluster.end(0)
        sweep.advance()
        view.show()
        assert view.summary() == "2 jobs: 1 done, 1 failed"
    lines = output.getvalue().splitlines()
    assert lines[0] == "job 0  queued  seed=0"
    assert lines[1] == "job 1  failed  seed=1"
    assert lines[2] == "job 1 failed:"
    assert lines[3] == "  the cluster can't hold this run"
    assert [line for line in lines if line.startswith("job 0")][1:] == [
        "job 0  running  seed=0  0.0 min",
        "job 0  done  seed=0  1.5 min  step 100/100  reward 0.750  accuracy 0.625",
    ]


def test_on_a_terminal_there_is_a_table(tmp_path: Path) -> None:
    leave_result(tmp_path / "0", config(), 0.625)
    output = io.StringIO()
    sweep = Sweep([make_job(0, directory=tmp_path), make_job(1)], Cluster(2.0))
    with SweepView(sweep, Console(file=output, force_terminal=True, width=120)) as view:
        view.show()
    for text in ("2 jobs: 1 queued, 1 kept", "overrides", "seed=1", "0.625"):
        assert text in output.getvalue()


def quiet_view(sweep: Sweep) -> SweepView:
    return SweepView(sweep, Console(quiet=True))


def test_an_error_of_the_sweep_leaves_no_job_running() -> None:
    cluster = Cluster(2.0)
    sweep = Sweep([make_job(0)], cluster)

    def pause() -> bool:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        follow(sweep, quiet_view(sweep), pause)
    assert cluster.log == {"run 0": "asked to stop"}


def test_an_interrupted_sweep_is_followed_until_its_jobs_have_ended() -> None:
    cluster = Cluster(2.0)
    sweep = Sweep([make_job(0), make_job(1)], cluster)
    pauses = []

    def pause() -> bool:
        pauses.append(states(sweep))
        if len(pauses) == 3:
            cluster.end(0, "stopped")
        return len(pauses) == 1

    follow(sweep, quiet_view(sweep), pause)
    assert sweep.stopped
    assert len(pauses) == 3
    assert states(sweep) == ["failed", "queued"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_pause_and_nothing_else_until_it_comes_again(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with interruptible(1e-3) as pause:
        assert not pause()
    with interruptible(600.0) as pause:
        signal.raise_signal(number)
        assert pause()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(("option", "value"), [("max_parallel", 0), ("poll_seconds", 0.0)])
def test_an_option_that_makes_no_sense_is_refused_by_name(option: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"hydra\.launcher\.{option}={value}"):
        launch_sweep([make_job(0)], **(OPTIONS | {option: value}))


def test_jobs_that_would_write_over_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"hydra\.sweep\.subdir='/nowhere/0'"):
        launch_sweep([make_job(0), make_job(0)], **OPTIONS)
