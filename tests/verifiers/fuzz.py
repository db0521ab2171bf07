"""Random bytes and mutated answers through every verifier: no crash, no hang, no score that is not deserved.

    python -m tests.verifiers.fuzz [--cases 100000] [--seed 0] [--verifiers math maze ...]

A response is random bytes, random bytes where the answer belongs, or a right one with one to three characters lost,
doubled, swapped or replaced. What is scored must be right by the second judge of tests/verifiers; a verdict must be
reached, or run into its time limit. A hang ends the command with its stack. Exit status 0 only where all that holds.
"""

import argparse
import atexit
import faulthandler
import random
import sys
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice

from rich.progress import track

from ring_ray.config import RewardConfig
from ring_ray.rewards.registry import Verifiers
from ring_ray.types import Verdict
from tests.verifiers.cases import Problem, judge, mutated, noise
from tests.verifiers.problems import MAKERS, PARTIAL

VERIFIERS = Verifiers(RewardConfig(timeout_seconds=1.0))
atexit.register(VERIFIERS.close)  # they may have a sandbox
HANG_SECONDS = 60.0  # of one verdict
PROBLEMS = 30  # of each verifier, which its cases are taken from, ten of each at least


@dataclass(slots=True)
class Findings:
    verdicts: Counter[Verdict] = field(default_factory=Counter)
    slowest_seconds: float = 0.0
    undue: list[str] = field(default_factory=list)  # scores that the second judge does not share
    broken: list[str] = field(default_factory=list)  # failed verdicts, and reasons that people could not read


def garbled(problem: Problem, generator: random.Random) -> str:
    match generator.randrange(4):
        case 0:
            return noise(generator)
        case 1:
            before, answer, after = _parts(problem.response)
            return before + noise(generator) + after if answer else noise(generator)
        case 2:
            before, answer, after = _parts(problem.response)
            return before + mutated(answer, generator) + after
        case _:
            return mutated(problem.response, generator)


def _parts(response: str) -> tuple[str, str, str]:
    """What stands before the last answer, the answer, and what stands after it."""
    for opening, closing in (("<answer>", "</answer>"), (r"\boxed{", "}")):
        before, found, rest = response.rpartition(opening)
        if found:
            answer, end, after = rest.rpartition(closing)
            return before + found, answer, end + after
    return "", response, ""


def fuzz(name: str, cases: int, generator: random.Random, *, progress: bool = False) -> Findings:
    """Findings on ``cases`` responses to problems of the verifier ``name``."""
    findings = Findings()
    problems = [*islice(MAKERS[name](generator), min(PROBLEMS, 1 + cases // 10))]
    for number in track(range(cases), description=name, disable=not progress):
        problem = problems[number % len(problems)]
        response = garbled(problem, generator)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        reward = judge(name, problem.answer, response, VERIFIERS)
        faulthandler.cancel_dump_traceback_later()
        findings.verdicts[reward.verdict] += 1
        findings.slowest_seconds = max(findings.slowest_seconds, reward.seconds)
        told = f"{name}: {problem.answer!r} against {response!r}: {reward}"
        correct = reward.verdict is Verdict.CORRECT
        shared = 0 < reward.score < 1 and name.endswith(PARTIAL) and not correct
        if (correct or (reward.score > 0 and not shared)) and not problem.right(response):
            findings.undue.append(told)
        if reward.verdict is Verdict.FAILED or (reward.score == 1.0) != correct or len(reward.reason) > 400:
            findings.broken.append(told)
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000, help="over all verifiers together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verifiers", nargs="+", choices=MAKERS, default=[*MAKERS], metavar="VERIFIER")
    arguments = parser.parse_args()
    each = -(-arguments.cases // len(arguments.verifiers))
    columns = (*Verdict, "undue", "broken", "slowest ms")
    print(f"{'verifier':20}{'cases':>9}" + "".join(f"{column:>11}" for column in columns))
    faults = 0
    for name in arguments.verifiers:
        found = fuzz(name, each, random.Random(f"{arguments.seed} {name}"), progress=sys.stdout.isatty())
        counts = [*(found.verdicts[verdict] for verdict in Verdict), len(found.undue), len(found.broken)]
        slowest = f"{1000 * found.slowest_seconds:11,.1f}"
        print(f"{name:20}{each:9,}" + "".join(f"{count:11,}" for count in counts) + slowest, flush=True)
        print(*(found.undue + found.broken)[:20], sep="\n", end="\n" if found.undue + found.broken else "")
        faults += len(found.undue) + len(found.broken)
    print(f"{each * len(arguments.verifiers):,} cases, {faults} faults")
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
