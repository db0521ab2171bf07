"""Verdicts per second of the verifier `math`, in one process and in several.

    python -m tests.benchmarks.bench_math [--verdicts 1000] [--processes 1 2]

Half of the responses are right. Each process judges in its main thread, as reward workers do.
The last column is how many cores the paper's 8,000 verdicts/s would keep busy.
"""

import argparse
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

from ring_ray.config import RewardConfig
from ring_ray.rewards.math import MathVerifier
from ring_ray.types import Prompt, Verdict

PAPER_PER_SECOND = 8000
PAIRS = [
    ("42", "42", "43"),
    (r"\frac{3}{4}", "0.75", r"\frac{4}{3}"),
    (r"12\%", "0.12", "12"),
    ("x^2+2x+1", "(x+1)^2", "(x-1)^2"),
    (r"\sqrt{8}", r"2\sqrt{2}", r"2\sqrt{3}"),
    (r"\{1, 2, 3\}", r"\{3, 2, 1\}", r"\{1, 2\}"),
    (r"(-\infty, 2]", r"(-\infty,2]", r"(-\infty,2)"),
    (
        r"\begin{pmatrix}1&2\\3&4\end{pmatrix}",
        r"\begin{bmatrix}1&2\\3&4\end{bmatrix}",
        r"\begin{pmatrix}1\end{pmatrix}",
    ),
]


def judge(verdicts: int) -> tuple[list[float], float]:
    """Seconds of each verdict, and CPU seconds of all, in this process."""
    verifier, chance, seconds = MathVerifier(RewardConfig()), random.Random(0), list[float]()
    started = time.process_time()
    for _ in range(verdicts):
        answer, right, wrong = chance.choice(PAIRS)
        good = chance.random() < 0.5
        ids = np.zeros(1, np.int32)
        prompt = Prompt(index=0, id="bench", domain="", text="", token_ids=ids, verifier="math", answer=answer)
        begun = time.perf_counter()
        verdict = verifier.verify(prompt, rf"so it is \boxed{{{right if good else wrong}}}").verdict
        seconds.append(time.perf_counter() - begun)
        assert verdict is (Verdict.CORRECT if good else Verdict.WRONG), (answer, good)
    return seconds, time.process_time() - started


def measure(processes: int, verdicts: int) -> str:
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        list(pool.map(judge, [len(PAIRS)] * processes))  # imports, and what is only slow the first time
        started = time.perf_counter()
        done = list(pool.map(judge, [verdicts // processes] * processes))
        rate = sum(len(seconds) for seconds, _ in done) / (time.perf_counter() - started)
    quantiles = statistics.quantiles([second for seconds, _ in done for second in seconds], n=100)
    cpu = sum(cpu for _, cpu in done) / sum(len(seconds) for seconds, _ in done)
    return (
        f"{processes:>9}{rate:>12.1f}{quantiles[49] * 1e3:>9.2f}{quantiles[98] * 1e3:>9.2f}"
        f"{cpu * 1e3:>9.2f}{PAPER_PER_SECOND * cpu:>19.0f}"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verdicts", type=int, default=1000)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    print("processes  verdicts/s   p50 ms   p99 ms   CPU ms  cores for 8,000/s")
    for number in args.processes:
        print(measure(number, args.verdicts), flush=True)
