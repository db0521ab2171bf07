"""What the runs of one setting say together, and how sure that is."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ring_ray.report.runs import Run, Series


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number and how sure it is."""

    value: float
    interval: tuple[float, float] | None  # of 95 %; None where nothing tells how values vary
    basis: str  # what it was taken from: "512 prompts", "3 runs"; empty for a run itself


def accuracy(runs: Sequence[Run], stage: str) -> Estimate | None:
    """On held-out prompts after ``stage``, "base", "sft" or "rl": the mean over the runs; None where none has any.

    The interval is `mean_margin`'s, within 0 and 1. For a single run it is Wilson's, over its prompts.
    """
    seen = [interval for run in runs if (interval := run.accuracy(stage))]
    if len(seen) != 1:
        return _mean([interval.value for interval in seen], of=len(runs), bounds=(0.0, 1.0))
    (only,) = seen
    return Estimate(value=only.value, interval=(only.low, only.high), basis=f"{only.n} prompts")


def gain(runs: Sequence[Run]) -> Estimate | None:
    """Accuracy that RL added: the mean over the runs; None where none has any."""
    return _mean([run.gain for run in runs if run.gain is not None], of=len(runs), bounds=(-1.0, 1.0))


def _mean(values: Sequence[float], *, of: int, bounds: tuple[float, float]) -> Estimate | None:
    if not values:
        return None
    mean, (lowest, highest) = float(np.mean(values)), bounds
    basis = f"{of} runs" if len(values) == of else f"{len(values)} of {of} runs"
    if len(set(values)) == 1:
        return Estimate(value=mean, interval=None, basis=basis if of > 1 else "")
    margin = float(mean_margin(np.array(values)))
    return Estimate(value=mean, interval=(max(lowest, mean - margin), min(highest, mean + margin)), basis=basis)


def mean_margin(samples: Series) -> Series:
    """Half the width of the 95 % t-interval of the mean over the first axis [n, ...] -> [...], for n > 1."""
    n = len(samples)
    margin: Series = student_t(n - 1) * samples.std(axis=0, ddof=1) / math.sqrt(n)
    return margin


def student_t(degrees_of_freedom: int, coverage: float = 0.95) -> float:
    """The t for which -t ... t holds ``coverage`` of Student's distribution."""
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _coverage(middle, degrees_of_freedom) < coverage:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees_of_freedom) * math.tan(high)


def _coverage(angle: float, degrees_of_freedom: int) -> float:
    """Share of Student's distribution in -t ... t for t = √n tan(angle), n degrees of freedom.

    A finite series for whole n: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees_of_freedom % 2
    term, total = cosine**odd, 0.0
    for power in range(odd, degrees_of_freedom - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
