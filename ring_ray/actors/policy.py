"""The policy: a gang of ranks that act as one."""

import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar, cast

import ray
from ray import ObjectRef
from ray.actor import ActorProxy
from torch import Tensor

from ring_ray.actors.calls import WorkerLostError, two_refs
from ring_ray.actors.fleet import Fleet
from ring_ray.actors.memory import held_bytes
from ring_ray.actors.worker import Worker
from ring_ray.checkpoint.batch import SavedBatch, write_batch
from ring_ray.checkpoint.store import CheckpointError, read_manifest
from ring_ray.checkpoint.tensors import POLICY, read_tensors
from ring_ray.config import AlgoConfig, Device, RunConfig, TrainConfig
from ring_ray.engines.deepspeed import DeepSpeedEngine
from ring_ray.engines.transports import make_transport
from ring_ray.engines.weights import Parcel, Transport, checksum, parcels
from ring_ray.roles import BatchRef, LogprobsRef, ParcelRef, PolicyStateRef, RollBackError
from ring_ray.types import FloatArray, TokenBatch, UpdateMetrics

T = TypeVar("T")


class PolicyWorker(Worker):
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
            processes=config.rollout.tensor_parallel,
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
    def keep(self, batch: TokenBatch, reference: tuple[FloatArray, ...] | None, path: str) -> None:
        write_batch(path, SavedBatch(batch=batch, reference=reference))

    @ray.method
    def start_parcels(self, receivers: Sequence[str]) -> None:
        config, weights = self._config, self._started.weights()
        if self._transport is not None:
            self._transport.open(receivers)
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
    """`PolicyRole` over R ranks: every call goes to all of them, rank 0 answers.

    They stand and fall together: where one is lost, the others wait for it in a collective, and all are started anew.
    """

    def __init__(self, fleet: Fleet[PolicyWorker]) -> None:
        self._fleet = fleet

    async def start(self, model_path: str, train: TrainConfig, algo: AlgoConfig) -> None:
        meeting = (await self._all(lambda worker: worker.rendezvous.remote(), "find a port"))[0]
        await self._all(lambda worker: worker.start.remote(meeting, model_path, train, algo), "load the model")

    async def update(self, batch: BatchRef, reference: LogprobsRef | None) -> UpdateMetrics:
        segments = cast("TokenBatch | ObjectRef[TokenBatch]", batch)
        logprobs = cast("ObjectRef[tuple[FloatArray, ...] | None] | None", reference)
        return (await self._all(lambda worker: worker.update.remote(segments, logprobs), "take a step"))[0]

    async def keep(self, batch: BatchRef, reference: LogprobsRef | None, path: str) -> None:
        segments = cast("TokenBatch | ObjectRef[TokenBatch]", batch)
        logprobs = cast("ObjectRef[tuple[FloatArray, ...] | None] | None", reference)
        await self._fleet.ask(0, self._fleet[0].keep.remote(segments, logprobs, path), "keep a batch")

    async def parcels(self, receivers: Sequence[str]) -> AsyncIterator[ParcelRef]:
        await self._all(lambda worker: worker.start_parcels.remote(receivers), "gather the weights")
        while True:
            calls = [two_refs(worker.next_parcel.remote()) for worker in self._fleet]
            more = await self._answers([more for _, more in calls], "send weights")
            if not all(more):
                return
            yield ParcelRef([parcel for parcel, _ in calls])

    async def checksums(self) -> dict[str, str]:
        return (await self._all(lambda worker: worker.checksums.remote(), "add up the weights"))[0]

    async def offload(self) -> None:
        await self._all(lambda worker: worker.offload.remote(), "give the devices' memory back")

    async def memory(self) -> int:
        return sum(await self._all(lambda worker: worker.memory.remote(), "measure its memory"))

    async def save(self, path: str) -> None:
        await self._all(lambda worker: worker.save.remote(path), "save the model")

    async def snapshot(self) -> PolicyStateRef:
        """Waits until all ranks have taken theirs."""
        calls = [two_refs(worker.snapshot.remote()) for worker in self._fleet]
        await self._answers([taken for _, taken in calls], "copy its state")
        return PolicyStateRef([share for share, _ in calls])

    async def restore(self, checkpoint: str) -> None:
        await self._all(lambda worker: worker.restore.remote(checkpoint), "read a checkpoint")

    async def check(self) -> None:
        if death := await self._fleet.death():
            raise await self._lost(list(self._fleet), death) from death

    async def _all(self, call: Callable[[ActorProxy[PolicyWorker]], ObjectRef[T]], doing: str) -> list[T]:
        return await self._answers([call(worker) for worker in self._fleet], doing)

    async def _answers(self, calls: list[ObjectRef[T]], doing: str) -> list[T]:
        members, seconds = list(self._fleet), self._fleet.recovery.config.work_seconds
        try:
            return await self._fleet.ask_all(calls, doing, seconds)
        except WorkerLostError as error:
            raise await self._lost(members, error) from error
        except ray.exceptions.RayError as error:
            # The first to fail may have done so because another rank has died.
            lost = await self._fleet.death()
            if lost is None and isinstance(error, ray.exceptions.ObjectLostError):
                lost = WorkerLostError("a batch is lost with the node that held it", silent=False)
            if lost is None:
                raise
            raise await self._lost(members, lost) from error

    async def _lost(self, members: list[ActorProxy[PolicyWorker]], why: WorkerLostError) -> RollBackError:
        return RollBackError(await self._fleet.replace(dict(enumerate(members)), why), kind="policy")
