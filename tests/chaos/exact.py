"""The driver is killed at random moments, and the run ends with the very parameters of one that was left alone.

    python -m tests.chaos.exact --kills 20 --seed S [--steps 100] [OVERRIDE ...]

First a run that nobody touches, with the settings under which nothing depends on who is faster (docs/checkpoints.md);
then the same run, whose driver gets SIGKILL and is started again by the same command. About one kill in four comes at
a moment of the start-up, cold start included where no checkpoint was made yet, the others at one of the driver's share
of the steps that are left, whatever the run is doing then. The share shrinks as the run gets on, so that every kill
finds it unfinished. Compared are the rows of metrics.jsonl but for their times, bit by bit the final parameters, and
the accuracy. Exit status 0 only if all are the same after as many kills.
"""

import argparse
import json
import random
import statistics
import sys
from collections import Counter
from pathlib import Path

import torch

from tests.chaos.run import RunError, SupervisedRun, json_lines
from tests.integration.test_resume import EXACT, reported, weights

# Sums of one digit: a short cold start is enough for rewards that differ, and so for a gradient that comes of them.
SETTINGS = (
    *EXACT, "data.max_digits=1", "sft.max_steps=100", "sft.probe_after=30", "sft.probe_every=10",
    "sft.probe_prompts=64", "sft.target_accuracy=0.1", "checkpoint.every=2",
)  # fmt: skip
STARTING = 0.25  # share of the kills that come during start-up


def main() -> int:
    args = parse()
    directory = (args.directory or Path(f"outputs/exact-{args.seed}")).absolute()
    if directory.exists():
        print(f"{directory}: is there already; --directory names a new one")
        return 2
    whole, broken = directory / "whole", directory / "broken"

    def start(run_dir: Path) -> SupervisedRun:
        settings = (*SETTINGS, f"train.steps={args.steps}", f"hydra.run.dir={run_dir}", *args.overrides)
        return SupervisedRun(run_dir, "jobs/train.py", *settings, deadline=args.deadline)

    try:
        with start(whole) as run:
            run.until_finished()
        rows = json_lines(whole / "metrics.jsonl")
        told_apart = sum(row["c3po/zero_advantage_fraction"] < 1 for row in rows)
        print(f"uninterrupted: rewards told responses apart in {told_apart} of {len(rows)} steps", flush=True)
        assert run.startup_seconds is not None
        pace = (run.startup_seconds, statistics.median(row["perf/step_seconds"] for row in rows))
        with start(broken) as run:
            kill_at_random(run, args.steps, args.kills, pace, random.Random(args.seed))
    except RunError as error:
        print(f"failed: {error}")
        return 1
    found = differences(whole, broken)
    phases = Counter(kill.phase for kill in run.kills)
    print(f"{len(run.kills)} kills: " + ", ".join(f"{phase} {count}" for phase, count in phases.items()))
    print("\n".join(found) or "rows, parameters and accuracy are the same")
    return 0 if not found and told_apart and len(run.kills) == args.kills else 1


def kill_at_random(
    run: SupervisedRun, steps: int, kills: int, pace: tuple[float, float], chance: random.Random
) -> None:
    """``pace``: seconds of the start-up, as far as it is not known of a run that is resumed, and of a step."""
    startup, step = pace
    for left in range(kills, 0, -1):
        share = (steps - run.last_step()) / (left + 1)
        if chance.random() < STARTING:
            going_on = run.wait_for_age(chance.uniform(0, run.startup_seconds or startup))
        else:
            going_on = run.wait_for_steps(1) and run.wait(chance.uniform(0, share * step))
        if not going_on:
            return
        kill = run.kill("driver", run.victims()["driver"][0])
        print(f"kill {len(run.kills)}: after step {kill.step}, during {kill.phase}", flush=True)
    run.until_finished()


def differences(whole: Path, broken: Path) -> list[str]:
    """What is not the same in both runs' directories."""
    rows, others = reported(whole), reported(broken)
    found = [] if len(rows) == len(others) else [f"{len(rows)} and {len(others)} steps"]
    found += [
        f"step {row['step']}: {name} is {row[name]} and {other.get(name)}"
        for row, other in zip(rows, others, strict=False)
        for name in row
        if row[name] != other.get(name)
    ]
    expected, parameters = weights(whole), weights(broken)
    found += [f"parameters: {name}" for name in expected if not torch.equal(expected[name], parameters[name])]
    accuracy, other_accuracy = (json.loads((run / "summary.json").read_text())["accuracy"] for run in (whole, broken))
    return found + ([f"accuracy: {accuracy} and {other_accuracy}"] if accuracy != other_accuracy else [])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, required=True, help="decides when")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--deadline", type=float, default=600.0, help="seconds without a step that are a hang")
    parser.add_argument("--directory", type=Path, help="of both runs, a new one: by default outputs/exact-SEED")
    parser.add_argument("overrides", nargs="*", help="of the job's config")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
