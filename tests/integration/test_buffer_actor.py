"""The buffer's actor: its state leaves it and comes back by reference."""

import asyncio
from collections.abc import Iterator
from itertools import count
from typing import cast

import pytest
import ray
from ray import ObjectRef

from ring_ray.actors.buffer import BufferHandle, BufferWorker
from ring_ray.actors.cluster import ray_session
from ring_ray.buffer import BufferState
from ring_ray.checkpoint.codec import decode, encode
from ring_ray.config import AlgoConfig, ClusterConfig
from ring_ray.roles import BatchRef, BufferStateRef, RolloutRef
from ring_ray.types import Rollout, TokenBatch
from tests.conftest import Run
from tests.integration.fleets import make_fleet
from tests.unit.rollouts import rewards, rollout_of

NUMBERS = count()


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with ray_session(ClusterConfig()):
        yield


def make_buffer() -> BufferHandle:
    number = next(NUMBERS)  # Ray gives no name twice
    return BufferHandle(make_fleet(BufferWorker, f"buffer {number}", AlgoConfig(token_budget=4, group_size=2), 0))


def opened(ref: BatchRef) -> TokenBatch:
    return ray.get(cast("ObjectRef[TokenBatch]", ref))


def test_a_buffer_that_is_restored_in_another_actor_goes_on(run: Run) -> None:
    async def go() -> None:
        first, second = make_buffer(), make_buffer()
        for index in range(3):
            await first.add(RolloutRef(ray.put(rollout_of(index, 5, 3))))
        await first.score(0, rewards(1.0, 0.0))
        snapshot = cast("ObjectRef[BufferState]", await first.snapshot())
        taken = asyncio.ensure_future(first.take())  # of no effect on the snapshot, which nobody has waited for
        written = encode(await snapshot)
        await second.add(RolloutRef(ray.put(rollout_of(7, 1, 1))))  # restoring puts an end to this

        status, waiting = await second.restore(BufferStateRef(ray.put(decode(written, BufferState))))
        assert (status.revision, status.queued, status.backlog) == (2, 2.0, 6.0)
        assert list(waiting) == [1, 2]
        rollout = await cast("ObjectRef[Rollout]", waiting[2])
        assert (rollout.prompt.index, [len(sequence) for sequence in rollout.sequences]) == (2, [5, 3])
        batch, summary, _ = await second.take()
        expected, expected_summary, _ = await taken
        assert encode(opened(batch)) == encode(opened(expected))
        assert encode(summary) == encode(expected_summary)
        await second.score(1, rewards(1.0, 0.0))
        ledger, _ = await second.advance(1)
        assert (ledger.trained, ledger.queued, ledger.waiting, ledger.generated) == (4, 12, 8, 24)
        ledger, _ = await second.advance(1, batch)
        assert (ledger.trained, ledger.dropped) == (0, 4)

    run(go())
