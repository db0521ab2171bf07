"""What a run of a sweep has left: in its directory, as far as that can be seen from here, and in its log."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ring_ray.config import RunConfig

LOG_LINES = 20  # of a failed job
TAIL_BYTES = 65536  # more than one line of metrics.jsonl


def has_result(config: RunConfig, directory: Path) -> bool:
    """Whether ``directory`` holds the result of this very config; what it is called proves nothing."""
    saved = directory / "config.yaml"
    if not saved.exists() or not (directory / "summary.json").exists():
        return False
    return _deciding(OmegaConf.load(saved)) == _deciding(OmegaConf.structured(config))


def _deciding(config: Any) -> dict[str, Any]:
    """The values that a result depends on: not where it is written or saved, nor who is told."""
    values: Any = OmegaConf.to_container(config)
    values["sync"].pop("directory")
    return {
        name: value for name, value in values.items() if name not in ("run_dir", "resume", "checkpoint", "tracking")
    }


def accuracy(directory: Path) -> float | None:
    """Accuracy of a finished run on held-out prompts after RL; None where there is no summary.json."""
    summary = directory / "summary.json"
    return float(json.loads(summary.read_text())["accuracy"]["rl"]["value"]) if summary.exists() else None


def last_step(directory: Path) -> dict[str, float | None]:
    """The newest metrics of a run, by name; empty where there is no step yet."""
    metrics = directory / "metrics.jsonl"
    if not metrics.exists():
        return {}
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - TAIL_BYTES))
        lines = file.read().split(b"\n")[:-1]  # what follows the last newline is being written
    return dict(json.loads(lines[-1])) if lines else {}


def error_in(log: str) -> str:
    """What a failed job says of its failure: from its last line with "error:" on, or else its last lines."""
    lines = log.strip().splitlines()
    clear = [index for index, line in enumerate(lines) if line.startswith("error:")]
    return "\n".join(lines[clear[-1] :][:LOG_LINES] if clear else lines[-LOG_LINES:])
