"""What a run tells the world: every step to metrics.jsonl, W&B and the terminal; at the end, summary.json."""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Protocol

import wandb
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ring_ray.config import RunConfig
from ring_ray.metrics import METRICS, AccuracyInterval, RunSummary, Values, coefficient_of_variation, flatten
from ring_ray.types import StepMetrics

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """One place that a run's numbers go to."""

    def log(self, values: Values) -> None:
        """The numbers of a step, or of a stage before the first step: those have no "step"."""

    def close(self, *, failed: bool) -> None:
        """Release what the sink holds. Idempotent."""


class JsonlSink(Sink):
    """One JSON object a step; a value that is not finite becomes null. A killed run leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w")

    def log(self, values: Values) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps(finite, allow_nan=False) + "\n")
        self._file.flush()

    def close(self, *, failed: bool) -> None:
        self._file.close()


class WandbSink(Sink):
    """A W&B run inside the run directory. Its failures are counted, said once, and never stop the training."""

    def __init__(self, config: RunConfig) -> None:
        self.failures = 0
        self._run: wandb.Run | None = None
        with self._tolerated():
            # Without limits a dead network stops the run at both ends; what is on disk can be synced later.
            wandb.setup(wandb.Settings(silent=True, console="off", init_timeout=30, finish_timeout=60))
            mode = config.tracking.wandb
            online = mode == "online" or (mode == "auto" and wandb.login(prompt=False, verify=False))
            self._run = wandb.init(
                project=config.tracking.project,
                name=Path(config.run_dir).name,
                dir=config.run_dir,
                mode="online" if online else "offline",
                config=asdict(config),
            )
            for family in sorted({metric.name.split("/")[0] for metric in METRICS} - {"step"}):
                self._run.define_metric(f"{family}/*", step_metric="step")

    def log(self, values: Values) -> None:
        with self._tolerated():
            if self._run:
                self._run.log(dict(values))

    def close(self, *, failed: bool) -> None:
        with self._tolerated():
            if self._run:
                self._run.finish(exit_code=int(failed))
        self._run = None

    @contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - W&B only mirrors metrics.jsonl: nothing in it may end a run
            self.failures += 1
            if self.failures == 1:
                logger.warning("W&B: %s. The run goes on; metrics.jsonl has every step.", error)


class TerminalSink(Sink):
    """A line a step on stderr and, on a terminal, a live bar below; notes of one kind at most every 5 s."""

    def __init__(self, steps: int, console: Console) -> None:
        columns = (TextColumn("step"), BarColumn(None), MofNCompleteColumn(), TextColumn("eta"), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task("", total=steps, start=False)  # pulses until the first step
        self._progress.start()
        self._last_names, self._last_note = set[str](), time.monotonic()

    def say(self, text: str) -> None:
        self._progress.console.print(text, soft_wrap=True, markup=False, highlight=False)

    def log(self, values: Values) -> None:
        if "step" in values:
            self._progress.start_task(self._task)
            self._progress.advance(self._task)
            self.say(self._step_line(values))
        elif values.keys() != self._last_names or time.monotonic() - self._last_note >= 5:
            self._last_names, self._last_note = set(values), time.monotonic()
            self.say("  ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def _step_line(self, values: Values) -> str:
        task = self._progress.tasks[self._task]
        eta = "-" if task.time_remaining is None else timedelta(seconds=int(task.time_remaining))
        return (
            f"step {values['step']}/{task.total:.0f}  reward {values['reward/mean']:.3f}"
            f"  trained {values['c3po/trained_tokens']:,}  carried {values['c3po/carried_tokens']:,}"
            f"  entropy {values['policy/entropy']:.3f}  {values['perf/trained_tokens_per_second']:,.0f} tokens/s"
            f"  eta {eta}"
        )

    def close(self, *, failed: bool) -> None:
        self._progress.stop()


class Tracker(AbstractContextManager["Tracker"]):
    """Everything that a run reports goes through here; a context manager that closes its sinks."""

    def __init__(self, config: RunConfig) -> None:
        self._config, self._start, self._steps = config, time.monotonic(), list[StepMetrics]()
        self._directory = Path(config.run_dir)
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / "summary.json").unlink(missing_ok=True)  # of an earlier run
        self._file = JsonlSink(self._directory / "metrics.jsonl")
        self._terminal = TerminalSink(config.train.steps, Console(stderr=True, quiet=not config.tracking.progress))
        self._sinks: list[Sink] = [self._terminal]
        if config.tracking.wandb != "disabled":
            self._sinks.append(WandbSink(config))

    @property
    def steps(self) -> int:
        """Optimizer steps that were logged."""
        return len(self._steps)

    def stage(self, text: str) -> None:
        """Tell the user that a stage of the run begins, or how it ended."""
        self._terminal.say(text)

    def note(self, values: Values) -> None:
        """Record numbers from outside the steps, such as ``{"sft/step": 10, "sft/loss": 1.2}``."""
        for sink in self._sinks:
            sink.log(values)

    def log(self, metrics: StepMetrics) -> None:
        """Record one optimizer step."""
        self._steps.append(metrics)
        values = flatten(metrics)
        self._file.log(values)
        self.note(values)

    def summary(self, accuracy: Mapping[str, AccuracyInterval]) -> RunSummary:
        """Write summary.json: the steps logged so far and the accuracy after the stages "base", "sft" and "rl".

        Raises ValueError where no step was logged.
        """
        trained_tokens = [step.batch.trained_tokens for step in self._steps]
        summary = RunSummary(
            algo=self._config.algo.name,
            seed=self._config.seed,
            steps=len(self._steps),
            wall_seconds=time.monotonic() - self._start,
            accuracy={stage: accuracy.get(stage) for stage in ("base", "sft", "rl")},
            token_budget=self._config.algo.token_budget,
            trained_tokens_min=min(trained_tokens),
            trained_tokens_max=max(trained_tokens),
            trained_tokens_cv=coefficient_of_variation(trained_tokens),
            grad_norm_cv=coefficient_of_variation([step.update.grad_norm for step in self._steps]),
            ledger_balanced=all(step.ledger.balanced for step in self._steps),
        )
        temporary = self._directory / "summary.json.tmp"
        temporary.write_text(json.dumps(asdict(summary), indent=2, allow_nan=False) + "\n")
        temporary.replace(self._directory / "summary.json")  # atomic: a reader finds a whole summary or none
        return summary

    def close(self, *, failed: bool = False) -> None:
        with ExitStack() as stack:
            for sink in (self._file, *self._sinks):
                stack.callback(sink.close, failed=failed)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close(failed=error is not None)
