"""The rollout buffer as an actor: batches leave it by reference, only their numbers pass through the controller."""

from collections.abc import Awaitable
from typing import TypeVar, cast

import ray
from ray import ObjectRef
from ray.actor import ActorProxy

from ring_ray.actors.calls import WorkerLostError, two_refs
from ring_ray.actors.fleet import Fleet
from ring_ray.actors.worker import Worker
from ring_ray.buffer import BufferState, RolloutBuffer
from ring_ray.config import AlgoConfig
from ring_ray.roles import BatchRef, BufferStateRef, BufferStatus, RollBackError, RolloutRef
from ring_ray.types import BatchSummary, Ledger, Reward, Rollout, TokenBatch

T = TypeVar("T")


class BufferWorker(Worker):
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
    def advance(self, version: int, skipped: TokenBatch | None) -> tuple[Ledger, BufferStatus]:
        self._buffer.advance(version, skipped)
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

    def __init__(self, fleet: Fleet[BufferWorker]) -> None:
        """Of one."""
        self._fleet = fleet
        self._lost: RollBackError | None = None  # until `restore`: whoever asks its successor would find it empty

    @property
    def _worker(self) -> ActorProxy[BufferWorker]:
        if self._lost:
            raise self._lost
        return self._fleet[0]

    async def add(self, rollout: RolloutRef) -> BufferStatus:
        try:
            return await self._ask(self._worker.add.remote(cast("ObjectRef[Rollout]", rollout)), "take a rollout")
        except ray.exceptions.ObjectLostError as error:
            raise self._fleet.recovery.rollout_lost() from error

    async def score(self, prompt_index: int, rewards: tuple[Reward, ...]) -> BufferStatus:
        return await self._ask(self._worker.score.remote(prompt_index, rewards), "take rewards")

    async def waiting(self, prompt_index: int) -> RolloutRef:
        return RolloutRef(ray.put(await self._ask(self._worker.waiting.remote(prompt_index), "give a rollout again")))

    async def take(self) -> tuple[BatchRef, BatchSummary, BufferStatus]:
        batch, answer = two_refs(self._worker.take.remote())
        summary, status = await self._ask(answer, "give a batch")
        return BatchRef(batch), summary, status

    async def advance(self, version: int, skipped: BatchRef | None = None) -> tuple[Ledger, BufferStatus]:
        batch = cast("ObjectRef[TokenBatch | None] | None", skipped)
        return await self._ask(self._worker.advance.remote(version, batch), "say where every token is")

    async def snapshot(self) -> BufferStateRef:
        """Does not wait for the worker, which answers calls in their order."""
        return BufferStateRef(self._worker.snapshot.remote())

    async def restore(self, state: BufferStateRef) -> tuple[BufferStatus, dict[int, RolloutRef]]:
        self._lost = None
        saved = cast("ObjectRef[BufferState]", state)
        status, waiting = await self._ask(self._worker.restore.remote(saved), "take its state")
        return status, {index: RolloutRef(self._worker.waiting.remote(index)) for index in waiting}

    async def _ask(self, call: Awaitable[T], doing: str) -> T:
        try:
            return await self._fleet.ask(0, call, doing, self._fleet.recovery.config.answer_seconds)
        except WorkerLostError as error:
            if self._lost is None:
                self._lost = RollBackError(str(error), kind="buffer")
                self._lost = RollBackError(await self._fleet.replace({0: self._fleet[0]}, error), kind="buffer")
            raise self._lost from error
