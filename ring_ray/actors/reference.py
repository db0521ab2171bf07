"""The reference policy: frozen, spawned only where the KL coefficient is above 0."""

from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import ray
from ray import ObjectRef

from ring_ray.actors.calls import WorkerLostError, two_refs
from ring_ray.actors.fleet import Fleet
from ring_ray.actors.memory import held_bytes
from ring_ray.actors.worker import Worker
from ring_ray.config import Device, RunConfig
from ring_ray.engines.hf import ReferenceModel
from ring_ray.roles import BatchRef, LogprobsRef, RollBackError
from ring_ray.types import FloatArray, TokenBatch

T = TypeVar("T")


class ReferenceWorker(Worker):
    """One of several that share each batch."""

    def __init__(self, config: RunConfig, device: Device, rank: int) -> None:
        self._config, self._device, self._rank = config, device, rank
        self._model: ReferenceModel | None = None

    @ray.method
    def start(self, model_path: str) -> None:
        config = self._config
        self._model = None  # before there is another
        self._model = ReferenceModel(
            model_path,
            config.model,
            temperature=config.rollout.temperature,
            micro_batch_tokens=config.train.micro_batch_tokens,
            packing=config.train.packing,
            device=self._device,
        )
        self._rest(self._model)

    @ray.method
    def logprobs(self, batch: TokenBatch) -> dict[int, FloatArray]:
        """Of this worker's share of the segments, by their index."""
        if self._model is None:
            raise RuntimeError("the reference was asked to work before start()")
        found = self._model.logprobs(batch, self._rank, self._config.cluster.reference.workers)
        self._rest(self._model)
        return found

    @ray.method(num_returns=2)
    def merge(self, *shares: dict[int, FloatArray]) -> tuple[tuple[FloatArray, ...], None]:
        """The log-probs of all segments in order, and a second value that is there when they are."""
        found = {index: values for share in shares for index, values in share.items()}
        return tuple(found[index] for index in range(len(found))), None

    @ray.method
    def memory(self) -> int:
        return held_bytes(self._device)

    def _rest(self, model: ReferenceModel) -> None:
        if self._config.cluster.take_turns:
            model.offload()


class ReferencePool:
    """`ReferenceRole` over workers that share each batch. Where one is lost, all are started anew."""

    def __init__(self, fleet: Fleet[ReferenceWorker]) -> None:
        self._fleet = fleet
        self._seconds = fleet.recovery.config.work_seconds
        self._model_path: str | None = None

    async def start(self, model_path: str) -> None:
        self._model_path = model_path
        await self._persist(self._load)

    async def logprobs(self, batch: BatchRef) -> LogprobsRef:
        segments = cast("ObjectRef[TokenBatch]", batch)

        async def score() -> LogprobsRef:
            shares = [worker.logprobs.remote(segments) for worker in self._fleet]
            await self._fleet.ask_all(shares, "score a batch", self._seconds)
            merged, done = two_refs(self._fleet[0].merge.remote(*shares))
            await self._fleet.ask(0, done, "merge what all have found", self._seconds)
            return LogprobsRef(merged)

        return await self._persist(score)

    async def memory(self) -> int:
        async def measure() -> int:
            calls = (worker.memory.remote() for worker in self._fleet)
            return sum(await self._fleet.ask_all(calls, "measure its memory", self._seconds))

        return await self._persist(measure)

    async def _load(self) -> None:
        if self._model_path is not None:
            calls = (worker.start.remote(self._model_path) for worker in self._fleet)
            await self._fleet.ask_all(calls, "load the model", self._seconds)

    async def _persist(self, work: Callable[[], Awaitable[T]]) -> T:
        """What ``work`` returns, as often begun as it takes."""
        recovery = self._fleet.recovery
        while True:
            members = dict(enumerate(self._fleet))
            try:
                done = await work()
                recovery.well("reference")
                return done
            except WorkerLostError as error:
                recovery.made_good(await self._fleet.make_good("reference", members, error, self._load))
            except ray.exceptions.ObjectLostError as error:
                raise RollBackError("a batch is lost with the node that held it", kind="data") from error
