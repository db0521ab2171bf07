"""A sweep for people: a live table on a terminal, elsewhere a line for every change; errors on both."""

from collections import Counter
from contextlib import AbstractContextManager
from textwrap import indent

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ring_ray.config import RunConfig
from ring_ray.sweep.results import accuracy, last_step
from ring_ray.sweep.scheduler import JobRecord, State, Sweep

COLUMNS = {  # by their heads: how a line says what is in them
    "job": "job {}",
    "state": "{}",
    "overrides": "{}",
    "minutes": "{} min",
    "step": "step {}",
    "reward": "reward {}",
    "accuracy": "accuracy {}",
}
COLORS = {State.RUNNING: "cyan", State.DONE: "green", State.KEPT: "green", State.FAILED: "red"}


class SweepView(AbstractContextManager["SweepView"]):
    """Shows a sweep on ``console``; a context manager, so that the terminal is given back whatever happens."""

    def __init__(self, sweep: Sweep, console: Console) -> None:
        self._sweep, self._console = sweep, console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._shown = dict[int, State]()  # by the job's number
        overrides = [set(record.job.overrides) for record in sweep.records]
        self._common = set.intersection(*overrides) if len(overrides) > 1 else set[str]()  # not worth telling

    def __enter__(self) -> "SweepView":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live:
            self._live.stop()

    def show(self) -> None:
        """Bring what is shown up to date."""
        for record in self._sweep.records:
            if self._shown.get(record.job.number) is not record.state:
                self._shown[record.job.number] = record.state
                self._show_change(record)
        if self._live:
            self._live.update(self._table(), refresh=True)

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)

    def summary(self) -> str:
        """How many jobs are in which state."""
        count = Counter(record.state for record in self._sweep.records)
        return f"{len(self._sweep.records)} jobs: " + ", ".join(f"{count[s]} {s}" for s in State if count[s])

    def _show_change(self, record: JobRecord) -> None:
        if not self._live:
            cells = zip(COLUMNS.values(), self._cells(record), strict=True)
            self.say("  ".join(said.format(text) for said, text in cells if text))
        if record.error:
            self.say(f"job {record.job.number} failed:\n{indent(record.error, '  ')}")

    def _table(self) -> Table:
        table = Table(*COLUMNS, title=self.summary())
        for record in self._sweep.records:
            number, state, *others = self._cells(record)
            table.add_row(number, Text(state, COLORS.get(record.state, "")), *map(Text, others))
        return table

    def _cells(self, record: JobRecord) -> tuple[str, ...]:
        """What is in each of the `COLUMNS`; empty where there is nothing."""
        job, minutes = record.job, self._sweep.minutes(record)
        # Before a job has run, what is in its directory is another's.
        step = {} if record.state is State.QUEUED else last_step(job.directory)
        reward = step.get("reward/mean")
        correct = accuracy(job.directory) if record.state in (State.DONE, State.KEPT) else None
        return (
            str(job.number),
            record.state,
            " ".join(override for override in job.overrides if override not in self._common),
            "" if minutes is None else f"{minutes:.1f}",
            f"{step['step']}/{job.config.train.steps}" if step and isinstance(job.config, RunConfig) else "",
            "" if reward is None else f"{reward:.3f}",
            "" if correct is None else f"{correct:.3f}",
        )
