"""The rollout buffer as an actor: batches leave it by reference, only their numbers pass through the controller."""

from typing import cast

import ray
from ray import ObjectRef
from ray.actor import ActorProxy

from ring_ray.actors.calls import two_refs
from ring_ray.actors.names import Named
from ring_ray.buffer import BufferState, RolloutBuffer
from ring_ray.config import AlgoConfig
from ring_ray.roles import BatchRef, BufferStateRef, BufferStatus, RolloutRef
from ring_ray.types import BatchSummary, Ledger, Reward, Rollout, TokenBatch


class BufferWorker(Named):
    def __init__(self, algo: AlgoConfig, seed: int) -> None:
        self._algo, self._seed = algo, seed
        self._buffer = RolloutBuffer(algo, seed)
        self._revision = 0

    def _status(self) -> BufferStatus:
        self._revision += 1
        return BufferStatus(
            revision=self._revision, queued=self._buffer.queued_steps(), backlog=self._buffer.backlog_steps()
        )

    @ray.method
    def add(self, rollout: Rollout) -> BufferStatus:
        self._buffer.add(rollout)
        return self._status()

    @ray.method
    def score(self, prompt_index: int, rewards: tuple[Reward, ...]) -> BufferStatus:
        self._buffer.score(prompt_index, rewards)
        return self._status()

    @ray.method(num_returns=2)
    def take(self) -> tuple[TokenBatch, tuple[BatchSummary, BufferStatus]]:
        batch, summary = self._buffer.take()
        return batch, (summary, self._status())

    @ray.method
    def advance(self, version: int) -> tuple[Ledger, BufferStatus]:
        self._buffer.advance(version)
        return self._buffer.ledger(), self._status()

    @ray.method
    def snapshot(self) -> BufferState:
        return self._buffer.state()

    @ray.method
    def restore(self, state: BufferState) -> tuple[BufferStatus, tuple[int, ...]]:
        """Also returns the indices of the prompts that wait for rewards."""
        self._buffer = RolloutBuffer(self._algo, self._seed, state)
        return self._status(), tuple(self._buffer.waiting)

    @ray.method
    def waiting(self, prompt_index: int) -> Rollout:
        return self._buffer.waiting[prompt_index]


class BufferHandle:
    """`BufferRole` over the actor."""

    def __init__(self, worker: ActorProxy[BufferWorker]) -> None:
        self._worker = worker

    async def add(self, rollout: RolloutRef) -> BufferStatus:
        return await self._worker.add.remote(cast("ObjectRef[Rollout]", rollout))

    async def score(self, prompt_index: int, rewards: tuple[Reward, ...]) -> BufferStatus:
        return await self._worker.score.remote(prompt_index, rewards)

    async def take(self) -> tuple[BatchRef, BatchSummary, BufferStatus]:
        batch, answer = two_refs(self._worker.take.remote())
        summary, status = await answer
        return BatchRef(batch), summary, status

    async def advance(self, version: int) -> tuple[Ledger, BufferStatus]:
        return await self._worker.advance.remote(version)

    async def snapshot(self) -> BufferStateRef:
        """Does not wait for the worker, which answers calls in their order."""
        return BufferStateRef(self._worker.snapshot.remote())

    async def restore(self, state: BufferStateRef) -> tuple[BufferStatus, dict[int, RolloutRef]]:
        status, waiting = await self._worker.restore.remote(cast("ObjectRef[BufferState]", state))
        return status, {index: RolloutRef(self._worker.waiting.remote(index)) for index in waiting}
