"""Which actor runs in which bundle of the run's one placement group, and whether the cluster can hold it.

With ``cluster.colocate`` policy rank i, rollout engine i, reference i and reward model i share bundle i by fractions,
so that on a GPU they have the same device. Without, each has a bundle of its own. The buffer and the reward workers
share one more.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
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
    """An amount of cores and GPUs on one node: what workers ask for, or what the node has."""

    cpus: float
    gpus: float

    @classmethod
    def of(cls, resources: Mapping[str, float]) -> "Bundle":
        """From amounts by Ray's names."""
        return cls(resources.get("CPU", 0.0), resources.get("GPU", 0.0))

    def resources(self) -> dict[str, float]:
        return {name: amount for name, amount in (("CPU", self.cpus), ("GPU", self.gpus)) if amount > 0}

    def __add__(self, other: "Bundle") -> "Bundle":
        return Bundle(self.cpus + other.cpus, self.gpus + other.gpus)

    def __sub__(self, other: "Bundle") -> "Bundle":
        return Bundle(self.cpus - other.cpus, self.gpus - other.gpus)

    def fits(self, node: "Bundle") -> bool:
        left = node - self
        # Ray counts resources in ten-thousandths; compare in the same unit, or 0.1 + 0.2 would not fit into 0.3
        return round(left.cpus, 4) >= 0 and round(left.gpus, 4) >= 0


@dataclass(frozen=True, slots=True)
class Plan:
    bundles: tuple[Bundle, ...]
    places: dict[str, tuple[int, ...]]  # by role: the index of each worker's bundle
    table: str  # for people: what each role asks for


def plan(cluster: ClusterConfig, optional: Iterable[str]) -> Plan:
    """Lay the roles out in bundles, those of the ``optional`` ones with them that a run has."""
    devices: dict[str, RoleResources] = {name: getattr(cluster, name) for name in ("policy", "rollout", *optional)}
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
        f"  cluster.{name:<12} {role.workers:>3} x {role.cpus:g} CPU, {role.gpus:g} GPU"
        for name, role in (devices | services).items()
    )
    # Whole GPUs: Ray would put the halves of two bundles on one, and with them two ranks.
    bundles = tuple(
        Bundle(sum(role.cpus for role in bundle), ceil(round(sum(role.gpus for role in bundle), 4)))
        for bundle in members
    )
    return Plan(bundles, places, table)


def first_fit(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> tuple[Bundle, ...] | None:
    """What is left of ``nodes`` when each bundle, the largest first, takes its part of the first that has room for it.

    None where one of them finds no room.
    """
    left = list(nodes)
    for bundle in sorted(bundles, key=lambda bundle: (bundle.gpus, bundle.cpus), reverse=True):
        index = next((index for index, node in enumerate(left) if bundle.fits(node)), None)
        if index is None:
            return None
        left[index] -= bundle
    return tuple(left)


def check(asked: Plan, nodes: Sequence[Mapping[str, float]]) -> None:
    """Raise `PlacementError`, with a table of asked and available, unless every bundle finds a node (first fit)."""
    if first_fit(asked.bundles, [Bundle.of(node) for node in nodes]) is None:
        raise PlacementError(_explain(asked, nodes))


def _explain(asked: Plan, nodes: Sequence[Mapping[str, float]]) -> str:
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
