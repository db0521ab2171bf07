"""The stream of rollouts under the whole loop: exact budgets, a balanced ledger, back-pressure, clear ends."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_ray.config import AlgoConfig, ConfigError
from ring_ray.roles import RolloutRef
from ring_ray.starvation import StarvedError, check_budget
from ring_ray.stream import LedgerError
from ring_ray.types import Reward, Rollout, RolloutStatus, Verdict
from tests.unit.fakes import (
    FakePolicy,
    FakePrompts,
    FakeReward,
    FakeRollout,
)
from tests.unit.loop import run, trained_tokens


@settings(max_examples=40, deadline=None)
@given(
    budget=st.integers(1, 400),
    group_size=st.integers(2, 5),
    staleness=st.integers(0, 3),
    carry=st.booleans(),
    filtered=st.booleans(),
    overlap=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_exact_budget_balanced_ledger_nothing_twice(
    budget: int, group_size: int, staleness: int, carry: bool, filtered: bool, overlap: bool, seed: int
) -> None:
    algo = AlgoConfig(
        token_budget=budget,
        group_size=group_size,
        max_staleness=staleness,
        carry=carry,
        filter_zero_advantage=filtered,
    )
    steps, policy, _ = run(algo, overlap=overlap, rollout=FakeRollout(seed=seed), reward=FakeReward(seed=seed))
    assert [step.batch.trained_tokens for step in steps] == [budget] * 5
    assert [sum(map(len, batch.segments)) for batch in policy.batches] == [budget] * 5
    assert all(step.ledger.balanced for step in steps)
    assert [step.ledger.trained for step in steps] == [budget * (i + 1) for i in range(5)]
    assert max(trained_tokens(policy.batches).values()) == 1
    for batch in policy.batches:
        for segment in batch.segments:
            assert segment.sequence.response_ids.tolist() == list(range(len(segment.sequence)))  # none lost on resume
            assert batch.version - segment.sequence.versions[segment.start : segment.stop].min() <= staleness


def test_interrupted_responses_resume_with_the_version_of_each_token() -> None:
    algo = AlgoConfig(token_budget=100, group_size=2, max_staleness=50)
    _, policy, _ = run(algo, steps=12, rollout=FakeRollout(mean_length=60))
    versions = [s.sequence.versions for batch in policy.batches for s in batch.segments]
    assert any(len(set(v.tolist())) > 1 for v in versions), "no response spans two policy versions"
    assert all((v[1:] >= v[:-1]).all() for v in versions)


def test_grpo_takes_whole_groups() -> None:
    algo = AlgoConfig(
        name="grpo", selection="groups", groups_per_step=3, aggregation="response", group_size=4, max_staleness=20
    )
    steps, policy, _ = run(algo)
    assert all(len(batch.segments) == 12 for batch in policy.batches)
    assert all(segment.start == 0 for batch in policy.batches for segment in batch.segments)
    assert len({step.batch.trained_tokens for step in steps}) > 1


def test_a_few_long_responses_do_not_hold_the_place_of_the_many_that_ended() -> None:
    """Every other prompt has one response that goes on for many steps; all others are one token long."""

    class LongTail(FakeRollout):
        def __init__(self) -> None:
            super().__init__()
            self.in_flight: dict[int, Rollout] = {}
            self.most_prompts, self.most_responses = 0, 0

        def length(self, rollout: Rollout, response: int) -> float:
            return math.inf if response == 0 and rollout.prompt.index % 2 else 1

        async def generate(self, rollout: RolloutRef) -> tuple[RolloutRef, RolloutStatus]:
            assert isinstance(rollout, Rollout)
            self.in_flight[rollout.prompt.index] = rollout
            responses = sum(not sequence.finished for one in self.in_flight.values() for sequence in one.sequences)
            self.most_prompts = max(self.most_prompts, len(self.in_flight))
            self.most_responses = max(self.most_responses, responses)
            grown = await super().generate(rollout)
            del self.in_flight[rollout.prompt.index]
            return grown

    rollout = LongTail()
    run(AlgoConfig(token_budget=8, group_size=4, max_staleness=10**6), steps=4, rollout=rollout)
    assert rollout.most_prompts > 8, "16 responses would be 4 groups, if each counted as whole"
    assert rollout.most_responses < 16 + 4


def test_back_pressure_keeps_tokens_from_growing_too_old() -> None:
    algo = AlgoConfig(token_budget=400, group_size=2, max_staleness=2)
    steps, _, _ = run(algo, steps=12, rollout=FakeRollout(mean_length=5), policy=FakePolicy(update_turns=1000))
    last = steps[-1].ledger
    assert last.in_flight + last.waiting + last.queued <= 2.2 * algo.token_budget
    assert last.evicted <= 0.02 * last.generated


def test_a_lost_token_stops_the_run() -> None:
    rollout = FakeRollout()
    rollout.lose_a_token = True
    with pytest.raises(LedgerError, match="tokens were generated but"):
        run(AlgoConfig(token_budget=50), rollout=rollout)


@pytest.mark.parametrize(("verdict", "place"), [(Verdict.FAILED, "dropped"), (Verdict.WRONG, "filtered")])
def test_starvation_is_an_error_and_counted(verdict: Verdict, place: str) -> None:
    algo = AlgoConfig(token_budget=50, filter_zero_advantage=True)
    with pytest.raises(StarvedError, match=r"algo\.token_budget=50"):
        run(algo, reward=FakeReward(verdict), prompts=FakePrompts(distinct=5))


@pytest.mark.parametrize("call", [1, 15, 30])
def test_one_error_in_a_role_ends_the_run_although_the_buffer_is_full(call: int) -> None:
    class Broken(FakeReward):
        calls = 0

        async def score(self, rollout: RolloutRef) -> tuple[Reward, ...]:
            self.calls += 1
            if self.calls == call:
                raise OSError("the verifier's disk is gone")
            return await super().score(rollout)

    slow = FakePolicy(update_turns=200)
    with pytest.raises(OSError, match="disk is gone"):
        run(AlgoConfig(token_budget=200, max_staleness=5), steps=40, reward=Broken(), policy=slow)


def test_a_model_that_masters_the_data_starves_the_run_instead_of_hanging_it() -> None:
    class Mastering(FakeReward):
        calls = 0

        async def score(self, rollout: RolloutRef) -> tuple[Reward, ...]:
            self.calls += 1
            self._verdict = Verdict.CORRECT if self.calls > 6 else None
            return await super().score(rollout)

    algo = AlgoConfig(token_budget=2000, filter_zero_advantage=True)
    with pytest.raises(StarvedError, match=r"10\.\d passes over the 5 prompts"):
        run(algo, reward=Mastering(), prompts=FakePrompts(distinct=5))


@pytest.mark.parametrize("staleness", [0, 1, 50])
def test_little_data_is_gone_over_again_without_an_alarm(staleness: int) -> None:
    algo = AlgoConfig(token_budget=400, max_staleness=staleness)
    steps, _, _ = run(algo, steps=30, prompts=FakePrompts(distinct=3))
    assert len(steps) == 30


@pytest.mark.parametrize(
    ("algo", "key"),
    [
        (AlgoConfig(token_budget=10_001, group_size=2), "algo.token_budget=10001"),
        (AlgoConfig(selection="groups", groups_per_step=6, group_size=2), "algo.groups_per_step=6"),
    ],
)
def test_a_budget_that_the_data_can_never_fill_is_refused(algo: AlgoConfig, key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        check_budget(algo, prompts=5, max_response_tokens=1000)
