"""Where the roles run."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

from ring_ray.config.check import require
from ring_ray.config.keys import key

Device: TypeAlias = Literal["cpu", "cuda"]


@dataclass(kw_only=True, slots=True)
class RoleResources:
    """Actors of one role and what each may use of the cluster; fractions share a core or a GPU."""

    workers: int = key(1, "Actors of this role.")
    cpus: float = key(0.25, "Cores that Ray sets aside for each; from 2 on, also its threads.")
    gpus: float = key(0.0, "GPUs that Ray sets aside for each; above 0 for policy and rollout, or for neither.")


@dataclass(kw_only=True, slots=True)
class ClusterConfig:
    """Where the actors run."""

    name: str = key("local", "Name of the chosen file of conf/cluster.")
    address: str | None = key(
        None, "Address of a running Ray cluster; null is RAY_ADDRESS, else one of its own on this machine."
    )
    overlap: bool = key(True, "Generation goes on while the policy trains; false interrupts it.")
    colocate: bool = key(True, "Policy rank i, reference i and engine i share bundle i; false gives each its own.")
    take_turns: bool = key(False, "Whoever is not at work gives its memory back; needs overlap=false.")
    placement_timeout_seconds: float = key(60.0, "Seconds to wait for what the roles ask for on a busy cluster.")
    policy: RoleResources = key(RoleResources(cpus=0.5), "Ranks that train the policy (DeepSpeed).")
    reference: RoleResources = key(
        RoleResources(), "The reference policy; spawned where algo.kl_coefficient is above 0."
    )
    rollout: RoleResources = key(RoleResources(cpus=0.5), "Engines that generate (vLLM).")
    reward: RoleResources = key(RoleResources(), "The pool of processes that verify responses.")
    reward_model: RoleResources = key(
        RoleResources(), "The reward model of reward.model.path, if there is one; placed as the reference is."
    )
    buffer: RoleResources = key(RoleResources(), "The rollout buffer and its ledger: one actor.")

    def __post_init__(self) -> None:
        for role in ("policy", "reference", "rollout", "reward", "reward_model", "buffer"):
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
