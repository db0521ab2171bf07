"""When a run is saved, and for how long."""

from dataclasses import dataclass

from ring_ray.config.check import require
from ring_ray.config.keys import key


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """What a run saves to go on from. A checkpoint stays if it is among the last, among the best or a milestone."""

    every: int = key(20, "Optimizer steps from one checkpoint to the next; 0 for none.")
    keep_last: int = key(2, "Newest checkpoints that stay, at least 1.")
    keep_best: int = key(1, "Checkpoints that stay since the mean reward of their step is the highest; 0 for none.")
    keep_every: int = key(0, "Checkpoints of steps that this divides stay; 0 for none.")
    directory: str | None = key(
        None,
        "Directory that every node sees, or its URL as fsspec has it, such as `s3://...`; each run takes one in there, "
        "which is called as the run's. null is `checkpoints` in the run's directory.",
    )

    def __post_init__(self) -> None:
        for name in ("every", "keep_best", "keep_every"):
            require(getattr(self, name) >= 0, f"checkpoint.{name}", getattr(self, name), "must not be negative")
        require(self.keep_last >= 1, "checkpoint.keep_last", self.keep_last, "must be at least 1")
        require(
            self.every == 0 or self.keep_every % self.every == 0,
            "checkpoint.keep_every",
            self.keep_every,
            f"must be a multiple of checkpoint.every={self.every}: only those steps are saved",
        )
