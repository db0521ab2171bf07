"""A sweep from its jobs to their records, on a running cluster or on one of its own."""

import os
import re
import shlex
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from ring_ray.actors.job_server import job_server
from ring_ray.config import require
from ring_ray.sweep.scheduler import JobRecord, Sweep, SweepJob
from ring_ray.sweep.view import SweepView

ROOT = Path(__file__).parents[2]
TRAIN = Path("jobs", "train.py")


def command(python: str, arguments: Sequence[str], directory: Path | None) -> str:
    """The shell command of one run: in ``directory`` with this checkout's code, or where that is None in a copy."""
    train = "exec " + shlex.join([python, str(TRAIN if directory is None else ROOT / TRAIN), *arguments])
    return train if directory is None else f"cd {shlex.quote(str(directory))} && {train}"


def git_variables(checkout: Path) -> dict[str, str]:
    """The environment variables that tell W&B the commit of a copy without ``.git``; none where there is no commit."""

    def git(*arguments: str) -> str:
        asked = subprocess.run(["git", "-C", checkout, *arguments], check=False, capture_output=True, text=True)
        return asked.stdout.strip()

    try:
        commit, remote = git("rev-parse", "--verify", "--quiet", "HEAD"), git("remote", "get-url", "origin")
    except FileNotFoundError:  # no git on this machine
        return {}
    address = re.sub(r"//[^/@]*@", "//", remote)  # which may hold a password
    found = {"WANDB_GIT_COMMIT": commit, "WANDB_GIT_REMOTE_URL": address}
    return {name: value for name, value in found.items() if value and commit}


def launch_sweep(
    jobs: Sequence[SweepJob],
    *,
    address: str | None,
    working_dir: str | None,
    max_parallel: int | None,
    poll_seconds: float,
) -> tuple[JobRecord, ...]:
    """Run ``jobs`` on the cluster at ``address``, or on one of this machine that is gone when this returns.

    Ctrl-C and SIGTERM stop the running jobs, wait until they have ended, and raise KeyboardInterrupt. Raises
    `ConfigError` for an option that makes no sense, ConnectionError where no cluster answers at ``address``.
    """
    require(max_parallel is None or max_parallel > 0, "hydra.launcher.max_parallel", max_parallel, "must be at least 1")
    require(poll_seconds > 0, "hydra.launcher.poll_seconds", poll_seconds, "must be above 0")
    _check_directories(jobs)
    environment: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "jobs" / "runtime_env.yaml"))
    if working_dir is not None:
        environment["working_dir"] = working_dir
        environment["env_vars"] |= git_variables(Path(working_dir))
    console = Console(stderr=True)
    results = os.path.relpath(os.path.commonpath([job.directory.parent for job in jobs]))
    console.print(f"{len(jobs)} jobs; results go to {results}", soft_wrap=True, markup=False, highlight=False)
    with interruptible(poll_seconds) as pause, job_server(address, environment) as server:
        sweep = Sweep(jobs, server, max_parallel=max_parallel)
        with SweepView(sweep, console) as view:
            follow(sweep, view, pause)
            view.say(f"to compare them: python jobs/report.py {shlex.quote(results)}")
    if sweep.stopped:
        raise KeyboardInterrupt
    return sweep.records


def follow(sweep: Sweep, view: SweepView, pause: Callable[[], bool]) -> None:
    """Until nothing is active. ``pause`` lets time pass and returns whether the sweep is to be stopped."""
    try:
        while True:
            sweep.advance()
            view.show()
            if not sweep.active:
                break
            if pause():
                view.say("stopping the jobs that run; the same command goes on with what is missing")
                sweep.stop()
    finally:
        if sweep.active:  # an error of ours: nothing may be left behind
            sweep.stop()
    view.say(view.summary())


@contextmanager
def interruptible(seconds: float) -> Iterator[Callable[[], bool]]:
    """A pause of ``seconds``, which SIGINT, SIGTERM and SIGHUP end: it returns whether one came.

    The first does not raise, so that it can't break into a submission and leave a job that nobody knows. The second
    does, in case the cluster does not answer.
    """
    interruptions = SimpleQueue[None]()  # safe to fill from a signal's handler

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.default_int_handler)
        interruptions.put(None)

    def pause() -> bool:
        try:
            interruptions.get(timeout=seconds)
        except Empty:
            return False
        return True

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield pause
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_directories(jobs: Sequence[SweepJob]) -> None:
    shared = {directory: n for directory, n in Counter(job.directory for job in jobs).items() if n > 1}
    require(
        not shared,
        "hydra.sweep.subdir",
        ", ".join(map(str, shared)),
        "several jobs would write there: hydra.sweep.subdir='${hydra.job.num}' gives each its own directory",
    )
