"""Programs judged per second per core, against a bare subprocess without any isolation, for Python, C++ and Java.

    python -m tests.benchmarks.bench_sandbox [--programs 500] [--workers 1 2 3]

Both ways take turns in one run, on the same small programs, ``--workers`` at a time. One worker at a time is one core's
work: judge and program wait for each other. The bare subprocess is what a
shell would start, without limits: a fresh interpreter (as lean as the sandbox's: -I -S), or the same compiled program.
Compiling is not in the figures; its time stands on a line of its own. CPU is what all processes of either way take for
one program; the last column is how many cores the paper's 8,000 programs/s would keep busy by that.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from ring_ray.config import SandboxConfig
from ring_ray.rewards.sandbox.execution import Ending, program_limits, program_task
from ring_ray.rewards.sandbox.languages import PROGRAM, TOOLCHAINS, source_files
from ring_ray.rewards.sandbox.pool import Sandbox
from tests.integration.test_sandbox import SUMS

PAPER_PER_SECOND, STDIN, ANSWER, TURNS = 8000, b"20 22\n", b"42\n", 5
INTERPRETER = [os.path.realpath(sys.executable), "-I", "-S", "main.py"]
HEADER = "language  way      workers  programs/s  p50 ms  p99 ms  CPU ms  sandbox / bare  cores for 8,000/s"
One = Callable[[], Awaitable[bytes]]


@dataclass(frozen=True)
class Turn:
    rate: float  # programs/s
    seconds: list[float]  # of each program
    cpu_seconds: float  # of one program


async def prepare(sandbox: Sandbox, config: SandboxConfig, language: str, directory: Path) -> tuple[One, One]:
    """One program in the sandbox, and the same one bare."""
    files = source_files(language, SUMS[language])
    if language in TOOLCHAINS:
        started = time.perf_counter()
        compiled = await sandbox.compile(language, SUMS[language])
        assert compiled.ending is Ending.DONE, (compiled.reason, compiled.stderr)
        print(f"{language}: compiles in {time.perf_counter() - started:.2f} s")
        files = {PROGRAM: compiled.result}
    task = program_task(language, files, program_limits(config, language), stdin=STDIN)
    for name, content in files.items():
        (directory / name).write_bytes(content)
        (directory / name).chmod(0o700)

    async def isolated() -> bytes:
        done = await sandbox.run(task)
        assert done.ending is Ending.DONE, (done.reason, done.stderr)
        return done.stdout

    def start() -> bytes:
        words = task.command or INTERPRETER
        return subprocess.run(words, cwd=directory, input=STDIN, capture_output=True, check=True).stdout

    async def bare() -> bytes:
        return await asyncio.to_thread(start)

    return isolated, bare


def cpu_seconds() -> float:
    """Of this process and all that it has started."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:4]) for process in family)


async def timed(one: One, programs: int, workers: int) -> Turn:
    seconds, left = list[float](), iter(range(programs))

    async def work() -> None:
        for _ in left:
            started = time.perf_counter()
            answer = await one()
            assert answer == ANSWER, answer
            seconds.append(time.perf_counter() - started)

    cpu, started = cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(workers)))
    return Turn(programs / (time.perf_counter() - started), seconds, (cpu_seconds() - cpu) / programs)


async def measure(programs: int, workers: int, languages: list[str]) -> None:
    config = SandboxConfig(workers=workers)
    async with Sandbox(config) as sandbox:
        for language in languages:
            with tempfile.TemporaryDirectory() as directory:
                ways = await prepare(sandbox, config, language, Path(directory))
                turns = [[await timed(way, programs // TURNS, workers) for way in ways] for _ in range(TURNS)]
            ratio = statistics.median(isolated.rate / bare.rate for isolated, bare in turns)
            for name, results in zip(("sandbox", "bare"), zip(*turns, strict=True), strict=True):
                report(f"{language:<10}{name:<9}{workers:7}", results, f"{ratio:.2f}" if name == "sandbox" else "")


def report(name: str, turns: tuple[Turn, ...], ratio: str) -> None:
    rate = statistics.median(turn.rate for turn in turns)
    cpu = statistics.median(turn.cpu_seconds for turn in turns)
    quantiles = statistics.quantiles([second for turn in turns for second in turn.seconds], n=100)
    times = f"{quantiles[49] * 1e3:8.1f}{quantiles[98] * 1e3:8.1f}{cpu * 1e3:8.1f}"
    print(f"{name}{rate:12.1f}{times}{ratio:>16}{PAPER_PER_SECOND * cpu:19.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=500, help="of each language, each way")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3], help="programs at a time")
    parser.add_argument("--languages", nargs="+", default=["python", "cpp", "java"], choices=sorted(SUMS))
    arguments = parser.parse_args()
    print(HEADER)
    for workers in arguments.workers:
        asyncio.run(measure(arguments.programs, workers, arguments.languages))


if __name__ == "__main__":
    main()
