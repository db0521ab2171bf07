"""The tracker: one object that everything a run reports goes through."""

import json
import math
import secrets
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Protocol

from rich.console import Console

from ring_ray.config import RunConfig
from ring_ray.metrics import AccuracyInterval, RunSummary, Values, coefficient_of_variation, flatten, ledger_of
from ring_ray.tracking.files import JsonlFile, rollout_row
from ring_ray.tracking.host import HostMeter
from ring_ray.tracking.terminal import TerminalSink
from ring_ray.tracking.wandb import WandbSink, wandb_mode
from ring_ray.types import Fault, RolloutSample, StepMetrics


class Sink(Protocol):
    """One place that a run's numbers go to."""

    def log(self, values: Values) -> None:
        """The numbers of a step, or of a stage before the first step: those have no "step"."""

    def close(self, *, failed: bool) -> None:
        """Release what the sink holds. Idempotent."""


class Tracker(AbstractContextManager["Tracker"]):
    """Everything that a run reports goes through here; a context manager that closes its sinks."""

    def __init__(
        self, config: RunConfig, sinks: Iterable[Sink] = (), *, steps: int = 0, wandb_id: str | None = None
    ) -> None:
        """``sinks`` are told every number as well, and closed with the tracker.

        A run that goes on after ``steps`` optimizer steps keeps what it had reported of them; in W&B it is the run
        ``wandb_id``.
        """
        self._config = config
        self.wandb_id = wandb_id or secrets.token_hex(4)
        self._directory = Path(config.run_dir)
        self._directory.mkdir(parents=True, exist_ok=True)
        (self._directory / "summary.json").unlink(missing_ok=True)  # of an earlier run
        self._metrics = JsonlFile(self._directory / "metrics.jsonl", steps)
        self._rollouts = JsonlFile(self._directory / "rollouts.jsonl", steps)
        self._faults = JsonlFile(self._directory / "faults.jsonl", None if wandb_id else 0)  # of the whole run
        self._new_faults = Counter[str]()  # by kind, since the last step
        self._steps: list[Values] = [
            {name: math.nan if value is None else value for name, value in row.items()} for row in self._metrics.kept
        ]
        self._start = time.monotonic() - sum(step["perf/step_seconds"] for step in self._steps)
        self._host = HostMeter()
        console, progress = Console(stderr=True), config.tracking.progress
        self._terminal = TerminalSink(config.train.steps, console, done=steps, progress=progress)
        mirrored = wandb_mode(config.tracking.wandb) != "disabled"
        self._wandb = WandbSink(config, self.wandb_id, self.stage) if mirrored else None
        self._sinks: list[Sink] = [self._terminal, *sinks, *([self._wandb] if self._wandb else [])]

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
        faults = {f"fault/{kind}": count for kind, count in self._new_faults.items()}
        self._new_faults.clear()
        values = flatten(metrics) | self._host.read() | faults
        self._steps.append(values)
        self._metrics.append(values)
        self.note(values)

    def rollouts(self, step: int, samples: Sequence[RolloutSample]) -> None:
        """Record some of the responses that were scored during a step."""
        rows = [rollout_row(step, sample) for sample in samples]
        for row in rows:
            self._rollouts.append(row)
        if self._wandb and rows:
            self._wandb.rollouts(step, rows)

    def fault(self, fault: Fault) -> None:
        """Record that something broke and was made good."""
        self._new_faults[fault.kind] += 1
        self._faults.append({"step": self._steps[-1]["step"] if self._steps else 0, **asdict(fault)})
        self.stage(f"recovered in {fault.seconds:.1f} s: {fault.what}")

    def rewind(self, steps: int) -> None:
        """The run goes back to where it was after ``steps`` optimizer steps: forget the later ones.

        In W&B they stay, and come once more.
        """
        self._steps = [step for step in self._steps if step["step"] <= steps]
        self._metrics.rewind(steps)
        self._rollouts.rewind(steps)
        self._terminal.rewind(steps)

    def artifacts(self, directories: Iterable[Path]) -> None:
        """Upload what a finished run leaves, models and checkpoints, where ``tracking.artifacts`` says so."""
        if self._wandb and self._config.tracking.artifacts:
            self._wandb.artifacts(directories)

    def summary(self, accuracy: Mapping[str, AccuracyInterval]) -> RunSummary:
        """Write summary.json: the steps logged so far and the accuracy after the stages "base", "sft" and "rl".

        Raises ValueError where no step was logged.
        """
        trained_tokens = [int(step["c3po/trained_tokens"]) for step in self._steps]
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
            grad_norm_cv=coefficient_of_variation([step["policy/grad_norm"] for step in self._steps]),
            ledger_balanced=all(ledger_of(step).balanced for step in self._steps),
            skipped_steps=sum(int(step["policy/skipped"]) for step in self._steps),
        )
        temporary = self._directory / "summary.json.tmp"
        temporary.write_text(json.dumps(asdict(summary), indent=2, allow_nan=False) + "\n")
        temporary.replace(self._directory / "summary.json")  # atomic: a reader finds a whole summary or none
        return summary

    def close(self, *, failed: bool = False) -> None:
        """The terminal last: the others may have something to say."""
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close, failed=failed)
            for file in (self._metrics, self._rollouts, self._faults):
                stack.callback(file.close)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self.close(failed=error is not None)
