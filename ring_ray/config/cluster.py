"""Where the roles run."""

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ring_ray.config.check import require

Device: TypeAlias = Literal["cpu", "cuda"]


@dataclass(kw_only=True, slots=True)
class RoleResources:
    """Actors of one role and what each may use of the cluster; fractions share a core or a GPU."""

    workers: int = 1  # processes: ranks of the policy, engines of the rollout, the pool of the reward
    cpus: float = 0.25
    gpus: float = 0.0


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Where the actors run."""

    name: str = "local"
    address: str | None = None  # of a running Ray cluster; null starts one on this machine
    overlap: bool = True  # generation goes on while the policy trains; false interrupts it
    colocate: bool = True  # policy rank i, reference i and engine i share bundle i; false gives each its own
    take_turns: bool = False  # whoever is not at work gives its memory back; needs overlap=false
    placement_timeout_seconds: float = 60.0
    policy: RoleResources = field(default_factory=lambda: RoleResources(cpus=0.5))
    reference: RoleResources = field(default_factory=RoleResources)
    rollout: RoleResources = field(default_factory=lambda: RoleResources(cpus=0.5))
    reward: RoleResources = field(default_factory=RoleResources)
    buffer: RoleResources = field(default_factory=RoleResources)

    def __post_init__(self) -> None:
        for role in ("policy", "reference", "rollout", "reward", "buffer"):
            resources: RoleResources = getattr(self, role)
            require(resources.workers >= 1, f"cluster.{role}.workers", resources.workers, "must be at least 1")
            require(resources.cpus > 0, f"cluster.{role}.cpus", resources.cpus, "must be above 0")
            require(resources.gpus >= 0, f"cluster.{role}.gpus", resources.gpus, "must not be negative")
        require(self.buffer.workers == 1, "cluster.buffer.workers", self.buffer.workers, "there is only one")
        require(
            not (self.take_turns and self.overlap),
            "cluster.take_turns",
            self.take_turns,
            "needs cluster.overlap=false: who takes turns can't work at the same time",
        )
        require(
            (self.policy.gpus > 0) == (self.rollout.gpus > 0),
            "cluster.rollout.gpus",
            self.rollout.gpus,
            f"policy and rollout run on GPUs together or not at all: cluster.policy.gpus={self.policy.gpus}",
        )

    @property
    def device(self) -> Device:
        """What the engines run on: GPUs where the roles were given a share of one."""
        return "cuda" if self.policy.gpus > 0 else "cpu"
