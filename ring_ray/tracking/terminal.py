"""What a run shows while it goes on."""

import time
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ring_ray.metrics import Values


class TerminalSink:
    """A line a step on stderr and, on a terminal, a live bar below; notes of one kind at most every 5 s.

    Without ``progress`` only what `say` is told.
    """

    def __init__(self, steps: int, console: Console, *, done: int = 0, progress: bool = True) -> None:
        """``done`` of the ``steps`` were taken before."""
        self._lines = progress
        columns = (TextColumn("step"), BarColumn(None), MofNCompleteColumn(), TextColumn("eta"), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not (progress and console.is_terminal))
        self._task = self._progress.add_task(
            "", total=steps, completed=done, start=False
        )  # pulses until the first step
        self._progress.start()
        self._last_names, self._last_note = set[str](), time.monotonic()

    def say(self, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def log(self, values: Values) -> None:
        if not self._lines:
            return
        if "step" in values:
            self._progress.start_task(self._task)
            self._progress.advance(self._task)
            self.say(self._step_line(values))
        elif values.keys() != self._last_names or time.monotonic() - self._last_note >= 5:
            self._last_names, self._last_note = set(values), time.monotonic()
            self.say("  ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def rewind(self, steps: int) -> None:
        """The next step is the one after ``steps``."""
        self._progress.update(self._task, completed=steps)

    def _step_line(self, values: Values) -> str:
        task = self._progress.tasks[self._task]
        eta = "-" if task.time_remaining is None else timedelta(seconds=int(task.time_remaining))
        return (
            f"step {values['step']}/{task.total:.0f}  reward {values['reward/mean']:.3f}"
            f"  trained {values['c3po/trained_tokens']:,}  carried {values['c3po/carried_tokens']:,}"
            f"  entropy {values['policy/entropy']:.3f}  {values['perf/trained_tokens_per_second']:,.0f} tokens/s"
            f"  eta {eta}{'  skipped' if values['policy/skipped'] else ''}"
        )

    def close(self, *, failed: bool) -> None:
        self._progress.stop()
