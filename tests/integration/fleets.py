"""Workers of a role without the rest of a run."""

import tempfile
from pathlib import Path
from typing import Any

import ray

from ring_ray.actors.fleet import Fleet, Recovery
from ring_ray.config import RecoveryConfig
from ring_ray.types import Fault


class Faults:
    """What workers tell the run of their faults."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.faults: list[Fault] = []

    def stage(self, text: str) -> None:
        self.stages.append(text)

    def fault(self, fault: Fault) -> None:
        self.faults.append(fault)


def make_fleet(
    worker: type[Any],
    role: str,
    *arguments: object,
    size: int = 1,
    log: Faults | None = None,
    recovery: RecoveryConfig | None = None,
    **options: Any,
) -> Fleet[Any]:
    """``size`` actors, each made with ``arguments``, without a share of the cluster's cores."""

    def spawn(rank: int, name: str) -> Any:
        return ray.remote(worker).options(**{"num_cpus": 0, "name": name, **options}).remote(*arguments)

    stacks = Path(tempfile.mkdtemp())
    return Fleet(
        [f"{role} {rank}" for rank in range(size)],
        spawn,
        Recovery(recovery or RecoveryConfig(), log or Faults(), stacks),
    )
