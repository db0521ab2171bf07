"""One self-contained HTML page that shows how one or several runs went: no script, no external resource.

It reads what `tracking` wrote into each run directory: metrics.jsonl, and, where they are there, summary.json and
config.yaml. An unfinished run can be reported too.
"""

import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from matplotlib.typing import RcKeyType
from omegaconf import OmegaConf

from ring_ray.metrics import METRICS

PALETTE = ("#3d82f6", "#e8793a", "#23a26d", "#b45fd3", "#d9a514", "#dd4b6b", "#1ba3b8", "#8a8f98")
INK = "#0f1e2d"  # stands for the page's text colour, light or dark: `render` replaces it
STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.15,
    "grid.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
LEDGER_FATES = ("trained", "filtered", "evicted", "dropped")
LEDGER_STOCK = ("queued", "waiting", "in_flight")  # where a token is until it meets its fate
STAGES = {"base": "base", "sft": "after SFT", "rl": "after RL"}

Series = npt.NDArray[np.float64]


class ReportError(ValueError):
    """A run directory that can't be reported; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run directory, read."""

    name: str
    color: str
    rows: list[dict[str, float | None]]  # one a step
    summary: dict[str, Any] | None  # None while the run is unfinished
    config: str | None  # YAML

    def series(self, name: str) -> Series:
        """A metric over the steps [steps]; NaN where it was not finite."""
        return np.array([row.get(name) for row in self.rows], dtype=np.float64)

    def setting(self, key: str) -> object:
        return OmegaConf.select(OmegaConf.create(self.config or ""), key)

    @property
    def phases(self) -> list[str]:
        """Phases of a step, in the order in which they ran."""
        known = {metric.name for metric in METRICS}
        timed = [name for name in self.rows[0] if name.endswith("_seconds") and name not in known]
        return [name.removeprefix("perf/").removesuffix("_seconds") for name in timed]

    @property
    def wall_time(self) -> timedelta:
        """Of the whole run; of the steps so far while it is unfinished."""
        seconds = self.summary["wall_seconds"] if self.summary else np.nansum(self.series("perf/step_seconds"))
        return timedelta(seconds=round(seconds))

    @property
    def off_budget(self) -> int:
        """Steps that did not train exactly the token budget."""
        return int(np.sum(self.series("c3po/trained_tokens") != self.series("c3po/token_budget")))

    @property
    def unbalanced(self) -> int:
        """Steps after which the places of the ledger did not add up to the generated tokens."""
        accounted = np.sum([self.series(f"ledger/{place}") for place in LEDGER_STOCK + LEDGER_FATES], axis=0)
        return int(np.sum(self.series("ledger/generated") != accounted))


def read_run(directory: Path, *, name: str, color: str) -> Run:
    """Raises ReportError."""
    metrics, summary, config = (directory / file for file in ("metrics.jsonl", "summary.json", "config.yaml"))
    if not metrics.is_file():
        raise ReportError(f"{directory} has no metrics.jsonl: is it the directory of a run?")
    rows = [_parse(line, f"{metrics}:{number}") for number, line in enumerate(metrics.read_text().splitlines(), 1)]
    if not rows:
        raise ReportError(f"{metrics} is empty: the run has not finished its first step")
    for number, row in enumerate(rows, 1):
        if missing := {metric.name for metric in METRICS} - row.keys():
            raise ReportError(f"{metrics}:{number} lacks {', '.join(sorted(missing))}")
    return Run(
        name=name,
        color=color,
        rows=rows,
        summary=_parse(summary.read_text(), str(summary)) if summary.is_file() else None,
        config=config.read_text() if config.is_file() else None,
    )


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ReportError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ReportError(f"{where} is not a JSON object")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    title: str
    caption: str
    svg: Markup


def render(title: str, caption: str, draw: Callable[[Axes], None]) -> Picture:
    """Draw into an SVG whose text and axes take the colour and the font of the page."""
    with mpl.rc_context({**STYLE, "svg.hashsalt": title}):
        figure = Figure(figsize=(5.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        text = io.StringIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=metadata)
    svg = text.getvalue()
    return Picture(title=title, caption=caption, svg=Markup(svg[svg.index("<svg") :].replace(INK, "currentColor")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Metrics over the steps, all runs in one picture."""

    title: str
    caption: str
    unit: str
    names: tuple[str, ...]  # solid, dashed
    window: int = 1  # steps of the moving mean; above 1 the raw curve stays, faint

    def draw(self, axes: Axes, runs: list[Run]) -> None:
        for run in runs:
            for name, line, own_color in zip(self.names, ("-", "--"), (run.color, PALETTE[1]), strict=False):
                color = own_color if len(runs) == 1 else run.color
                steps, values = run.series("step"), run.series(name)
                marker = "o" if len(steps) == 1 else ""
                if self.window > 1:
                    axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
                axes.plot(steps, moving_mean(values, self.window), line, color=color, linewidth=1.5, marker=marker)
        _label_steps(axes, self.unit)


CURVES = (
    Curve(
        title="Reward",
        caption="Mean over the groups completed in a step; bold: moving mean of 10 steps.",
        unit="reward",
        names=("reward/mean",),
        window=10,
    ),
    Curve(
        title="Response length",
        caption="Solid: responses completed. Dashed: responses trained. A lasting gap would be a length bias.",
        unit="tokens",
        names=("rollout/response_length_mean", "c3po/trained_response_length_mean"),
    ),
    Curve(
        title="Trained tokens per step",
        caption="Response tokens that carried loss. Dashed: the token budget Φ.",
        unit="tokens",
        names=("c3po/trained_tokens", "c3po/token_budget"),
    ),
    Curve(title="Gradient norm", caption="Before clipping.", unit="norm", names=("policy/grad_norm",)),
    Curve(
        title="Entropy",
        caption="Of the policy, over the trained tokens.",
        unit="nats per token",
        names=("policy/entropy",),
    ),
    Curve(
        title="Off-policy drift",
        caption="KL between the policy that sampled and the one that trains (k3 estimate).",
        unit="nats per token",
        names=("policy/behaviour_kl",),
    ),
    Curve(
        title="Clipped tokens",
        caption="Share of the trained tokens whose ratio was clipped.",
        unit="fraction",
        names=("policy/clip_fraction",),
    ),
    Curve(
        title="Expert balance",
        caption="Load-balance loss: 1 when all experts are evenly loaded, 0 for dense models.",
        unit="loss",
        names=("moe/balance_loss",),
    ),
)


def moving_mean(values: Series, window: int) -> Series:
    """Mean over the last ``window`` steps, over fewer at the start [steps]."""
    return np.array([values[max(0, stop - window) : stop].mean() for stop in range(1, len(values) + 1)])


def _label_steps(axes: Axes, unit: str) -> None:
    axes.set(xlabel="step", ylabel=unit, ylim=(min(0, axes.dataLim.y0), axes.get_ylim()[1] * 1.05))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.margins(x=0)


def _draw_stack(axes: Axes, run: Run, layers: dict[str, Series], unit: str) -> None:
    axes.stackplot(run.series("step"), *layers.values(), labels=list(layers), colors=PALETTE, alpha=0.75, linewidth=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, fontsize=9, handlelength=1, columnspacing=1)
    _label_steps(axes, unit)


def run_pictures(run: Run) -> list[Picture]:
    """What can't be overlaid: the ledger and the time of one run, stacked."""
    flows = {fate: np.diff(run.series(f"ledger/{fate}"), prepend=0) for fate in LEDGER_FATES}
    stock = {place.replace("_", " "): run.series(f"ledger/{place}") for place in LEDGER_STOCK}
    times = {phase: run.series(f"perf/{phase}_seconds") for phase in run.phases}

    def draw_flows(axes: Axes) -> None:
        axes.plot(run.series("step"), run.series("rollout/generated_tokens"), color=INK, linewidth=1, label="generated")
        _draw_stack(axes, run, flows, "tokens per step")

    draw_stock = partial(_draw_stack, run=run, layers=stock, unit="tokens")
    draw_times = partial(_draw_stack, run=run, layers=times, unit="seconds")
    return [
        render("Where tokens went", f"{run.name}: per step; the line is what was generated.", draw_flows),
        render("Where tokens are", f"{run.name}: after each step, those that are still to be trained.", draw_stock),
        render("Step time", f"{run.name}: by phase.", draw_times),
    ]


def _draw_accuracy(axes: Axes, runs: list[Run]) -> None:
    width = 0.6 / len(runs)
    for index, run in enumerate(runs):
        for position, stage in enumerate(STAGES):
            if run.summary and (accuracy := run.summary["accuracy"].get(stage)):
                x = position + (index - (len(runs) - 1) / 2) * width
                value, low, high = accuracy["value"], accuracy["low"], accuracy["high"]
                axes.bar(x, value, width * 0.9, color=run.color, alpha=0.75)
                axes.errorbar(x, value, [[value - low], [high - value]], color=INK, capsize=4, linewidth=1.2)
                axes.text(x, high + 0.02, f"{value:.1%}", ha="center", va="bottom", fontsize=9)
    axes.set(xticks=range(len(STAGES)), xticklabels=STAGES.values(), xlim=(-0.6, len(STAGES) - 0.4), ylim=(0, 1.1))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(visible=False, axis="x")


def write_report(run_dirs: list[Path], output: Path) -> None:
    """Write ``output``, replacing it. Raises ReportError where a run directory is not one, or is damaged."""
    directories = [directory.resolve() for directory in run_dirs]
    root = os.path.commonpath([directory.parent for directory in directories])
    runs = [
        read_run(directory, name=os.path.relpath(directory, root), color=color)
        for directory, color in zip(directories, cycle(PALETTE), strict=False)
    ]
    pictures = [render(curve.title, curve.caption, partial(curve.draw, runs=runs)) for curve in CURVES]
    evaluated = [run for run in runs if run.summary and any(run.summary["accuracy"].values())]
    caption = "On held-out prompts, with 95 % Wilson intervals."
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("ring_ray"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    page = environment.get_template("report.html.j2").render(
        runs=runs,
        stages=STAGES,
        accuracy=render("Accuracy", caption, partial(_draw_accuracy, runs=evaluated)) if evaluated else None,
        pictures=pictures,
        run_pictures=[picture for run in runs for picture in run_pictures(run)],
        metrics=METRICS,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
