"""Run the project's commands as a user does, and see what they leave behind."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

ROOT = Path(__file__).parents[2]
MARK = "RING_RAY_TEST_MARK"  # an environment variable that every descendant inherits, whoever adopts it


def heed_interrupts() -> None:
    """In the child: a shell that starts tests in the background has them ignore SIGINT, which children inherit."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def marked(mark: str) -> list[psutil.Process]:
    """Processes that were started with ``MARK=mark`` in their environment, and what those started."""

    def mark_of(process: psutil.Process) -> str | None:
        try:
            return process.environ().get(MARK)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return None

    return [process for process in psutil.process_iter() if process.pid != os.getpid() and mark_of(process) == mark]


def wait_for(process: "subprocess.Popen[str]", text: str) -> str:
    """The first line with ``text`` that the process prints from now on."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if text in line:
            return line
    raise AssertionError(f"the command ended before it printed {text!r}:\n{''.join(seen)}")


@dataclass(frozen=True)
class Finished:
    status: int
    output: str
    left_over: list[str]  # command lines of descendants that were still there


class Command:
    """``python ARGS`` in its own session; what it prints goes to ``output``, by default to a pipe."""

    def __init__(self, *args: str, output: IO[str] | None = None) -> None:
        self.mark = f"{os.getpid()}-{id(self)}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "WANDB_"))}
        self.process = subprocess.Popen(
            [sys.executable, *args],
            cwd=ROOT,
            env=environment | {MARK: self.mark},
            stdout=output or subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )

    def wait_for(self, text: str) -> str:
        """See `wait_for`."""
        return wait_for(self.process, text)

    def interrupt(self) -> None:
        """What Ctrl-C does: SIGINT to the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def descendants(self) -> list[psutil.Process]:
        return marked(self.mark)

    def finish(self, timeout: float = 280) -> Finished:
        try:
            output, _ = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            output, _ = self.process.communicate()
            raise AssertionError(f"the command hung; it had printed:\n{output}") from None
        _, alive = psutil.wait_procs(
            self.descendants(), timeout=20
        )  # Ray's own processes end shortly after their driver
        left_over = [command_line(process) for process in alive]
        for process in alive:
            process.kill()
        return Finished(self.process.returncode, output or "", left_over)


def train(*overrides: str) -> Finished:
    return Command("jobs/train.py", *overrides).finish()
