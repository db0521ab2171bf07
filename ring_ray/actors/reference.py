"""The reference policy: frozen, spawned only where the KL coefficient is above 0."""

import asyncio
from typing import cast

import ray
from ray import ObjectRef
from ray.actor import ActorProxy

from ring_ray.actors.calls import two_refs
from ring_ray.actors.memory import held_bytes
from ring_ray.actors.names import Named
from ring_ray.config import Device, RunConfig
from ring_ray.engines.hf import ReferenceModel
from ring_ray.roles import BatchRef, LogprobsRef
from ring_ray.types import FloatArray, TokenBatch


class ReferenceWorker(Named):
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
    """`ReferenceRole` over workers that share each batch."""

    def __init__(self, workers: list[ActorProxy[ReferenceWorker]]) -> None:
        self._workers = workers

    async def start(self, model_path: str) -> None:
        await asyncio.gather(*(worker.start.remote(model_path) for worker in self._workers))

    async def logprobs(self, batch: BatchRef) -> LogprobsRef:
        segments = cast("ObjectRef[TokenBatch]", batch)
        shares = [worker.logprobs.remote(segments) for worker in self._workers]
        merged, done = two_refs(self._workers[0].merge.remote(*shares))
        await done
        return LogprobsRef(merged)

    async def memory(self) -> int:
        return sum(await asyncio.gather(*(worker.memory.remote() for worker in self._workers)))
