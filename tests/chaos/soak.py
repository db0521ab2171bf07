"""A long run of small steps, to see whether a process grows.

    python -m tests.chaos.soak [--steps 1000] [OVERRIDE ...]

At step boundaries the memory of every process of the run is read: resident (RSS), and what is its alone (USS), which is
what a leak would show in; and what is in use of /dev/shm, where Ray's object store is. Printed are the medians of the
first samples after 5 % of the steps and of the last ones, and the slope of a line through all in between. Exit status 1
if a process, or /dev/shm, grew by more than the bound.

The bound is 64 KiB a step over those steps, beyond 32 MiB for caches that are still filling. A leak that matters is of
what a step handles: the smallest batch of a real run has 8,192 tokens, of which ids, log-probs and versions alone are
96 KiB. What grows by less is a count or a name: the driver keeps the numbers of every step, some 5 KiB, for summaries.
"""

import argparse
import shutil
import statistics
import sys
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import psutil

from tests.chaos.run import RunError, SupervisedRun
from tests.chaos.victims import name_of
from tests.integration.commands import command_line
from tests.integration.test_train import SMALL

MIB = 2**20
BOUND_A_STEP, CACHES = 64 * 2**10, 32 * MIB
SAMPLES = 100  # over the whole run
WINDOW = 5  # samples that an end's median is of
SHARED = "/dev/shm"


@dataclass(frozen=True)
class Sample:
    """Bytes, after ``step``."""

    step: int
    rss: int
    uss: int


Process: TypeAlias = tuple[str, int]  # its name and number: one that is started again is another
Samples: TypeAlias = dict[Process, list[Sample]]


@dataclass(frozen=True)
class Growth:
    """Of a process from the early steps to the last; memory in bytes."""

    first: Sample
    last: Sample
    slope: float  # of USS a step

    @property
    def too_much(self) -> bool:
        return self.last.uss - self.first.uss > CACHES + BOUND_A_STEP * (self.last.step - self.first.step)


def growth(samples: list[Sample]) -> Growth:
    """Of at least two samples."""

    def middle(some: list[Sample]) -> Sample:
        steps, resident, unique = zip(*((one.step, one.rss, one.uss) for one in some), strict=True)
        return Sample(*(int(statistics.median(values)) for values in (steps, resident, unique)))

    slope, _ = statistics.linear_regression([one.step for one in samples], [one.uss for one in samples])
    window = min(WINDOW, len(samples) // 2)
    return Growth(first=middle(samples[:window]), last=middle(samples[-window:]), slope=slope)


def measure(run: SupervisedRun, samples: Samples, shared_before: int) -> None:
    step = run.last_step()
    for process in run.command.descendants():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):  # it has just ended
            memory = process.memory_full_info()
            samples[name_of(command_line(process)), process.pid].append(Sample(step, memory.rss, memory.uss))
    shared = shutil.disk_usage(SHARED).used - shared_before
    samples[SHARED, 0].append(Sample(step, shared, shared))


def show(samples: Samples, steps: int) -> list[Process]:
    """Print a table; returns who grew too much. Processes that did not live through the run are left out."""
    print(f"{'MiB':<36}{'RSS early':>10}{'RSS end':>9}{'USS early':>11}{'USS end':>9}{'USS / 100 steps':>17}")
    too_much = []
    for process, found in sorted(samples.items()):
        if found[-1].step - found[0].step < steps / 2:
            continue
        grown = growth(found)
        sizes = (grown.first.rss, grown.last.rss, grown.first.uss, grown.last.uss)
        cells = "".join(f"{size / MIB:>{width}.1f}" for size, width in zip(sizes, (10, 9, 11, 9), strict=True))
        mark = "  grew too much" if grown.too_much else ""
        print(f"{process[0]:<36}{cells}{100 * grown.slope / MIB:>17.2f}{mark}")
        too_much += [process] if grown.too_much else []
    return too_much


def main() -> int:
    args = parse()
    directory = args.directory.absolute()
    if directory.exists():
        print(f"{directory}: is there already; --directory names a new one")
        return 2
    settings = (*SMALL, f"train.steps={args.steps}", f"hydra.run.dir={directory}", *args.overrides)
    samples: Samples = defaultdict(list)
    shared_before, every = shutil.disk_usage(SHARED).used, max(1, args.steps // SAMPLES)
    try:
        with SupervisedRun(directory, "jobs/train.py", *settings, deadline=args.deadline) as run:
            going_on = run.wait_for_steps(max(1, args.steps // 20))
            while going_on and run.last_step() < args.steps:
                measure(run, samples, shared_before)
                going_on = run.wait_for_steps(every)
            run.until_finished()
    except RunError as error:
        print(f"failed: {error}")
        return 1
    too_much = show(samples, args.steps)
    if run.collapses:
        print(f"failed: the driver gave up {run.collapses} times")
    return 1 if too_much or run.collapses else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--deadline", type=float, default=600.0, help="seconds without a step that are a hang")
    parser.add_argument("--directory", type=Path, default=Path("outputs/soak"), help="the run's, a new one")
    parser.add_argument("overrides", nargs="*", help="of the job's config")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
