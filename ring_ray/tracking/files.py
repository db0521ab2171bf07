"""The files of a run directory that grow line by line."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from ring_ray.types import RolloutSample

Row: TypeAlias = Mapping[str, object]


class JsonlFile:
    """One JSON object a line; a number that is not finite becomes null. A killed run leaves whole lines."""

    def __init__(self, path: Path) -> None:
        """Replaces what an earlier run left."""
        self._file = path.open("w", encoding="utf-8")

    def append(self, row: Row) -> None:
        finite = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        self._file.write(json.dumps(finite, allow_nan=False, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Idempotent."""
        self._file.close()


def rollout_row(step: int, sample: RolloutSample) -> dict[str, object]:
    """A line of rollouts.jsonl and a row of the W&B table: always the same columns, in the same order."""
    row = {"step": step, **asdict(sample)}
    reward = row.pop("reward")
    return row | {**reward, "verdict": sample.reward.verdict.value, "carried": sample.carried}
