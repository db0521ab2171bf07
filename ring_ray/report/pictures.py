"""What the page shows as curves and bars, drawn as SVG that takes the page's colours."""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, Formatter, MaxNLocator, PercentFormatter, ScalarFormatter
from matplotlib.typing import RcKeyType

from ring_ray.report.estimates import accuracy, mean_margin
from ring_ray.report.groups import PALETTE, RunGroup
from ring_ray.report.runs import LEDGER_FATES, LEDGER_STOCK, Run, Series

INK = "#0f1e2d"  # stands for the page's text colour, light or dark: `render` replaces it
STYLE: dict[RcKeyType, Any] = {
    "svg.fonttype": "none",
    "path.simplify_threshold": 0.3,  # pixels
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
POINTS = 400  # of an area: as many as a reader can tell apart
STAGES = {"base": "base", "sft": "after SFT", "rl": "after RL"}


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
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    # a hundredth of a point is less than a screen shows, and half of the page would be further digits
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    return Picture(title=title, caption=caption, svg=Markup(svg))


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a curve is drawn against: it never falls from step to step."""

    label: str
    of: Callable[[Run], Series]  # [steps]
    formatter: Callable[[], Formatter] = ScalarFormatter


STEPS = Progress(label="step", of=lambda run: run.series("step"))
TOKENS = Progress(
    label="trained tokens so far", of=lambda run: run.series("ledger/trained"), formatter=partial(EngFormatter, sep=" ")
)
MINUTES = Progress(
    label="minutes since the first step began", of=lambda run: np.nancumsum(run.series("perf/step_seconds")) / 60
)


SMOOTHED_STEPS = 10  # of a run, for each step of a moving mean's window
BAND_RUNS = 3  # that a band of the mean needs: of two it would fill the frame, at 12.7 standard errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Metrics over the training, all groups of runs in one picture."""

    title: str
    caption: str
    unit: str
    names: tuple[str, ...]  # solid, dashed
    against: Progress = STEPS
    window: int = 1  # steps of the moving mean; above 1 the raw curve of a single run stays, faint

    def picture(self, groups: Sequence[RunGroup]) -> Picture:
        """A short run is smoothed less, or one lucky step would be all that is seen of it."""
        steps = max(len(run.rows) for group in groups for run in group.runs)
        curve = replace(self, window=max(1, min(self.window, steps // SMOOTHED_STEPS)))
        caption = self.caption
        if curve.window > 1:
            raw = "; faint: each step" if any(len(group.runs) == 1 for group in groups) else ""
            caption += f" Moving mean of {curve.window} steps{raw}."
        return render(self.title, caption, partial(curve.draw, groups=groups))

    def draw(self, axes: Axes, groups: Sequence[RunGroup]) -> None:
        for group in groups:
            dashed = PALETTE[1] if len(groups) == 1 else group.color
            for name, line, color in zip(self.names, ("-", "--"), (group.color, dashed), strict=False):
                self._draw_lines(axes, group, name, line, color)
        label_axes(axes, self.unit, self.against)
        for group in groups:  # after the scale is fixed: with few seeds a band can be far wider than the curves
            if len(group.runs) >= BAND_RUNS:
                positions, mean, margin = mean_course(self._courses(group, self.names[0]))
                low, high = condensed(mean - margin), condensed(mean + margin)
                axes.fill_between(condensed(positions), low, high, color=group.color, alpha=0.15, linewidth=0)

    def _draw_lines(self, axes: Axes, group: RunGroup, name: str, line: str, color: str) -> None:
        courses = self._courses(group, name)
        if len(courses) == 1:
            ((positions, values),) = courses
            if self.window > 1:
                axes.plot(positions, group.runs[0].series(name), color=color, alpha=0.3, linewidth=0.8)
            axes.plot(positions, values, line, color=color, linewidth=1.5, marker="o" if len(values) == 1 else "")
            return
        if line == "-":
            for positions, values in courses:
                axes.plot(positions, values, color=color, alpha=0.4, linewidth=0.7)
        positions, mean, _ = mean_course(courses)
        axes.plot(positions, mean, line, color=color, linewidth=1.8)

    def _courses(self, group: RunGroup, name: str) -> list[tuple[Series, Series]]:
        return [(self.against.of(run), moving_mean(run.series(name), self.window)) for run in group.runs]


REWARD = Curve(
    title="Reward",
    caption="Mean over the groups completed in a step.",
    unit="reward",
    names=("reward/mean",),
    window=10,
)
CURVES = (
    REWARD,
    replace(REWARD, title="Reward by trained tokens", caption="The same against what was trained.", against=TOKENS),
    replace(REWARD, title="Reward by time", caption="The same against the time that the steps took.", against=MINUTES),
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
    Curve(title="Gradient norm", caption="Before clipping.", unit="norm", names=("policy/grad_norm",), window=10),
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
        window=10,
    ),
    Curve(
        title="Clipped tokens",
        caption="Share of the trained tokens whose ratio was clipped.",
        unit="fraction",
        names=("policy/clip_fraction",),
        window=10,
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


def mean_course(courses: Sequence[tuple[Series, Series]]) -> tuple[Series, Series, Series]:
    """Positions [points], mean and `mean_margin` over several courses, each of positions and values [steps].

    The points are the positions of the course that ends first, as far as every course has begun; between its positions
    a course is taken as straight.
    """
    shortest = min((positions for positions, _ in courses), key=lambda positions: positions[-1])
    points = shortest[shortest >= max(positions[0] for positions, _ in courses)]
    samples = np.array([np.interp(points, positions, values) for positions, values in courses])
    return points, samples.mean(axis=0), mean_margin(samples)


def condensed(values: Series) -> Series:
    """Means of neighbours, at most `POINTS` of them: areas, unlike lines, are not simplified by matplotlib."""
    return np.array([part.mean() for part in np.array_split(values, min(len(values), POINTS) or 1) if part.size])


def label_axes(axes: Axes, unit: str, against: Progress) -> None:
    axes.set(xlabel=against.label, ylabel=unit, ylim=(min(0, axes.dataLim.y0), axes.get_ylim()[1] * 1.05))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.xaxis.set_major_formatter(against.formatter())
    axes.margins(x=0)


def _draw_stack(axes: Axes, run: Run, layers: dict[str, Series], unit: str) -> None:
    steps, areas = condensed(run.series("step")), [condensed(values) for values in layers.values()]
    axes.stackplot(steps, *areas, labels=list(layers), colors=PALETTE, alpha=0.75, linewidth=0)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=5, fontsize=9, handlelength=1, columnspacing=1)
    label_axes(axes, unit, STEPS)


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


def group_pictures(groups: Sequence[RunGroup]) -> list[Picture]:
    """What can be overlaid: accuracy, where a run was evaluated, and the curves."""
    pictures = [curve.picture(groups) for curve in CURVES]
    if not any(accuracy(group.runs, stage) for group in groups for stage in STAGES):
        return pictures
    caption = "On held-out prompts, with 95 % intervals, which the table explains."
    return [render("Accuracy", caption, partial(_draw_accuracy, groups=groups)), *pictures]


def _draw_accuracy(axes: Axes, groups: Sequence[RunGroup]) -> None:
    width = 0.6 / len(groups)
    for index, group in enumerate(groups):
        for position, stage in enumerate(STAGES):
            if not (estimate := accuracy(group.runs, stage)):
                continue
            x = position + (index - (len(groups) - 1) / 2) * width
            value, (low, high) = estimate.value, estimate.interval or (estimate.value, estimate.value)
            axes.bar(x, value, width * 0.9, color=group.color, alpha=0.75)
            axes.errorbar(x, value, [[value - low], [high - value]], color=INK, capsize=4, linewidth=1.2)
            if len(groups) <= 3:  # more would run into each other
                size = 9 if len(groups) <= 2 else 7
                axes.text(x, high + 0.02, f"{value:.1%}", ha="center", va="bottom", fontsize=size)
    axes.set(xticks=range(len(STAGES)), xticklabels=STAGES.values(), xlim=(-0.6, len(STAGES) - 0.4), ylim=(0, 1.1))
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.grid(visible=False, axis="x")
