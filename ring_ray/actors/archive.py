"""A checkpoint's large files, written and read by processes of their own: nobody who trains waits for a disk."""

import asyncio
from collections.abc import Callable
from collections.abc import Sequence as Many
from itertools import chain
from typing import Any, cast

import ray
from ray import ObjectRef
from ray.actor import ActorProxy
from torch import Tensor

from ring_ray.actors.calls import end_actor
from ring_ray.actors.worker import Worker
from ring_ray.buffer import BufferState
from ring_ray.checkpoint.rollouts import read_rollouts, write_rollouts
from ring_ray.checkpoint.store import CheckpointError, FileRecord
from ring_ray.checkpoint.tensors import POLICY, write_tensors
from ring_ray.roles import BufferStateRef, PolicyStateRef, RolloutRef
from ring_ray.types import Rollout


class ArchiveWorker(Worker):
    """Writes what a rank of the policy has, on that rank's node."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    @ray.method
    def write_share(self, checkpoint: str, share: dict[str, Tensor]) -> list[FileRecord]:
        return write_tensors(checkpoint, f"{POLICY}-{self._rank:05d}", share)

    @ray.method
    def write_rollouts(self, checkpoint: str, buffer: BufferState, *unfinished: Rollout) -> list[FileRecord]:
        return [write_rollouts(checkpoint, buffer, unfinished)]

    @ray.method
    def read_rollouts(self, checkpoint: str, unfinished: int) -> tuple[BufferState | Rollout, ...] | BufferState:
        """The buffer's state, and each unfinished rollout as a return value of its own."""
        saved = read_rollouts(checkpoint)
        if len(saved.unfinished) != unfinished:
            raise CheckpointError(f"{checkpoint}: has {len(saved.unfinished)} unfinished rollouts, not {unfinished}")
        return (saved.buffer, *saved.unfinished) if unfinished else saved.buffer


class ArchivePool:
    """`ArchiveRole` over a worker for each rank of the policy, started when there is something to do."""

    def __init__(self, spawn: Callable[[], list[ActorProxy[ArchiveWorker]]]) -> None:
        self._spawn = spawn
        self._workers: list[ActorProxy[ArchiveWorker]] = []

    async def write(
        self, checkpoint: str, policy: PolicyStateRef, buffer: BufferStateRef, unfinished: Many[RolloutRef]
    ) -> tuple[FileRecord, ...]:
        shares = cast("list[ObjectRef[dict[str, Tensor]]]", policy)
        rollouts = cast("list[ObjectRef[Rollout]]", unfinished)
        workers = self._started()
        calls = [worker.write_share.remote(checkpoint, share) for worker, share in zip(workers, shares, strict=True)]
        last = workers[-1]
        calls.append(last.write_rollouts.remote(checkpoint, cast("ObjectRef[BufferState]", buffer), *rollouts))
        # Until all have ended, so that nobody writes any more where something failed.
        ended = await asyncio.gather(*calls, return_exceptions=True)
        for error in ended:
            if isinstance(error, ray.exceptions.RayError):
                raise self._told(error, f"{checkpoint}: can't be written") from error
            if isinstance(error, BaseException):
                raise error
        return tuple(chain.from_iterable(cast("list[list[FileRecord]]", ended)))

    async def read(self, checkpoint: str, unfinished: Many[int]) -> tuple[BufferStateRef, dict[int, RolloutRef]]:
        self._end()  # those that wrote it may have died with the policy's node
        call: Any = self._started()[-1].read_rollouts
        found = call.options(num_returns=1 + len(unfinished)).remote(checkpoint, len(unfinished))
        buffer, *rollouts = found if unfinished else [found]
        try:
            await buffer
        except ray.exceptions.RayError as error:
            raise self._told(error, f"{checkpoint}: can't be read") from error
        return BufferStateRef(buffer), dict(zip(unfinished, map(RolloutRef, rollouts), strict=True))

    def _started(self) -> list[ActorProxy[ArchiveWorker]]:
        self._workers = self._workers or self._spawn()
        return self._workers

    def _told(self, error: ray.exceptions.RayError, what: str) -> Exception:
        """The worker's own error, or that there was none: it died, or what it was given is lost."""
        if isinstance(error, CheckpointError):
            return error
        self._end()  # the next checkpoint has others
        return CheckpointError(f"{what}: {error}")

    def _end(self) -> None:
        for worker in self._workers:
            end_actor(worker)
        self._workers = []
