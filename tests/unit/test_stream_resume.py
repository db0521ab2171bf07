"""A stream that is snapshot at any settle, written, read and restored with new roles goes on as if nothing had been."""

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_ray.buffer import BufferState
from ring_ray.checkpoint.codec import decode, encode
from ring_ray.config import AlgoConfig
from ring_ray.roles import BufferStateRef, RolloutRef
from ring_ray.stream import RolloutStream, StreamSnapshot, StreamState
from ring_ray.sync import WeightSync
from ring_ray.types import Ledger, Rollout, TokenBatch
from tests.unit.fakes import FakePolicy, FakePrompts, FakeReward, FakeRollout, LocalBuffer
from tests.unit.loop import trained_tokens


@dataclass(frozen=True)
class Pace:
    """How long things take, in turns of the event loop."""

    overlap: bool = False
    in_waves: bool = False
    jitter: int = 0  # most that a token takes beyond one
    scoring: int = 1  # tokens whose time a group's rewards take
    seed: int = 0  # of the jitter

    async def tick(self, random: np.random.Generator) -> None:
        for _ in range(1 + int(random.integers(self.jitter + 1))):
            await asyncio.sleep(0)


class PacedRollout(FakeRollout):
    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace, self._jitter = pace, np.random.default_rng((pace.seed, 0))

    async def tick(self) -> None:
        await self._pace.tick(self._jitter)


class PacedReward(FakeReward):
    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace, self._jitter = pace, np.random.default_rng((pace.seed, 1))

    async def tick(self) -> None:
        for _ in range(self._pace.scoring):
            await self._pace.tick(self._jitter)


@dataclass(frozen=True)
class Written:
    """A snapshot as it is in files."""

    state: bytes
    rollouts: bytes

    @staticmethod
    def of(snapshot: StreamSnapshot) -> "Written":
        return Written(msgspec.json.encode(snapshot.state), encode((snapshot.buffer, snapshot.unfinished)))

    def read(self) -> StreamSnapshot:
        buffer, unfinished = self.rollouts_read()
        return StreamSnapshot(
            state=self.state_read(),
            buffer=BufferStateRef(buffer),
            unfinished={index: RolloutRef(rollout) for index, rollout in unfinished.items()},
        )

    def state_read(self) -> StreamState:
        return msgspec.json.decode(self.state, type=StreamState)

    def rollouts_read(self) -> tuple[BufferState, dict[int, Rollout]]:
        return decode(self.rollouts, tuple[BufferState, dict[int, Rollout]])


@dataclass
class History:
    """What happened in each step."""

    batches: list[TokenBatch] = field(default_factory=list)
    summaries: list[bytes] = field(default_factory=list)
    ledgers: list[Ledger] = field(default_factory=list)
    snapshots: list[Written] = field(default_factory=list)

    def since(self, step: int) -> list[Any]:
        states = [snapshot.state for snapshot in self.snapshots[step:]]
        return [encode(self.batches[step:]), self.summaries[step:], self.ledgers[step:], states]


STEPS = 6


def live(algo: AlgoConfig, pace: Pace, first: int = 0, begin: Written | None = None) -> History:
    """A process' life, from policy version ``first`` to ``STEPS``; all but what ``begin`` holds is new."""
    history = History()
    rollout, reward, policy = PacedRollout(pace), PacedReward(pace), FakePolicy()

    async def go() -> None:
        stream = RolloutStream(
            prompts=FakePrompts(),
            rollout=rollout,
            sync=WeightSync(policy, rollout, verify=False, take_turns=False),
            reward=reward,
            buffer=LocalBuffer(algo),
            algo=algo,
            overlap=pace.overlap,
            max_in_flight=4 * algo.group_size,
            max_response_tokens=30,
            in_waves=pace.in_waves,
        )
        if begin is not None:
            rollout.version = first
            await stream.restore(begin.read())
        async with stream:
            for step in range(first + 1, STEPS + 1):
                batch, summary = await stream.take()
                if not pace.overlap:
                    await stream.pause()
                await policy.update(batch, None)
                ledger = await stream.settle(version=step)
                history.snapshots.append(Written.of(await stream.snapshot()))
                await stream.go_on(version=step)
                history.summaries.append(encode(summary))
                history.ledgers.append(ledger)

    asyncio.run(asyncio.wait_for(go(), timeout=60))
    history.batches = policy.batches
    return history


algorithms = st.one_of(
    st.builds(
        AlgoConfig,
        token_budget=st.integers(20, 400),
        group_size=st.integers(2, 5),
        max_staleness=st.integers(0, 3),
        carry=st.booleans(),
        cutoff=st.sampled_from(["token", "response"]),
        filter_zero_advantage=st.booleans(),
    ),
    st.builds(
        AlgoConfig,
        selection=st.just("groups"),
        groups_per_step=st.integers(1, 6),
        group_size=st.integers(2, 5),
        max_staleness=st.integers(1, 3),
    ),
)


@settings(max_examples=25, deadline=None)
@given(algo=algorithms, step=st.integers(1, STEPS - 1))
def test_at_the_same_pace_everything_is_as_without_the_interruption(algo: AlgoConfig, step: int) -> None:
    """Batches, ledgers and all that later snapshots hold."""
    history = live(algo, Pace())
    resumed = live(algo, Pace(), step, history.snapshots[step - 1])
    assert resumed.since(0) == history.since(step)
    assert resumed.snapshots == history.snapshots[step:]


@settings(max_examples=25, deadline=None)
@given(algo=algorithms, step=st.integers(1, STEPS - 1), seeds=st.tuples(st.integers(0, 9), st.integers(10, 19)))
def test_in_waves_the_pace_is_nothing_to_it(algo: AlgoConfig, step: int, seeds: tuple[int, int]) -> None:
    first, second = (Pace(in_waves=True, jitter=5, seed=seed) for seed in seeds)
    history = live(algo, first)
    assert live(algo, second).since(0) == history.since(0)
    assert live(algo, second, step, history.snapshots[step - 1]).since(0) == history.since(step)


def test_a_step_waits_for_no_other_wave_than_it_needs() -> None:
    algo = AlgoConfig(selection="groups", groups_per_step=2, group_size=2, max_staleness=3)
    history = live(algo, Pace(in_waves=True))
    assert [written.state_read().cursor["issued"] for written in history.snapshots] == [4, 8, 8, 12, 12, 16]


def test_without_waves_the_pace_decides_what_is_trained() -> None:
    algo = AlgoConfig(token_budget=300, group_size=4)
    first, second = (live(algo, Pace(jitter=5, seed=seed)) for seed in (0, 1))
    assert first.since(0) != second.since(0)


@settings(max_examples=40, deadline=None)
@given(
    algo=algorithms,
    step=st.integers(1, STEPS - 1),
    overlap=st.booleans(),
    in_waves=st.booleans(),
    scoring=st.integers(1, 20),
    seeds=st.tuples(st.integers(0, 9), st.integers(0, 9)),
)
def test_at_any_pace_nothing_is_lost_and_nothing_comes_twice(
    algo: AlgoConfig, step: int, overlap: bool, in_waves: bool, scoring: int, seeds: tuple[int, int]
) -> None:
    first, second = (Pace(overlap=overlap, in_waves=in_waves, jitter=5, scoring=scoring, seed=seed) for seed in seeds)
    before = live(algo, first)
    after = live(algo, second, step, before.snapshots[step - 1])
    batches = before.batches[:step] + after.batches
    trained = trained_tokens(batches)
    assert max(trained.values()) == 1
    assert [ledger.trained for ledger in after.ledgers] == np.cumsum(
        [batch.trained_tokens for batch in batches]
    ).tolist()[step:]
    assert all(ledger.balanced for ledger in after.ledgers)
    for batch in after.batches:
        for segment in batch.segments:
            sequence = segment.sequence
            assert sequence.response_ids.tolist() == list(range(len(sequence)))
            assert (np.diff(sequence.versions) >= 0).all()
            assert batch.version - sequence.versions[segment.start] <= algo.max_staleness
    for written in after.snapshots:
        check_prompts(written)


def check_prompts(written: Written) -> None:
    """Every prompt that was issued is either unfinished or in the buffer, and no other."""
    state, (buffer, unfinished) = written.state_read(), written.rollouts_read()
    assert state.unfinished.keys() == unfinished.keys()
    assert {index: rollout.prompt.index for index, rollout in unfinished.items()} == {i: i for i in unfinished}
    issued = Counter([*range(buffer.first_unseen), *buffer.seen, *unfinished])
    assert issued == Counter(range(state.cursor["issued"]))


def test_unfinished_responses_and_unscored_groups_are_in_a_snapshot_and_come_out_of_it() -> None:
    """That what the tests above restore is more than empty."""
    algo = AlgoConfig(token_budget=300, group_size=4, max_staleness=3)
    pace = Pace(overlap=True, scoring=20)
    history = live(algo, pace)
    held = [written.rollouts_read() for written in history.snapshots]
    step, waiting, begun = next(
        (step, set(buffer.waiting), begun)
        for step, (buffer, unfinished) in enumerate(held, start=1)
        if (begun := {index for index, rollout in unfinished.items() if any(map(len, rollout.sequences))})
        and buffer.waiting
    )
    resumed = live(algo, pace, step, history.snapshots[step - 1])
    trained = {segment.prompt_index for batch in resumed.batches for segment in batch.segments}
    assert waiting <= trained
    assert begun <= trained


def test_a_snapshot_while_tokens_are_sampled_is_refused() -> None:
    algo = AlgoConfig(token_budget=100, group_size=4)
    rollout, policy = FakeRollout(), FakePolicy()

    async def go() -> None:
        stream = RolloutStream(
            prompts=FakePrompts(),
            rollout=rollout,
            sync=WeightSync(policy, rollout, verify=False, take_turns=False),
            reward=FakeReward(),
            buffer=LocalBuffer(algo),
            algo=algo,
            overlap=True,
            max_in_flight=8,
            max_response_tokens=30,
        )
        async with stream:
            with pytest.raises(AssertionError):
                await stream.snapshot()

    asyncio.run(go())
