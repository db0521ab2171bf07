"""Every verifier against a second judge on generated problems: true answers accepted, changed ones refused.

    python -m tests.verifiers.agreement [--problems 300] [--changes 3] [--seed 0] [--verifiers math maze ...]

A changed answer may be right all the same: then both must accept it. Exit status 0 only where both agree on all.
"""

import argparse
import random
import sys
from collections import Counter
from itertools import islice

from rich.progress import track

from ring_ray.types import Verdict
from tests.verifiers.cases import Problem, judge
from tests.verifiers.problems import MAKERS

COLUMNS = ("true", "accepted", "changed", "refused", "right as well", "disagreements")


def agreement(problem: Problem, changes: int, generator: random.Random) -> tuple[Counter[str], list[str]]:
    """Counts by `COLUMNS`, and in words where the two judges differ."""
    counts, differences = Counter[str](), []
    for place in range(changes + 1):
        response = problem.changed(generator) if place else problem.response
        right = problem.right(response)
        reward = judge(problem.verifier, problem.answer, response)
        accepted = reward.verdict is Verdict.CORRECT
        consistent = reward.verdict.reached and (reward.score == 1.0) == accepted and (right or place > 0)
        if accepted != right or not consistent:
            differences.append(f"{problem.verifier}: {problem.answer!r} against {response!r}: {reward}")
        counts["changed" if place else "true"] += 1
        counts[("right as well" if place else "accepted") if accepted else "refused"] += 1
    counts["disagreements"] = len(differences)
    return counts, differences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=300, help="of each verifier")
    parser.add_argument("--changes", type=int, default=3, help="of each problem's answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--verifiers", nargs="+", choices=MAKERS, default=[*MAKERS], metavar="VERIFIER")
    arguments = parser.parse_args()
    total, examples = Counter[str](), list[str]()
    print(f"{'verifier':20}" + "".join(f"{column:>15}" for column in COLUMNS))
    for name in arguments.verifiers:
        generator = random.Random(f"{arguments.seed} {name}")
        counts = Counter[str]()
        problems = islice(MAKERS[name](generator), arguments.problems)
        for problem in track(problems, description=name, total=arguments.problems, disable=not sys.stdout.isatty()):
            found, differences = agreement(problem, arguments.changes, generator)
            counts += found
            examples += differences
        total += counts
        print(f"{name:20}" + "".join(f"{counts[column]:15,}" for column in COLUMNS), flush=True)
    print(f"{'all':20}" + "".join(f"{total[column]:15,}" for column in COLUMNS))
    print(*examples[:20], sep="\n")
    sys.exit(bool(examples))


if __name__ == "__main__":
    main()
