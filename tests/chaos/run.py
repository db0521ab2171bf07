"""A run whose driver is started again whenever it ends too early, as somebody would who watches it."""

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from tests.chaos.victims import at_work, processes
from tests.integration.commands import Command

LOOK_SECONDS = 0.1  # from one look at the run to the next
TAIL_BYTES = 1 << 16  # of metrics.jsonl: more than its longest line


class RunError(AssertionError):
    """The run does not come to its end."""


@dataclass
class Kill:
    kind: str
    step: int  # the last that was reported before
    phase: str  # what the run was doing
    # Longest time between two reported steps, from the last before the kill until the next kill; 0 if there came none.
    stall_seconds: float = 0.0


class SupervisedRun(AbstractContextManager["SupervisedRun"]):
    """Attributes:

    directory: the run's.
    kills: so far.
    restarts: how often the driver was started again after a kill of it.
    collapses: how often the driver ended by itself, with an error, and was started again.
    left_over: processes that a driver left behind, by command line.
    steps_seen: how often a step was reported, those that were reported again included.
    startup_seconds: from its start to the first step it reported, of the last driver that did; None before.
    finished: the driver came to its end.
    """

    def __init__(self, directory: Path, *args: str, deadline: float = 300.0) -> None:
        """``python ARGS`` is the command. It is a failure if no step is reported for ``deadline`` seconds."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # else it would leave the run behind
        self.directory = directory
        self.kills: list[Kill] = []
        self.restarts = self.collapses = self.steps_seen = 0
        self.left_over: list[str] = []
        self.startup_seconds: float | None = None
        self.finished = False
        self._args, self._deadline = args, deadline
        directory.mkdir(parents=True, exist_ok=True)
        self._output = (directory / "output.log").open("a", encoding="utf-8")
        self._step, self._futile = self.last_step(), 0
        self._stepped = self._reported = time.monotonic()  # the first also when the driver was started again
        self.command = self._start()

    def _start(self) -> Command:
        self._started, self._starting = time.monotonic(), True
        return Command(*self._args, output=self._output)

    def last_step(self) -> int:
        """The last step that metrics.jsonl has, 0 without one."""
        with suppress(FileNotFoundError), (self.directory / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().splitlines(keepends=True)
            whole = [line for line in lines if line.endswith(b"\n")]
            return int(json.loads(whole[-1])["step"]) if whole else 0
        return 0

    def until(self, happened: Callable[[], bool]) -> bool:
        """Watch the run until something has ``happened``; False if it finished before.

        Raises `RunError` where it does not get on.
        """
        while not self.finished and not happened():
            self._look()
            time.sleep(LOOK_SECONDS)
        return not self.finished

    def until_finished(self) -> None:
        self.until(lambda: False)

    def wait(self, seconds: float) -> bool:
        """Watch the run for some time; False if it finished."""
        end = time.monotonic() + seconds
        return self.until(lambda: time.monotonic() >= end)

    def wait_for_age(self, seconds: float) -> bool:
        """Watch the run until so long after the driver was last started; False if it finished before."""
        end = self._started + seconds
        return self.until(lambda: time.monotonic() >= end)

    def wait_for_steps(self, count: int) -> bool:
        """Watch the run until ``count`` more steps were reported; False if it finished before."""
        enough = self.steps_seen + count
        return self.until(lambda: self.steps_seen >= enough)

    def wait_for_progress(self, kill: Kill) -> bool:
        """Watch the run until it has reported a step of its own after ``kill``, and is further than it was then."""
        enough = self.steps_seen + 2  # the first may have been all but reported
        return self.until(lambda: self.steps_seen >= enough and self._step > kill.step)

    def kill(self, kind: str, victim: psutil.Process) -> Kill:
        """SIGKILL; a driver is started again once its processes are gone, unless it had just come to its end."""
        kill = Kill(kind=kind, step=self._step, phase=self._phase())
        with suppress(psutil.NoSuchProcess):  # it may just have ended by itself: then that is what is recovered from
            victim.kill()
        if kind == "driver" and not self._ended():
            self.restarts += 1
            self._start_again()
        if not self.finished:
            self.kills.append(kill)
        return kill

    def victims(self) -> dict[str, list[psutil.Process]]:
        """The processes that can be killed now, by kind."""
        return processes(self.command)

    def _look(self) -> None:
        now, step = time.monotonic(), self.last_step()
        if step > self._step:
            self.steps_seen += step - self._step
            if self.kills:
                self.kills[-1].stall_seconds = max(self.kills[-1].stall_seconds, now - self._reported)
            self._stepped = self._reported = now
            self._futile = 0
            if self._starting:
                self._starting, self.startup_seconds = False, now - self._started
        self._step = step
        if self.command.process.poll() is not None:
            if not self._ended():
                self.collapses += 1
                self._futile += 1
                if self._futile == 3:
                    raise RunError(f"the driver ended 3 times before it reported a step:\n{self.last_output()}")
                self._start_again()
        elif now - self._stepped > self._deadline:
            raise RunError(f"no step was reported for {self._deadline:g} s:\n{self.last_output()}")

    def _phase(self) -> Literal["start-up", "checkpoint", "sync", "update", "generation"]:
        if self._starting:
            return "start-up"
        working = at_work(self.command)
        steps = (self.directory / "checkpoints").glob("step-*")
        if "policy.snapshot" in working or any(not (step / "manifest.json").exists() for step in steps):
            return "checkpoint"
        if working & {"policy.start_parcels", "policy.next_parcel", "rollout.receive", "rollout.resume"}:
            return "sync"
        return "update" if working & {"policy.update", "reference.logprobs"} else "generation"

    def _ended(self) -> bool:
        """Wait until the driver and all its processes are gone; whether the run is finished."""
        ended = self.command.finish()
        self.left_over += ended.left_over
        self.finished = ended.status == 0
        return self.finished

    def _start_again(self) -> None:
        self._stepped = time.monotonic()
        self.command = self._start()

    def last_output(self) -> str:
        return (self.directory / "output.log").read_text(encoding="utf-8")[-4000:]

    def __exit__(self, *error: object) -> None:
        if not self.finished:
            self.command.process.kill()
            self.command.finish()
        self._output.close()


def json_lines(path: Path) -> list[dict[str, Any]]:
    """What is in all whole lines; nothing where there is no such file."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]
