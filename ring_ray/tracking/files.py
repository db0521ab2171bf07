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

    def __init__(self, path: Path, steps: int = 0) -> None:
        """Keeps the rows of the first ``steps`` steps, which are then `kept`, and replaces what else is there."""
        self.kept = [row for row in _rows(path) if row["step"] <= steps] if steps else []
        temporary = path.with_name(f"{path.name}.tmp")
        temporary.write_text("".join(map(_line, self.kept)), encoding="utf-8")
        temporary.replace(path)  # atomic: a run that is killed here loses no row
        self._file = path.open("a", encoding="utf-8")

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
