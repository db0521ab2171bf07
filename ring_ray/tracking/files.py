"""The files of a run directory that grow line by line."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from ring_ray.types import RolloutSample

Row: TypeAlias = Mapping[str, object]


class JsonlFile:
    """One JSON object a line; a number that is not finite becomes null. A killed run leaves whole lines."""

    def __init__(self, path: Path, steps: int | None = 0) -> None:
        """Keeps the rows of the first ``steps`` steps, or for None all, and replaces what else is there."""
        self._path = path
        self.kept: list[dict[str, Any]] = []
        self._open(steps)

    def rewind(self, steps: int) -> None:
        """Remove the rows of later steps."""
        self._file.close()
        self._open(steps)

    def _open(self, steps: int | None) -> None:
        rows = _rows(self._path) if steps is None or steps > 0 else []
        self.kept = [row for row in rows if steps is None or row["step"] <= steps]
        temporary = self._path.with_name(f"{self._path.name}.tmp")
        temporary.write_text("".join(map(_line, self.kept)), encoding="utf-8")
        temporary.replace(self._path)  # atomic: a run that is killed here loses no row
        self._file = self._path.open("a", encoding="utf-8")

    def append(self, row: Row) -> None:
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        self._file.write(_line(finite))
        self._file.flush()

    def close(self) -> None:
        """Idempotent."""
        self._file.close()


def _line(row: Row) -> str:
    return json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n"


def _rows(path: Path) -> list[dict[str, Any]]:
    """Those of whole lines: a run that was killed may have left a part of one."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def rollout_row(step: int, sample: RolloutSample) -> dict[str, object]:
    """A line of rollouts.jsonl and a row of the W&B table: always the same columns, in the same order."""
    row = {"step": step, **asdict(sample)}
    reward = row.pop("reward")
    return row | {**reward, "verdict": sample.reward.verdict.value, "carried": sample.carried}
