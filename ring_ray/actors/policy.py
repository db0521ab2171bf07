"""The policy: a gang of ranks that act as one."""

import asyncio
import socket
from typing import cast

import ray
from ray import ObjectRef
from ray.actor import ActorProxy

from ring_ray.actors.calls import two_refs
from ring_ray.config import AlgoConfig, Device, RunConfig, TrainConfig
from ring_ray.engines.deepspeed import DeepSpeedEngine
from ring_ray.roles import BatchRef, LogprobsRef, WeightsRef
from ring_ray.types import FloatArray, TokenBatch, UpdateMetrics, Weights


class PolicyWorker:
    """One rank."""

    def __init__(self, config: RunConfig, device: Device, rank: int, world_size: int) -> None:
        self._config, self._device = config, device
        self._rank, self._world_size = rank, world_size
        self._engine: DeepSpeedEngine | None = None

    @ray.method
    def rendezvous(self) -> tuple[str, int]:
        """An address and a free port of this rank's node, for all ranks to meet at."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    @ray.method
    def start(self, meeting: tuple[str, int], model_path: str, train: TrainConfig, algo: AlgoConfig) -> None:
        if self._engine is not None:
            self._engine.close()
        self._engine = DeepSpeedEngine(
            model_path,
            model=self._config.model,
            train=train,
            algo=algo,
            temperature=self._config.rollout.temperature,
            device=self._device,
            rank=self._rank,
            world_size=self._world_size,
            master_address=meeting[0],
            master_port=meeting[1],
        )

    @property
    def _started(self) -> DeepSpeedEngine:
        if self._engine is None:
            raise RuntimeError("the policy was asked to work before start()")
        return self._engine

    @ray.method
    def update(self, batch: TokenBatch, reference: tuple[FloatArray, ...] | None) -> UpdateMetrics:
        return self._started.update(batch, reference)

    @ray.method(num_returns=2)
    def weights(self) -> tuple[Weights, None]:
        """The weights, and a second value that is there when they are."""
        return self._started.weights(), None

    @ray.method
    def save(self, path: str) -> None:
        self._started.save(path)


class PolicyGang:
    """`PolicyRole` over R ranks: every call goes to all of them, rank 0 answers."""

    def __init__(self, workers: list[ActorProxy[PolicyWorker]]) -> None:
        self._workers = workers

    async def start(self, model_path: str, train: TrainConfig, algo: AlgoConfig) -> None:
        meeting = await self._workers[0].rendezvous.remote()
        await asyncio.gather(*(worker.start.remote(meeting, model_path, train, algo) for worker in self._workers))

    async def update(self, batch: BatchRef, reference: LogprobsRef | None) -> UpdateMetrics:
        segments = cast("TokenBatch | ObjectRef[TokenBatch]", batch)
        logprobs = cast("ObjectRef[tuple[FloatArray, ...] | None] | None", reference)
        metrics = await asyncio.gather(*(worker.update.remote(segments, logprobs) for worker in self._workers))
        return metrics[0]

    async def weights(self) -> WeightsRef:
        gathered = [two_refs(worker.weights.remote()) for worker in self._workers]
        await asyncio.gather(*(done for _, done in gathered))
        return WeightsRef(gathered[0][0])

    async def save(self, path: str) -> None:
        await asyncio.gather(*(worker.save.remote(path) for worker in self._workers))
