"""How long a run waits for its workers, and how often it goes on after a fault."""

from dataclasses import dataclass

from ring_ray.config.check import require
from ring_ray.config.keys import key


@dataclass(kw_only=True, slots=True)
class RecoveryConfig:
    """What a run takes for a fault. A worker that died is noticed at once, whatever these say."""

    limit: int = key(5, "Faults of one role in a row, without progress in between, after which the run stops.")
    answer_seconds: float = key(60.0, "Seconds in which an engine, the buffer or a verifier must answer.")
    work_seconds: float = key(3600.0, "Seconds that policy or reference may work on one call: a step, a model's start.")

    def __post_init__(self) -> None:
        require(self.limit >= 1, "recovery.limit", self.limit, "must be at least 1")
        for name in ("answer_seconds", "work_seconds"):
            require(getattr(self, name) > 0, f"recovery.{name}", getattr(self, name), "must be above 0")
