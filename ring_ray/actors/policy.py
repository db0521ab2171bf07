"""The policy: a gang of ranks that act as one."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import cast

import ray
from ray import ObjectRef
from ray.actor import ActorProxy
from torch import Tensor

from ring_ray.actors.calls import two_refs
from ring_ray.actors.memory import held_bytes
from ring_ray.actors.names import Named
from ring_ray.checkpoint.store import CheckpointError, read_manifest
from ring_ray.checkpoint.tensors import POLICY, read_tensors
from ring_ray.config import AlgoConfig, Device, RunConfig, TrainConfig
from ring_ray.engines.deepspeed import DeepSpeedEngine
from ring_ray.engines.weights import Parcel, Transport, checksum, make_transport, parcels
from ring_ray.roles import BatchRef, LogprobsRef, ParcelRef, PolicyStateRef
from ring_ray.types import FloatArray, TokenBatch, UpdateMetrics


class PolicyWorker(Named):
    """One rank."""

    def __init__(self, config: RunConfig, device: Device, rank: int) -> None:
        self._config, self._device, self._rank = config, device, rank
        self._engine: DeepSpeedEngine | None = None
        self._transport = self._make_transport()
        self._parcels: Iterator[Parcel] = iter(())

    def _make_transport(self) -> Transport | None:
        """Rank 0 sends to all engines; over shared memory rank i does, to engine i alone."""
        config = self._config
        senders = config.cluster.rollout.workers if config.transport == "ipc" else 1
        if self._rank >= senders:
            return None
        return make_transport(
            config.transport,
            address=ray.util.get_node_ip_address(),
            receivers=config.cluster.rollout.workers * config.rollout.tensor_parallel,
            directory=Path(config.sync.directory or config.run_dir) / "weights",
        )

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
            world_size=self._config.cluster.policy.workers,
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

    @ray.method
    def start_parcels(self) -> None:
        config, weights = self._config, self._started.weights()
        self._parcels = parcels(weights, self._transport, config.transport, config.sync.bucket_mib << 20)

    @ray.method(num_returns=2)
    def next_parcel(self) -> tuple[Parcel | None, bool]:
        """The next parcel, and whether there was one."""
        parcel = next(self._parcels, None)
        return parcel, parcel is not None

    @ray.method
    def checksums(self) -> dict[str, str]:
        """On rank 0; the others only help to gather the weights."""
        weights = self._started.weights()
        return {name: checksum(tensor) if self._rank == 0 else "" for name, tensor in weights}

    @ray.method
    def offload(self) -> None:
        self._started.offload()

    @ray.method
    def memory(self) -> int:
        return held_bytes(self._device)

    @ray.method
    def save(self, path: str) -> None:
        self._started.save(path)

    @ray.method(num_returns=2)
    def snapshot(self) -> tuple[dict[str, Tensor], None]:
        """This rank's share, and a sign that it is taken."""
        return self._started.snapshot(), None

    @ray.method
    def restore(self, checkpoint: str) -> None:
        try:
            self._started.restore(read_tensors(checkpoint, read_manifest(checkpoint), POLICY))
        except ValueError as error:
            raise CheckpointError(f"{checkpoint}: {error}") from error


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

    async def parcels(self) -> AsyncIterator[ParcelRef]:
        await asyncio.gather(*(worker.start_parcels.remote() for worker in self._workers))
        while True:
            calls = [two_refs(worker.next_parcel.remote()) for worker in self._workers]
            if not all(await asyncio.gather(*(more for _, more in calls))):
                return
            yield ParcelRef([parcel for parcel, _ in calls])

    async def checksums(self) -> dict[str, str]:
        return (await asyncio.gather(*(worker.checksums.remote() for worker in self._workers)))[0]

    async def offload(self) -> None:
        await asyncio.gather(*(worker.offload.remote() for worker in self._workers))

    async def memory(self) -> int:
        return sum(await asyncio.gather(*(worker.memory.remote() for worker in self._workers)))

    async def save(self, path: str) -> None:
        await asyncio.gather(*(worker.save.remote(path) for worker in self._workers))

    async def snapshot(self) -> PolicyStateRef:
        """Waits until all ranks have taken theirs. Raises what one raised: the others then wait for it for ever."""
        calls = [two_refs(worker.snapshot.remote()) for worker in self._workers]
        await asyncio.gather(*(taken for _, taken in calls))
        return PolicyStateRef([share for share, _ in calls])

    async def restore(self, checkpoint: str) -> None:
        await asyncio.gather(*(worker.restore.remote(checkpoint) for worker in self._workers))
