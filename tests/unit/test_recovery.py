"""What is lost under the loop, on in-process fakes: engines, rollouts' tokens, the policy, a policy that collapsed."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_ray.config import AlgoConfig, CheckpointConfig, TrainConfig
from ring_ray.reinforcement import RecoveryError
from ring_ray.roles import BatchRef, LogprobsRef, RollBackError, RolloutLostError, RolloutRef
from ring_ray.sync import WeightSync
from ring_ray.types import Reward, RolloutStatus, UpdateMetrics
from tests.unit.fakes import PARCELS, FakePolicy, FakeReward, FakeRollout
from tests.unit.loop import run, trained_tokens
from tests.unit.test_stages import CONFIG
from tests.unit.test_stages import run as run_stages


class UnreliableRollout(FakeRollout):
    """Now and then an engine is lost with what it was asked for, or the tokens that it had returned before."""

    def __init__(self, seed: int, engines: float, tokens: float) -> None:
        super().__init__(seed=seed)
        self._chance, self._engines, self._tokens = random.Random(seed), engines, tokens
        self.lost = 0

    async def generate(self, rollout: RolloutRef) -> tuple[RolloutRef, RolloutStatus] | None:
        if self._chance.random() < self._engines:
            await asyncio.sleep(0)
            return None
        if self._chance.random() < self._tokens:
            self.lost += 1
            raise RolloutLostError("gone")
        return await super().generate(rollout)


class UnreliableReward(FakeReward):
    """Every third rollout that it is given is lost on the way."""

    asked = 0

    async def score(self, rollout: RolloutRef) -> tuple[Reward, ...]:
        self.asked += 1
        if self.asked % 3 == 0:
            raise RolloutLostError("gone")
        return await super().score(rollout)


@settings(max_examples=40, deadline=None)
@given(
    budget=st.integers(1, 400),
    overlap=st.booleans(),
    seed=st.integers(0, 1000),
    engines=st.floats(0, 0.5),
    tokens=st.floats(0, 0.5),
)
def test_whatever_is_lost_the_budget_is_exact_and_every_token_is_somewhere(
    budget: int, overlap: bool, seed: int, engines: float, tokens: float
) -> None:
    algo = AlgoConfig(token_budget=budget, group_size=3, max_staleness=50)
    rollout = UnreliableRollout(seed, engines, tokens)
    steps, policy, _ = run(algo, overlap=overlap, rollout=rollout, reward=UnreliableReward(seed=seed))
    assert [step.batch.trained_tokens for step in steps] == [budget] * 5
    assert all(step.ledger.balanced for step in steps)
    assert steps[-1].ledger.generated <= rollout.sampled  # what the last engine calls sampled is not reported
    assert (steps[-1].ledger.dropped > 0) <= (rollout.lost > 0)
    assert max(trained_tokens(policy.batches).values()) == 1
    for batch in policy.batches:
        for segment in batch.segments:
            assert segment.sequence.response_ids.tolist() == list(range(len(segment.sequence)))


class MortalPolicy(FakePolicy):
    """Some updates raise what ``failures`` has for their number, counted from 1 over all attempts."""

    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__()
        self._failures, self.updates = failures, 0

    async def update(self, batch: BatchRef, reference: LogprobsRef | None) -> UpdateMetrics:
        self.updates += 1
        if error := self._failures.get(self.updates):
            raise error
        return await super().update(batch, reference)


SAVED = replace(CONFIG, checkpoint=CheckpointConfig(every=2), train=TrainConfig(steps=6))


def died() -> RollBackError:
    return RollBackError("policy rank 0 died", kind="policy")


def test_a_lost_policy_goes_back_to_the_newest_checkpoint(tmp_path: Path) -> None:
    policy = MortalPolicy({4: died(), 6: died()})  # in step 4, and again in step 4 after going back to 2
    _, _, journal, _ = run_stages(SAVED, FakeReward(), None, tmp_path, policy)
    assert [path.rpartition("/")[2] for path in policy.restored] == ["step-00000002", "step-00000002"]
    assert [row.step for row in journal.rows] == [1, 2, 3, 4, 5, 6]
    assert all(row.ledger.balanced for row in journal.rows)
    assert [row.ledger.trained for row in journal.rows] == [50, 100, 150, 200, 250, 300]
    assert [(fault.kind, fault.what) for fault in journal.faults] == [("policy", "policy rank 0 died")] * 2
    survived = [*policy.batches[:2], *policy.batches[-4:]]
    assert max(trained_tokens(survived).values()) == 1


def test_a_fault_that_comes_again_and_again_ends_the_run(tmp_path: Path) -> None:
    policy = MortalPolicy({number: died() for number in range(4, 100)})
    with pytest.raises(RecoveryError, match=r"policy rank 0 died; recovery\.limit=5"):
        run_stages(SAVED, FakeReward(), None, tmp_path, policy)


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    policy = MortalPolicy({2: died()})
    with pytest.raises(RecoveryError, match=r"no checkpoint to go back to: checkpoint\.every=0"):
        run_stages(replace(SAVED, checkpoint=CheckpointConfig(every=0)), FakeReward(), None, tmp_path, policy)


def test_a_collapse_goes_back_to_before_it(tmp_path: Path) -> None:
    collapse = RollBackError("training has collapsed", kind="collapse", before=3)
    policy = MortalPolicy({6: collapse})
    _, _, journal, _ = run_stages(SAVED, FakeReward(), None, tmp_path, policy)
    assert [path.rpartition("/")[2] for path in policy.restored] == ["step-00000002"]
    assert [row.step for row in journal.rows] == [1, 2, 3, 4, 5, 6]


def test_an_error_that_a_dead_rank_is_behind_goes_back_as_well(tmp_path: Path) -> None:
    class Behind(MortalPolicy):
        async def check(self) -> None:
            raise died()

    policy = Behind({3: RuntimeError("receive failed in 1 of 1 ranks of the engine")})
    _, _, journal, _ = run_stages(SAVED, FakeReward(), None, tmp_path, policy)
    assert [fault.kind for fault in journal.faults] == ["policy"]


def test_an_error_of_nobodys_death_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        run_stages(SAVED, FakeReward(), None, tmp_path, MortalPolicy({3: ZeroDivisionError()}))


class OneLost(FakeRollout):
    """Of two engines the other is lost, and comes back while work goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.back = asyncio.Event()
        self.updates: list[tuple[str, ...]] = []
        self.received: list[object] = []

    def begin_update(self, *, newcomers: bool) -> tuple[str, ...]:
        self.updates.append(("other, start 2",) if newcomers else ("one",))
        return self.updates[-1]

    async def receive(self, parcel: object) -> bool:
        self.received.append(parcel)
        return len(self.received) != 3  # lost in the middle: the update must begin again

    async def resume(self, version: int | None = None) -> None:
        self.version = version or 0
        self.back.clear()

    async def returned(self) -> None:
        await self.back.wait()


def together(work: Callable[[OneLost, WeightSync], Awaitable[None]]) -> OneLost:
    async def go() -> OneLost:
        rollout = OneLost()
        await asyncio.wait_for(work(rollout, WeightSync(FakePolicy(), rollout, verify=False, take_turns=False)), 10)
        return rollout

    return asyncio.run(go())


def test_an_engine_that_is_back_gets_the_weights_of_the_others_while_work_goes_on() -> None:
    async def work(rollout: OneLost, sync: WeightSync) -> None:
        await sync.transfer(version=3)

        async def until_it_is_up() -> int:
            rollout.back.set()
            while rollout.back.is_set():
                await asyncio.sleep(0)
            return 7

        assert await sync.alongside(until_it_is_up()) == 7

    rollout = together(work)
    assert rollout.updates == [("one",), ("other, start 2",), ("other, start 2",)]  # lost once in between
    assert rollout.received == [*PARCELS, PARCELS[0], *PARCELS]
    assert rollout.version == 3


def test_before_the_first_transfer_it_has_the_weights_that_all_have() -> None:
    async def work(rollout: OneLost, sync: WeightSync) -> None:
        rollout.back.set()
        await sync.alongside(asyncio.sleep(0.01))

    rollout = together(work)
    assert (rollout.updates, rollout.received) == ([("other, start 2",)], [])


def test_what_keeps_an_engine_away_ends_the_work() -> None:
    class Gone(OneLost):
        async def returned(self) -> None:
            raise RuntimeError("lost too often")

    async def go() -> None:
        sync = WeightSync(FakePolicy(), Gone(), verify=False, take_turns=False)
        await sync.alongside(asyncio.Event().wait())

    with pytest.raises(RuntimeError, match="lost too often"):
        asyncio.run(asyncio.wait_for(go(), 10))
