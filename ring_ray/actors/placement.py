"""Which actor runs in which bundle of the run's one placement group, and whether the cluster can hold it.

With ``cluster.colocate`` policy rank i, rollout engine i and reference i share bundle i by fractions, so that on a GPU
they have the same device. Without, each has a bundle of its own. The buffer and the reward workers share one more.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from ring_ray.config import ClusterConfig, RoleResources


class PlacementError(RuntimeError):
    """The cluster can't hold what the run asks for."""


@dataclass(frozen=True, slots=True)
class Bundle:
    cpus: float
    gpus: float

    def resources(self) -> dict[str, float]:
        return {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount > 0}


@dataclass(frozen=True, slots=True)
class Plan:
    bundles: tuple[Bundle, ...]
    places: dict[str, tuple[int, ...]]  # by role: the index of each worker's bundle
    table: str  # for people: what each role asks for


def plan(cluster: ClusterConfig, *, with_reference: bool) -> Plan:
    """Lay the roles out in bundles."""
    devices = {"policy": cluster.policy, "rollout": cluster.rollout}
    if with_reference:
        devices["reference"] = cluster.reference
    members: list[list[RoleResources]] = []  # of each bundle
    places: dict[str, tuple[int, ...]] = {}
    for name, role in devices.items():
        start = 0 if cluster.colocate else len(members)
        places[name] = tuple(range(start, start + role.workers))
        members += [[] for _ in range(start + role.workers - len(members))]
        for index in places[name]:
            members[index].append(role)
    services = {"buffer": cluster.buffer, "reward": cluster.reward}
    places |= {name: (len(members),) * role.workers for name, role in services.items()}
    members.append([role for role in services.values() for _ in range(role.workers)])
    table = "\n".join(
        f"  cluster.{name:<10} {role.workers:>3} x {role.cpus:g} CPU, {role.gpus:g} GPU"
        for name, role in (devices | services).items()
    )
    # Whole GPUs: Ray would put the halves of two bundles on one, and with them two ranks.
    bundles = tuple(
        Bundle(sum(role.cpus for role in bundle), ceil(round(sum(role.gpus for role in bundle), 4)))
        for bundle in members
    )
    return Plan(bundles, places, table)


def check(asked: Plan, nodes: list[dict[str, float]]) -> None:
    """Raise `PlacementError`, with a table of asked and available, unless every bundle finds a node (first fit)."""
    left = [(node.get("CPU", 0.0), node.get("GPU", 0.0)) for node in nodes]
    for bundle in sorted(asked.bundles, key=lambda bundle: (bundle.gpus, bundle.cpus), reverse=True):
        # Ray counts resources in ten-thousandths; compare in the same unit, or 0.1 + 0.2 would not fit into 0.3
        fits = [
            i
            for i, (cpus, gpus) in enumerate(left)
            if round(cpus - bundle.cpus, 4) >= 0 and round(gpus - bundle.gpus, 4) >= 0
        ]
        if not fits:
            raise PlacementError(_explain(asked, nodes))
        cpus, gpus = left[fits[0]]
        left[fits[0]] = (cpus - bundle.cpus, gpus - bundle.gpus)


def _explain(asked: Plan, nodes: list[dict[str, float]]) -> str:
    lines = ["the cluster can't hold this run", asked.table, "             asked  available"]
    for name, amounts in (
        ("CPU", [bundle.cpus for bundle in asked.bundles]),
        ("GPU", [bundle.gpus for bundle in asked.bundles]),
    ):
        lines.append(f"  {name:<10} {sum(amounts):>5g}  {sum(node.get(name, 0.0) for node in nodes):g}")
    lines.append(
        f"  in bundles of {', '.join(f'{b.cpus:g} CPU + {b.gpus:g} GPU' for b in asked.bundles)}, none across nodes"
    )
    return "\n".join(lines)


@asynccontextmanager
async def placed(asked: Plan, timeout_seconds: float) -> AsyncIterator[PlacementGroup]:
    """The placement group, ready; removed at the end."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    check(asked, nodes)
    group = placement_group([bundle.resources() for bundle in asked.bundles], strategy="PACK")
    try:
        try:
            async with asyncio.timeout(timeout_seconds):
                await group.ready()
        except TimeoutError:
            raise PlacementError(
                f"the cluster is busy: waited cluster.placement_timeout_seconds={timeout_seconds:g} for\n"
                f"{asked.table}\n"
                f"  free now: {ray.available_resources()}"
            ) from None
        yield group
    finally:
        remove_placement_group(group)
