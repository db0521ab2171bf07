"""The loop on in-process fakes: the order of a step, and what it hands on."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from ring_ray.config import AlgoConfig
from ring_ray.roles import BatchRef, LogprobsRef, RolloutRef
from ring_ray.stream import StreamSnapshot
from ring_ray.sync import WeightSyncError
from ring_ray.types import Rollout, UpdateMetrics
from tests.unit.fakes import (
    FakeCheckpoints,
    FakePolicy,
    FakePrompts,
    FakeReference,
    FakeReward,
    FakeRollout,
    StepList,
)
from tests.unit.loop import run
from tests.unit.test_packing import make_sequence


def test_every_step_trains_then_loads_the_next_version() -> None:
    rollout = FakeRollout()
    _, policy, _ = run(AlgoConfig(token_budget=50), steps=3, rollout=rollout)
    assert [batch.version for batch in policy.batches] == [0, 1, 2]
    assert (rollout.version, rollout.loads) == (3, 3)


@pytest.mark.parametrize("overlap", [True, False])
def test_only_with_overlap_is_anything_sampled_while_the_policy_trains(overlap: bool) -> None:
    rollout = FakeRollout()

    class Watching(FakePolicy):
        sampled = 0

        async def update(self, batch: BatchRef, reference: LogprobsRef | None) -> UpdateMetrics:
            before = rollout.sampled
            metrics = await super().update(batch, reference)
            self.sampled += rollout.sampled - before
            return metrics

    policy = Watching()
    run(AlgoConfig(token_budget=50, max_staleness=5), overlap=overlap, rollout=rollout, policy=policy)
    assert (policy.sampled > 0) == overlap


def test_reference_logprobs_reach_the_policy() -> None:
    _, policy, _ = run(AlgoConfig(token_budget=50, kl_coefficient=1e-3), reference=FakeReference())
    for batch, logprobs in zip(policy.batches, policy.references, strict=True):
        assert [len(values) for values in logprobs] == [len(segment) for segment in batch.segments]  # type: ignore[attr-defined]


def test_each_step_hands_on_samples_of_what_was_scored_during_it() -> None:
    log, reward = StepList(), FakeReward()
    evaluated = Rollout(
        prompt=replace(FakePrompts().next(), index=10**6), sequences=(make_sequence(np.random.default_rng(0), 3, 5),)
    )
    asyncio.run(reward.score(RolloutRef(evaluated)))  # belongs to no step
    run(AlgoConfig(token_budget=300, group_size=4), reward=reward, log=log)
    assert [*log.samples] == [1, 2, 3, 4, 5]
    indices = [sample.prompt_index for samples in log.samples.values() for sample in samples]
    assert indices
    assert 10**6 not in indices
    assert len(set(indices)) == len(indices)


def test_checkpoints_are_taken_before_the_new_weights_and_written_after_the_step_is_reported() -> None:
    rollout, log = FakeRollout(), StepList()
    seen = []

    class Watching(FakeCheckpoints):
        async def take(self, step: int, stream: StreamSnapshot, score: float) -> None:
            await super().take(step, stream, score)
            seen.append((step, rollout.version, len(log.steps)))

        def write(self) -> None:
            super().write()
            assert self.written == [step for step in (2, 4) if step <= len(log.steps)]

    checkpoints = Watching(every=2)
    run(AlgoConfig(token_budget=50), rollout=rollout, log=log, checkpoints=checkpoints)
    assert seen == [(2, 1, 1), (4, 3, 3)]
    assert [checkpoints.taken[step].state.generated for step in (2, 4)] == [
        log.steps[step - 1].ledger.generated for step in (2, 4)
    ]


def test_by_turns_each_role_holds_its_memory_only_while_it_works() -> None:
    rollout, policy = FakeRollout(), FakePolicy()

    class Watching(FakeReference):
        async def logprobs(self, batch: BatchRef) -> LogprobsRef:
            assert rollout.asleep
            return await super().logprobs(batch)

    algo = AlgoConfig(token_budget=50, kl_coefficient=1e-3, max_staleness=5)
    steps, _, _ = run(
        algo, overlap=False, take_turns=True, rollout=rollout, policy=policy, reference=Watching(), steps=3
    )
    assert [step.memory_bytes for step in steps] == 3 * [
        {
            "wait/policy": 0,
            "wait/rollout": 0,
            "reference/policy": 0,
            "reference/rollout": 0,
            "update/policy": 200,
            "update/rollout": 0,
            "sync/policy": 0,
            "sync/rollout": 100,
        }
    ]


def test_without_turns_nobody_sleeps() -> None:
    rollout, policy = FakeRollout(), FakePolicy()
    steps, _, _ = run(AlgoConfig(token_budget=50), rollout=rollout, policy=policy, verify=True)
    assert policy.on_device
    assert not rollout.asleep
    assert all(step.memory_bytes == {} for step in steps)


def test_an_engine_with_other_weights_stops_the_run() -> None:
    class Corrupted(FakeRollout):
        checksum = "another"

    run(AlgoConfig(token_budget=50), rollout=Corrupted())
    with pytest.raises(WeightSyncError, match=r"rollout engine 1 at policy version 1: 1 of 1 tensors differ .*: w"):
        run(AlgoConfig(token_budget=50), rollout=Corrupted(), verify=True)
