"""Programs judged per second per core, against a bare subprocess without any isolation, for Python, C++ and Java.

    python -m tests.benchmarks.bench_sandbox [--programs 500] [--workers 2]

Both ways take turns in one run, on the same small programs, ``--workers`` at a time. The bare subprocess is what a
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
HEADER = "language  way        programs/s  per core   p50 ms   p99 ms   CPU ms  sandbox / bare  cores for 8,000/s"
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
        return (await sandbox.run(task)).stdout

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
            assert await one() == ANSWER
            seconds.append(time.perf_counter() - started)

    cpu, started = cpu_seconds(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(workers)))
    return Turn(programs / (time.perf_counter() - started), seconds, (cpu_seconds() - cpu) / programs)


async def measure(args: argparse.Namespace) -> None:
    config = SandboxConfig(workers=args.workers)
    print(HEADER)
    async with Sandbox(config) as sandbox:
        for language in args.languages:
            with tempfile.TemporaryDirectory() as directory:
                ways = await prepare(sandbox, config, language, Path(directory))
                turns = [[await timed(way, args.programs // TURNS, args.workers) for way in ways] for _ in range(TURNS)]
            ratio = statistics.median(isolated.rate / bare.rate for isolated, bare in turns)
            for name, results in zip(("sandbox", "bare"), zip(*turns, strict=True), strict=True):
                report(f"{language:<10}{name:<9}", results, args.workers, ratio if name == "sandbox" else None)


def report(name: str, turns: tuple[Turn, ...], workers: int, ratio: float | None) -> None:
    rate = statistics.median(turn.rate for turn in turns)
    cpu = statistics.median(turn.cpu_seconds for turn in turns)
    quantiles = statistics.quantiles([second for turn in turns for second in turn.seconds], n=100)
    print(
        f"{name}{rate:>12.1f}{rate / workers:>10.1f}"
        f"{quantiles[49] * 1e3:>9.1f}{quantiles[98] * 1e3:>9.1f}{cpu * 1e3:>9.1f}"
        f"{'' if ratio is None else format(ratio, '.2f'):>16}{PAPER_PER_SECOND * cpu:>19.0f}",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=int, default=500, help="of each language, each way")
    parser.add_argument("--workers", type=int, default=2, help="at a time; as many as there are cores")
    parser.add_argument("--languages", nargs="+", default=["python", "cpp", "java"], choices=sorted(SUMS))
    asyncio.run(measure(parser.parse_args()))
