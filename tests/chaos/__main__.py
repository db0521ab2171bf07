"""Kills processes of the default job, one after the other, and shows that not one token was lost.

    python -m tests.chaos --seed S [--steps 300] [--kills 30] [--every 10] [--kinds driver engine ...] [OVERRIDE ...]

Every few seconds a random victim gets SIGKILL: the driver, which is then started again by the same command, or one of
the run's actors or its engine process; each kind once before any comes again, and none before the run is further than
it was at the last. The driver also writes a journal of what engines returned, verifiers judged and the policy trained.
From that everything is counted again at the end, and compared with what the run says of itself: see evidence.py. What
was found is printed and written to chaos.json in the run's directory. Exit status 0 only if nothing was lost, dropped
or trained twice, every ledger is balanced, every step trained its budget, and there were enough kills.
"""

import argparse
import json
import random
import statistics
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import msgspec
from omegaconf import OmegaConf

from ring_ray.config import AlgoConfig
from tests.chaos.evidence import Evidence, evidence
from tests.chaos.journal import FILE, read_journal
from tests.chaos.run import RunError, SupervisedRun, json_lines
from tests.chaos.victims import KINDS


def torment(run: SupervisedRun, kinds: Sequence[str], every: float, chance: random.Random) -> None:
    """Kill until the run is finished. Raises `RunError` where it does not recover."""
    going_on = run.wait_for_steps(1)
    usual = {kind: len(found) for kind, found in run.victims().items()}
    for kind in shuffled(kinds, chance):
        if not going_on or not run.wait(chance.expovariate(1 / every)):
            return
        victims = run.victims().get(kind, [])
        if len(victims) > usual.get(kind, 0):
            run.left_over.append(f"{len(victims)} processes of kind {kind}, not {usual.get(kind, 0)}")
        if not victims:
            print(f"  no {kind} to kill at the moment", flush=True)
            continue
        kill = run.kill(kind, chance.choice(victims))
        print(f"kill {len(run.kills)}: {kind} after step {kill.step}, during {kill.phase}", flush=True)
        going_on = run.wait_for_progress(kill)


def shuffled(kinds: Sequence[str], chance: random.Random) -> Iterator[str]:
    """Endless; each once before any comes again."""
    while True:
        yield from chance.sample(kinds, len(kinds))


def collect(directory: Path) -> Evidence:
    """Of a run that is finished."""
    config: Any = OmegaConf.to_container(OmegaConf.load(directory / "config.yaml"))
    algo = msgspec.convert(config["algo"], AlgoConfig)
    return evidence(read_journal(directory / FILE), json_lines(directory / "metrics.jsonl"), algo)


def report(run: SupervisedRun, found: Evidence, seed: int) -> dict[str, Any]:
    recoveries: dict[str, list[float]] = {}
    for fault in json_lines(run.directory / "faults.jsonl"):
        recoveries.setdefault(fault["kind"], []).append(fault["seconds"])
    return {
        "seed": seed,
        "steps": found.steps,
        "kills": len(run.kills),
        "kills_by_kind": dict(Counter(kill.kind for kill in run.kills)),
        "kills_by_phase": dict(Counter(kill.phase for kill in run.kills)),
        "driver_restarts": run.restarts,
        "driver_collapses": run.collapses,  # it ended with an error instead of going on
        "recoveries": {
            kind: {"count": len(seconds), "mean_seconds": round(statistics.fmean(seconds), 2)}
            for kind, seconds in recoveries.items()
        },
        "left_over_processes": run.left_over,
        **asdict(found),
    }


def show(result: dict[str, Any]) -> None:
    def listed(counts: dict[str, Any]) -> str:
        return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"

    recoveries = {kind: f"{one['count']} x {one['mean_seconds']} s" for kind, one in result["recoveries"].items()}
    unbalanced, off_budget = result["unbalanced"], result["off_budget"]
    for name, value in (
        ("steps completed", result["steps"]),
        ("kills", f"{result['kills']}: {listed(result['kills_by_kind'])}"),
        ("  during", listed(result["kills_by_phase"])),
        ("driver restarts", f"{result['driver_restarts']}, and {result['driver_collapses']} after it gave up"),
        ("recoveries in the run", listed(recoveries)),
        ("processes left over", len(result["left_over_processes"])),
        ("tokens lost", result["lost"]),
        ("tokens dropped unjudged", result["dropped"]),
        ("tokens trained twice", result["trained_twice"]),
        ("ledger balanced", f"not at {unbalanced}" if unbalanced else "at every step"),
        ("budget exact", f"not at {off_budget}" if off_budget else "at every step"),
    ):
        print(f"{name:<26}{value}")
    for problem in result["problems"]:
        print(f"wrong: {problem}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True, help="decides who is killed when")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--kills", type=int, default=30, help="fewer are a failure")
    parser.add_argument("--every", type=float, default=10.0, help="mean seconds from a recovery to the next kill")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--deadline", type=float, default=600.0, help="seconds without a step that are a hang")
    parser.add_argument("--directory", type=Path, help="the run's, a new one: by default outputs/chaos-SEED")
    parser.add_argument("overrides", nargs="*", help="of the job's config; after --kinds put -- before them")
    return parser.parse_args()


def main() -> int:
    args = parse()
    directory = (args.directory or Path(f"outputs/chaos-{args.seed}")).absolute()
    if directory.exists():
        print(f"{directory}: is there already; --directory names a new one")
        return 2
    job = ("-m", "tests.chaos.job", f"hydra.run.dir={directory}", f"train.steps={args.steps}", "checkpoint.every=5")
    try:
        with SupervisedRun(directory, *job, *args.overrides, deadline=args.deadline) as run:
            torment(run, args.kinds, args.every, random.Random(args.seed))
    except RunError as error:
        print(f"failed: {error}")
        return 1
    found = collect(directory)
    result = report(run, found, args.seed)
    (directory / "chaos.json").write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    if len(run.kills) < args.kills:
        print(f"failed: the run ended after {len(run.kills)} kills, not {args.kills}: raise --steps or lower --every")
    return 0 if found.clean and len(run.kills) >= args.kills else 1


if __name__ == "__main__":
    sys.exit(main())
