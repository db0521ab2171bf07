"""What checkpoints cost a step, and how long the default job takes to recover from each kind of fault.

    python -m tests.benchmarks.bench_recovery [--cycles 8] [--rounds 3] [--kinds driver engine ...] [OVERRIDE ...]

Checkpoints: a run that saves itself after every fourth step. In one cycle the first step ends with a checkpoint being
taken, the second runs while it is written, the third and the fourth are left alone; so both sides take turns within
seconds. What one checkpoint costs is the first two less the other two; the first cycle warms up and is not counted.

Recovery: a run that saves itself after every fifth step, in which one of each kind gets SIGKILL, ``--rounds`` times. Of
each the run's own time, from detection to made good (faults.jsonl), and what is seen from outside: the longest time
between two reported steps, from the last before the kill on, less a step as it normally is. A driver is started again
at once by the same command. After the death of a policy rank or the buffer, as of the driver, the steps since the last
checkpoint are to be taken again, which is not in these times.
"""

import argparse
import random
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.run import SupervisedRun, json_lines
from tests.chaos.victims import KINDS

CYCLE = 4
DEFAULT_EVERY = 20


def checkpoint_overhead(directory: Path, cycles: int, overrides: Sequence[str]) -> None:
    steps = CYCLE * (cycles + 2)
    settings = (f"hydra.run.dir={directory}", f"train.steps={steps}", f"checkpoint.every={CYCLE}", *overrides)
    with SupervisedRun(directory, "jobs/train.py", *settings) as run:
        run.until_finished()
    rows = {row["step"]: row for row in json_lines(directory / "metrics.jsonl")}
    seconds = {step: row["perf/step_seconds"] for step, row in rows.items()}
    saved = range(2 * CYCLE, steps, CYCLE)
    plain = statistics.median(seconds[step + offset] for step in saved for offset in (2, 3))
    costs = [seconds[step] + seconds[step + 1] - seconds[step + 2] - seconds[step + 3] for step in saved]
    cost = statistics.median(costs)
    waited = statistics.median(rows[step]["perf/checkpoint_seconds"] for step in saved)
    print(f"a step without a checkpoint   {plain:.2f} s")
    print(f"perf/checkpoint_seconds       {waited:.3f} s")
    print(f"a checkpoint costs            {cost:.2f} s ({min(costs):.2f} to {max(costs):.2f}, {len(costs)} cycles)")
    for every in (1, DEFAULT_EVERY):
        print(f"step, checkpoint.every={every:<7}{1 + cost / every / plain:.3f} x a step without", flush=True)


def recovery(directory: Path, rounds: int, kinds: Sequence[str], overrides: Sequence[str]) -> None:
    endless = ("train.steps=100000", "checkpoint.every=5")
    chance = random.Random(0)
    inside: dict[str, list[float]] = {kind: [] for kind in kinds}
    with SupervisedRun(directory, "jobs/train.py", f"hydra.run.dir={directory}", *endless, *overrides) as run:
        run.wait_for_steps(3)
        for kind in [*kinds] * rounds:
            inside[kind] += recovery_seconds(run, kind, chance)
    step = statistics.median(row["perf/step_seconds"] for row in json_lines(directory / "metrics.jsonl"))
    print(f"a step as it normally is      {step:.2f} s")
    print(f"{'killed':<12}{'detection to made good':>28}{'without a step, less a step':>34}")
    for kind in kinds:
        outside = [kill.stall_seconds - step for kill in run.kills if kill.kind == kind]
        print(f"{kind:<12}{spread(inside[kind]):>28}{spread(outside):>34}")
    if run.collapses:
        print(f"the driver gave up {run.collapses} times and was started again")


def recovery_seconds(run: SupervisedRun, kind: str, chance: random.Random) -> list[float]:
    """What the run says of its recovery from the death of one of ``kind``; nothing where that was the driver."""

    def faults() -> list[float]:
        return [fault["seconds"] for fault in json_lines(run.directory / "faults.jsonl")]

    run.until(lambda: kind in run.victims())
    before, collapses = len(faults()), run.collapses
    kill = run.kill(kind, chance.choice(run.victims()[kind]))
    if kind != "driver":
        run.until(lambda: len(faults()) > before or run.collapses > collapses)
    run.wait_for_progress(kill)
    return faults()[before:]


def spread(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    return f"{statistics.median(seconds):.1f} s ({min(seconds):.1f}-{max(seconds):.1f}, n={len(seconds)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=8, help="of four steps, that are timed; 0 for none")
    parser.add_argument("--rounds", type=int, default=3, help="kills of each kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("overrides", nargs="*", help="of the job's config; after --kinds put -- before them")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.cycles:
            checkpoint_overhead(Path(folder) / "checkpoints", args.cycles, args.overrides)
        recovery(Path(folder) / "recovery", args.rounds, args.kinds, args.overrides)


if __name__ == "__main__":
    main()
