"""What the page shows of each domain of a run: how well it is answered, and what it takes to judge that."""

from collections.abc import Sequence
from functools import partial
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, NullFormatter

from ring_ray.report.groups import PALETTE
from ring_ray.report.pictures import SMOOTHED_STEPS, STEPS, Picture, label_axes, moving_mean, render
from ring_ray.report.runs import Run

WINDOW = 10  # steps of the moving mean, at most


def domain_pictures(run: Run) -> list[Picture]:
    """Nothing for a run of an earlier version, which has no domains."""
    if not run.domains:
        return []
    window = max(1, min(WINDOW, len(run.rows) // SMOOTHED_STEPS))
    smoothed = f" Moving mean of {window} steps." if window > 1 else ""
    draw = partial(_draw, run=run)
    return [
        render(
            "Accuracy by domain",
            f"{run.name}: share of the judged responses that are correct.{smoothed}",
            partial(draw, names=("reward/{}/accuracy",), unit="fraction", window=window),
        ),
        render(
            "Failed verdicts by domain",
            f"{run.name}: per step, timed out or failed. Their groups are dropped, never scored 0.",
            partial(draw, names=("reward/{}/failures",), unit="verdicts"),
        ),
        render(
            "Verdict time by domain",
            f"{run.name}: solid: the median. Dashed: what 99 % of the verdicts stay below.{smoothed}",
            partial(
                draw,
                names=("perf/{}/verdict_seconds_p50", "perf/{}/verdict_seconds_p99"),
                unit="time",
                window=window,
                log=True,
            ),
        ),
    ]


def _draw(axes: Axes, run: Run, names: Sequence[str], unit: str, window: int = 1, *, log: bool = False) -> None:
    """A colour a domain; the second of ``names`` is dashed. Steps in which a domain had no verdict are left out."""
    steps = run.series("step")
    for domain, color in zip(run.domains, cycle(PALETTE), strict=False):
        for name, line in zip(names, ("-", "--"), strict=False):
            values = run.series(name.format(domain))
            seen = np.isfinite(values)
            label = domain if line == "-" else None
            marker = "o" if seen.sum() == 1 else ""
            axes.plot(
                steps[seen],
                moving_mean(values[seen], window),
                line,
                color=color,
                label=label,
                marker=marker,
                linewidth=1.5,
            )
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, fontsize=9, handlelength=1, columnspacing=1)
    label_axes(axes, unit, STEPS)
    if log:
        axes.set_yscale("log")
        axes.autoscale(axis="y")
        _in_seconds(axes)


def _in_seconds(axes: Axes) -> None:
    """Labels such as 10 ms, between powers of ten where there are too few of those. By default they would be TeX."""
    lowest, highest = axes.get_ylim()
    units = EngFormatter("s", sep=" ")
    axes.yaxis.set_major_formatter(units)
    axes.yaxis.set_minor_formatter(units if highest < 10 * lowest else NullFormatter())
