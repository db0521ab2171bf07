"""The runs in numbers: a row for each setting, and one for each run."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import NamedTuple

import numpy as np

from ring_ray.report.estimates import Estimate, accuracy, gain
from ring_ray.report.groups import RunGroup
from ring_ray.report.pictures import STAGES
from ring_ray.report.runs import Run, all_steps

NOTHING = "–"


class Cell(NamedTuple):
    text: str
    details: Sequence[str] = ()  # lines below it


class Column(NamedTuple):
    title: str
    cell: Callable[[Sequence[Run]], Cell]  # of a row: of one run, or of several of one setting


class Row(NamedTuple):
    name: str
    color: str
    cells: list[Cell]  # one a column


class Table(NamedTuple):
    subject: str  # of a row
    columns: Sequence[Column]
    rows: list[Row]


def group_table(groups: Sequence[RunGroup]) -> Table:
    """A row for each group, of means over its runs."""
    rows = [Row(group.name, group.color, [column.cell(group.runs) for column in COLUMNS]) for group in groups]
    return Table("Setting", COLUMNS, rows)


def run_table(groups: Sequence[RunGroup]) -> Table:
    """A row for each run."""
    rows = [
        Row(run.name, group.color, [column.cell([run]) for column in RUN_COLUMNS])
        for group in groups
        for run in group.runs
    ]
    return Table("Run", RUN_COLUMNS, rows)


def _estimate_cell(estimate: Estimate | None, pattern: str, unit: str = "") -> Cell:
    if estimate is None:
        return Cell(NOTHING)
    interval = " – ".join(pattern.format(100 * end) for end in estimate.interval or ())
    details = [interval + unit] if interval else []
    return Cell(pattern.format(100 * estimate.value) + unit, details + ([estimate.basis] if estimate.basis else []))


def _accuracy_column(stage: str, label: str) -> Column:
    return Column(f"Accuracy {label}", lambda runs: _estimate_cell(accuracy(runs, stage), "{:.1f}", " %"))


def _algorithm(runs: Sequence[Run]) -> Cell:
    settings = runs[0].settings
    model = settings.get("model.path") or "tiny MoE of the run" if settings else NOTHING
    return Cell(runs[0].algo or NOTHING, [model])


def _seeds(runs: Sequence[Run]) -> Cell:
    return Cell(", ".join(NOTHING if run.seed is None else str(run.seed) for run in runs))


def _lengths(runs: Sequence[Run]) -> Cell:
    lengths = sorted({len(run.rows) for run in runs})
    return Cell(f"{lengths[0]:,}" if len(lengths) == 1 else f"{lengths[0]:,} to {lengths[-1]:,}")


def _trained_tokens(runs: Sequence[Run]) -> Cell:
    trained = all_steps(runs, "c3po/trained_tokens")
    least, most = trained.min(), trained.max()
    spread = "at every step" if least == most else f"{least:,.0f} to {most:,.0f}"
    return Cell(f"{np.mean([run.series('c3po/trained_tokens').mean() for run in runs]):,.0f}", [spread])


def _time(runs: Sequence[Run]) -> Cell:
    speeds = [run.series("c3po/trained_tokens").sum() / np.nansum(run.series("perf/step_seconds")) for run in runs]
    seconds = round(float(np.mean([run.wall_seconds for run in runs])))
    return Cell(str(timedelta(seconds=seconds)), [f"{np.mean(speeds):,.0f} tokens/s"])


def _variation(runs: Sequence[Run]) -> Cell:
    tokens, norms = (
        [value for run in runs if (value := run.variation(name)) is not None]
        for name in ("c3po/trained_tokens", "policy/grad_norm")
    )
    tokens_text, norms_text = (f"{np.mean(values):.3f}" if values else NOTHING for values in (tokens, norms))
    return Cell(f"{tokens_text} of tokens", [f"{norms_text} of gradient norms"])


COLUMNS = (
    Column("Seed", _seeds),
    Column("Steps", _lengths),
    *(_accuracy_column(stage, label) for stage, label in STAGES.items()),
    Column("Gain by RL, points", lambda runs: _estimate_cell(gain(runs), "{:+.1f}")),
    Column("Trained tokens a step", _trained_tokens),
    Column("Wall time, speed of the steps", _time),
    Column("Variation over the steps", _variation),
)
RUN_COLUMNS = (Column("Algorithm, model", _algorithm), *COLUMNS)
