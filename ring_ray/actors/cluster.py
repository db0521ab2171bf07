"""Ray for one run: connect or start, place, spawn every actor, and end them again."""

import asyncio
import logging
import os
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray import ObjectRef
from ray._private import ray_constants
from ray.actor import ActorProxy
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ring_ray.actors.archive import ArchivePool, ArchiveWorker
from ring_ray.actors.buffer import BufferHandle, BufferWorker
from ring_ray.actors.calls import end_actor
from ring_ray.actors.fleet import FaultLog, Fleet, Recovery
from ring_ray.actors.job import end_on_sigterm, submitted_variables
from ring_ray.actors.placement import Plan, placed, plan
from ring_ray.actors.policy import PolicyGang, PolicyWorker
from ring_ray.actors.reference import ReferencePool, ReferenceWorker
from ring_ray.actors.reward import Reservoir, RewardPool, RewardRouter, RewardWorker
from ring_ray.actors.rollout import RolloutPool, RolloutWorker
from ring_ray.config import ClusterConfig, ConfigError, RoleResources, RunConfig, require
from ring_ray.rewards.registry import REWARD_MODEL, Verifiers
from ring_ray.roles import RewardRole, Roles
from ring_ray.types import RolloutSample

logger = logging.getLogger(__name__)

Member = TypeVar("Member")

CLOSE_SECONDS = 20
# One thread an actor that has no cores of its own: on shared cores, two such processes outrun one of two.
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "ERROR"}
# Before their numbers, for the Ray dashboard; the namespace is the run's own, so that two runs don't collide.
NAMES = {
    "policy": "policy rank",
    "rollout": "rollout engine",
    "reward": "reward worker",
    "reward_model": "reward model",
}
NO_RESOURCES = RoleResources(cpus=0.0)  # of those who wait for a disk
MAX_CALLS = 100_000  # in progress in one rollout worker: an interruption must never queue behind what it interrupts


@contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """Connect to ``cluster.address`` (or RAY_ADDRESS), else `start_ray`; shut down at the end.

    Raises `ConfigError` where no cluster answers, or where it wants another token.
    """
    submitted = submitted_variables()  # they win, and Ray refuses a variable that is set twice
    variables = {name: value for name, value in WORKER_ENVIRONMENT.items() if name not in submitted}
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if address:
        require(
            not address.startswith(("http://", "https://")),
            "cluster.address",
            address,
            "(or RAY_ADDRESS) is a dashboard's, for jobs/submit.sh and hydra/launcher=ray_job; a run started "
            "here joins a cluster by HEAD:6379, or starts its own without an address",
        )
        try:
            ray.init(address=address, runtime_env={"env_vars": variables}, log_to_driver=False)
        except (ConnectionError, ray.exceptions.AuthenticationError) as error:
            raise ConfigError(f"no Ray cluster at cluster.address={address} (or RAY_ADDRESS): {error}") from error
    else:
        start_ray(variables)
    end_on_sigterm()
    try:
        yield
    finally:
        ray.shutdown()


def start_ray(variables: Mapping[str, str]) -> None:
    """Start Ray on this machine, on loopback only, without a dashboard; ``variables`` are its workers' environment."""
    # Otherwise Ray takes the address of an interface, even for 127.0.0.1, and listens on all of them.
    ray_constants.ENABLE_RAY_CLUSTER = False
    # Asking for a token is Ray's default here, unless RAY_AUTH_MODE=disabled. A secret of this process, which its
    # workers inherit, is one that nobody else knows and that leaves no file behind.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    ray.init(
        address="local",  # never a cluster that happens to run here
        include_dashboard=False,
        runtime_env={"env_vars": dict(variables)},
        log_to_driver=False,
        logging_level=logging.ERROR,
        _system_config={"task_events_report_interval_ms": 0},  # a history of all calls, which only dashboards show
    )


@asynccontextmanager
async def spawned(
    config: RunConfig,
    model_path: str,
    log: FaultLog,
    rollout_worker: type[RolloutWorker] = RolloutWorker,
    *,
    verifiers: Collection[str],
) -> AsyncIterator[Roles]:
    """All actors of a run, placed; engines are closed and actors ended on the way out, whatever happened.

    ``log`` is told of workers that were lost and replaced. ``rollout_worker`` is for experiments that change how
    responses are sampled. ``verifiers`` are the names of those that the data asks for.
    """
    layout = plan(config.cluster, config.optional_roles)
    async with placed(layout, config.cluster.placement_timeout_seconds) as group:
        crew = Crew(config, model_path, layout, group, log, rollout_worker, verifiers)
        try:
            await crew.roles.rollout.resume()  # nothing to resume: it answers once the engines are up
            yield crew.roles
        finally:
            await crew.end()


class Crew:
    """The actors of one run, each in its bundle."""

    def __init__(
        self,
        config: RunConfig,
        model_path: str,
        layout: Plan,
        group: PlacementGroup,
        log: FaultLog,
        rollout_worker: type[RolloutWorker],
        verifiers: Collection[str],
    ) -> None:
        cluster, device = config.cluster, config.cluster.device
        self._group, self._cluster = group, cluster
        self._places = layout.places
        self._recovery = Recovery(config.recovery, log, Path(config.run_dir))
        self._fleets: list[Fleet[Any]] = []
        self._archivists: list[ActorProxy[ArchiveWorker]] = []
        buffer = self._fleet(BufferWorker, "buffer", lambda _: (config.algo, config.seed))
        rollout = self._fleet(rollout_worker, "rollout", lambda rank: (model_path, config, device, config.seed + rank))
        policy = self._fleet(PolicyWorker, "policy", lambda rank: (config, device, rank))
        reference = self._fleet(ReferenceWorker, "reference", lambda rank: (config, device, rank))
        self._rollout = RolloutPool(rollout, config.transport)
        self.roles = Roles(
            policy=PolicyGang(policy),
            rollout=self._rollout,
            reward=self._reward_role(model_path, config, frozenset(verifiers)),
            buffer=BufferHandle(buffer),
            archive=ArchivePool(self._spawn_archivists),
            reference=ReferencePool(reference) if "reference" in self._places else None,
        )

    def _reward_role(self, model_path: str, config: RunConfig, verifiers: frozenset[str]) -> RewardRole:
        """One pool, or two where the reward model has workers of its own."""
        kept = Reservoir[ObjectRef[RolloutSample]](config.tracking.sampled_rollouts, config.seed)

        def pool(role: str, names: frozenset[str]) -> RewardPool:
            fleet = self._fleet(RewardWorker, role, lambda _: (model_path, config, names))
            verdicts = Verifiers(config.reward).seconds(names, config.algo.group_size)
            return RewardPool(fleet, call_seconds=verdicts + config.recovery.answer_seconds, kept=kept)

        if "reward_model" not in self._places:
            return pool("reward", verifiers)
        apart = frozenset({REWARD_MODEL})
        return RewardRouter(pool("reward", verifiers - apart), pool("reward_model", apart))

    def _fleet(self, worker: type[Member], role: str, arguments: Callable[[int], tuple[object, ...]]) -> Fleet[Member]:
        """The workers of a role, none where it has no place."""
        bundles = self._places.get(role, ())
        names = [f"{NAMES.get(role, role)} {rank}" for rank in range(len(bundles))]

        def spawn(rank: int, name: str) -> ActorProxy[Member]:
            return self._spawn(worker, name, bundles[rank], getattr(self._cluster, role), arguments(rank))

        fleet = Fleet(names, spawn, self._recovery)
        self._fleets.append(fleet)
        return fleet

    def _spawn(
        self,
        worker: type[Member],
        name: str | None,
        bundle: int,
        resources: RoleResources,
        arguments: tuple[object, ...],
    ) -> ActorProxy[Member]:
        options: dict[str, Any] = {"num_cpus": resources.cpus, "num_gpus": resources.gpus}
        if resources.cpus >= 2:
            options["runtime_env"] = {"env_vars": {"OMP_NUM_THREADS": str(int(resources.cpus))}}
        if issubclass(worker, RolloutWorker):
            options["max_concurrency"] = MAX_CALLS
        place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)
        return ray.remote(worker).options(name=name, scheduling_strategy=place, **options).remote(*arguments)

    def _spawn_archivists(self) -> list[ActorProxy[ArchiveWorker]]:
        """One beside each rank of the policy."""
        self._archivists = [
            self._spawn(ArchiveWorker, None, bundle, NO_RESOURCES, (rank,))
            for rank, bundle in enumerate(self._places["policy"])
        ]
        return self._archivists

    async def end(self) -> None:
        """Close the engines, whose processes would outlive a killed actor, then end every actor."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._rollout.close()
        except (ray.exceptions.RayError, TimeoutError) as error:
            logger.warning("a rollout worker did not close its engine: %s", error)
        finally:
            for fleet in self._fleets:
                fleet.end()
            for archivist in self._archivists:
                end_actor(archivist)
