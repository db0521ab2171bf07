"""Run directories, read: metrics.jsonl and, where they are there, summary.json and config.yaml."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from ring_ray.config.keys import flatten
from ring_ray.metrics import METRICS, AccuracyInterval, coefficient_of_variation

METRICS_FILE, SUMMARY_FILE, CONFIG_FILE = "metrics.jsonl", "summary.json", "config.yaml"
FAULT = "fault/"  # and a kind: the metric that counts them
LEDGER_FATES = ("trained", "filtered", "evicted", "dropped")
LEDGER_STOCK = ("queued", "waiting", "in_flight")  # where a token is until it meets its fate
LEDGER = tuple(f"ledger/{place}" for place in ("generated", *LEDGER_STOCK, *LEDGER_FATES))
NEEDED_METRICS = ("step", "c3po/token_budget", "c3po/trained_tokens", "perf/step_seconds", *LEDGER)
"""Without these there is no page. A run of an earlier version may lack others; its curve of such a one is empty."""

Series: TypeAlias = npt.NDArray[np.float64]


class ReportError(ValueError):
    """What can't be reported; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run directory, read."""

    name: str
    rows: list[dict[str, float | None]]  # one a step
    summary: dict[str, Any] | None  # None while the run is unfinished
    config: str | None  # YAML
    settings: dict[str, Any]  # the same by dotted key, such as "algo.name"; empty where there is none

    def series(self, name: str) -> Series:
        """A metric over the steps [steps]; NaN where it was not finite."""
        return np.array([row.get(name) for row in self.rows], dtype=np.float64)

    def accuracy(self, stage: str) -> AccuracyInterval | None:
        """On held-out prompts after the stage "base", "sft" or "rl"."""
        seen = self.summary["accuracy"].get(stage) if self.summary else None
        return AccuracyInterval(**seen) if seen else None

    @property
    def gain(self) -> float | None:
        """Accuracy that RL added."""
        before, after = self.accuracy("sft") or self.accuracy("base"), self.accuracy("rl")
        return after.value - before.value if before and after else None

    @property
    def algo(self) -> str | None:
        name: str | None = self.settings.get("algo.name", (self.summary or {}).get("algo"))
        return name

    @property
    def seed(self) -> int | None:
        seed: int | None = self.settings.get("seed", (self.summary or {}).get("seed"))
        return seed

    @property
    def phases(self) -> list[str]:
        """Phases of a step, in the order in which they ran."""
        timed = [name for name in self.rows[0] if name.startswith("perf/") and name.endswith("_seconds")]
        known = {metric.name for metric in METRICS}
        return [name.removeprefix("perf/").removesuffix("_seconds") for name in timed if name not in known]

    @property
    def domains(self) -> list[str]:
        """Of the prompts whose responses were judged."""
        parts = (
            name.split("/", 1)[1].rsplit("/", 1) for row in self.rows for name in row if name.startswith("reward/")
        )
        return sorted({domain for domain, *kind in parts if kind == ["accuracy"]})

    @property
    def wall_seconds(self) -> float:
        """Of the whole run; of the steps so far while it is unfinished."""
        return float(self.summary["wall_seconds"] if self.summary else np.nansum(self.series("perf/step_seconds")))

    @property
    def keeps_budget(self) -> bool:
        """Whether it was to train exactly the token budget at every step."""
        return self.settings.get("algo.selection") != "groups" and self.settings.get("algo.cutoff") != "response"

    @property
    def off_budget(self) -> int:
        """Steps that did not train exactly the token budget."""
        return int(np.sum(self.series("c3po/trained_tokens") != self.series("c3po/token_budget")))

    @property
    def unbalanced(self) -> int:
        """Steps after which the places of the ledger did not add up to the generated tokens."""
        generated, *places = (self.series(name) for name in LEDGER)
        return int(np.sum(generated != np.sum(places, axis=0)))

    @property
    def skipped(self) -> int:
        """Steps that trained nothing because their numbers were not finite."""
        return int(np.nansum(self.series("policy/skipped")))

    @property
    def faults(self) -> Counter[str]:
        """Those that were made good, by kind."""
        found = Counter[str]()
        for row in self.rows:
            found.update({name.removeprefix(FAULT): int(n or 0) for name, n in row.items() if name.startswith(FAULT)})
        return found

    def variation(self, name: str) -> float | None:
        """Coefficient of variation of a metric over the steps; None where it is undefined."""
        return coefficient_of_variation(self.series(name).tolist())


def all_steps(runs: Iterable[Run], name: str) -> Series:
    """A metric over the steps of all ``runs`` [steps of the first + steps of the second + ...]."""
    return np.concatenate([run.series(name) for run in runs])


def read_runs(paths: Sequence[Path]) -> tuple[list[Run], dict[str, str]]:
    """Read the runs in ``paths``; a directory that holds run directories, such as a sweep's, stands for all of them.

    Returns the runs and, by name, what is wrong with each directory that can't be shown. Raises ReportError where no
    run can be shown, or where a path is not a directory.
    """
    directories = list(dict.fromkeys(directory for path in paths for directory in _run_directories(path.resolve())))
    root = os.path.commonpath([directory.parent for directory in directories])
    runs, damaged = list[Run](), dict[str, str]()
    for directory in directories:
        name = os.path.relpath(directory, root)
        try:
            runs.append(_read_run(directory, name))
        except ReportError as error:
            damaged[name] = str(error)
    if not runs:
        raise ReportError("; ".join(f"{Path(root, name)}: {reason}" for name, reason in damaged.items()))
    return runs, damaged


def _run_directories(path: Path) -> list[Path]:
    if not path.is_dir():
        raise ReportError(f"{path} is not a directory; give that of a run, or of a sweep for all of its runs")
    if _is_run(path):
        return [path]
    return sorted(child for child in path.iterdir() if _is_run(child)) or [path]


def _is_run(directory: Path) -> bool:
    return (directory / METRICS_FILE).is_file() or (directory / CONFIG_FILE).is_file()


def _read_run(directory: Path, name: str) -> Run:
    metrics, summary, config = (directory / file for file in (METRICS_FILE, SUMMARY_FILE, CONFIG_FILE))
    if not metrics.is_file():
        raise ReportError(f"there is no {METRICS_FILE}: the run has not started, or this is not the directory of one")
    lines = metrics.read_text().splitlines()
    rows = [_parse(line, NEEDED_METRICS, f"{METRICS_FILE}:{number}") for number, line in enumerate(lines, 1)]
    if not rows:
        raise ReportError(f"{METRICS_FILE} is empty: the run has not finished its first step")
    # Without the directory: a report is passed on, and its readers have no use for a path of this machine.
    text = re.sub(r"^run_dir:.*\n", "", config.read_text(), flags=re.MULTILINE) if config.is_file() else None
    return Run(
        name=name,
        rows=rows,
        summary=_parse(summary.read_text(), ("accuracy", "wall_seconds"), SUMMARY_FILE) if summary.is_file() else None,
        config=text,
        settings=_settings(text) if text else {},
    )


def _parse(text: str, needed: Iterable[str], where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ReportError(f"{where} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ReportError(f"{where} is not a JSON object")
    if missing := [name for name in needed if name not in value]:
        raise ReportError(f"{where} lacks {', '.join(missing)}")
    return value


def _settings(text: str) -> dict[str, Any]:
    try:
        config = OmegaConf.create(text)
        if not isinstance(config, DictConfig):
            raise ReportError(f"{CONFIG_FILE} is not a mapping")
        return dict(flatten(OmegaConf.to_container(config, resolve=True)))
    except (YAMLError, OmegaConfBaseException) as error:
        raise ReportError(f"{CONFIG_FILE} can't be read: {error}") from error
