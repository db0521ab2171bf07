"""The invariants of `RolloutBuffer` by example; test_buffer_model.py has them in random runs."""

import math
from collections import Counter
from dataclasses import replace
from itertools import groupby
from math import isnan

import numpy as np
import pytest

from ring_ray.buffer import BufferNotReadyError, RolloutBuffer
from ring_ray.checkpoint.codec import encode
from ring_ray.config import AlgoConfig
from ring_ray.types import DomainReward, Ledger, Reward, Rollout, Sequence
from tests.unit.rollouts import FAILED, Response, response_of, rewards, rollout, rollout_of, sequence


def drained(buffer: RolloutBuffer) -> list[Response]:
    order = []
    while buffer.ready():
        order += [response_of(segment) for segment in buffer.take()[0].segments]
    return order


def order_of(seed: int, arrivals: list[int]) -> list[Response]:
    buffer = RolloutBuffer(AlgoConfig(token_budget=1, group_size=8), seed)
    for index in arrivals:
        buffer.add(rollout_of(index, *[1] * 8))
    for index in reversed(arrivals):
        buffer.score(index, rewards(*[1, 0] * 4))
    return drained(buffer)


def test_the_order_depends_on_the_seed_and_the_prompt_alone() -> None:
    order = order_of(7, [0, 1, 2, 3])
    assert order == order_of(7, [2, 0, 3, 1])
    assert order != order_of(8, [0, 1, 2, 3])
    assert [index for index, _ in order] == sorted([0, 1, 2, 3] * 8)
    shuffles = {tuple(response for index, response in order if index == one) for one in range(4)}
    assert len(shuffles) == 4
    assert all(sorted(shuffle) == list(range(8)) != list(shuffle) for shuffle in shuffles)


def test_every_response_is_as_likely_to_be_first() -> None:
    buffer = RolloutBuffer(AlgoConfig(token_budget=1, group_size=2), seed=0)
    for index in range(400):
        buffer.add(rollout_of(index, 1, 1))
        buffer.score(index, rewards(1, 0))
    firsts = Counter(response for _, response in drained(buffer)[::2])
    assert 150 < firsts[0] < 250


def test_an_opened_group_is_finished_before_an_earlier_prompt() -> None:
    buffer = RolloutBuffer(AlgoConfig(token_budget=3, group_size=2), seed=0)
    for index in (1, 0):
        buffer.add(rollout_of(index, 4, 4))
    buffer.score(1, rewards(1, 0))
    first, summary = buffer.take()
    assert summary.carried_tokens == 1
    buffer.score(0, rewards(1, 0))
    rest = [segment for _ in range(4) for segment in buffer.take()[0].segments]
    head, tail = first.segments[0], rest[0]
    assert (tail.prompt_index, tail.start, tail.stop, tail.advantage) == (1, 3, 4, head.advantage)
    assert tail.sequence is head.sequence
    assert [index for index, _ in groupby(segment.prompt_index for segment in rest)] == [1, 0]


def test_eviction_cuts_a_response_where_its_tokens_turn_fresh() -> None:
    buffer = RolloutBuffer(AlgoConfig(token_budget=3, group_size=2, max_staleness=1), seed=0)
    buffer.advance(3)
    interrupted = [0, 0, 1, 2, 3]
    buffer.add(rollout(0, sequence(0, interrupted), sequence(1, [0, 1])))
    assert buffer.score(0, rewards(1, 0)) == 2
    assert buffer.ledger() == Ledger(generated=7, queued=2, evicted=5)
    buffer.advance(4)
    buffer.add(rollout(1, sequence(0, [4]), sequence(1, [4])))
    buffer.score(1, rewards(1, 0))
    batch, summary = buffer.take()
    assert [(segment.prompt_index, segment.start, segment.stop) for segment in batch.segments] == [
        (0, 4, 5),
        *[(1, 0, 1)] * 2,
    ]
    assert summary.lost_response_length_mean == pytest.approx((5 + 2 + 5) / 3)


def test_tokens_of_a_skipped_step_are_dropped_and_their_responses_have_lost_them() -> None:
    buffer = RolloutBuffer(AlgoConfig(token_budget=3, group_size=2), seed=0)
    buffer.add(rollout_of(0, 4, 4))
    buffer.score(0, rewards(1, 0))
    batch, _ = buffer.take()
    buffer.advance(1, batch)
    assert buffer.ledger() == Ledger(generated=8, queued=5, dropped=3)
    _, summary = buffer.take()
    assert summary.lost_response_length_mean == 4
    buffer.advance(2)
    assert buffer.ledger() == Ledger(generated=8, queued=2, trained=3, dropped=3)


def test_eviction_of_whole_groups_keeps_the_others_in_order() -> None:
    buffer = RolloutBuffer(AlgoConfig(token_budget=1, group_size=2, max_staleness=1), seed=0)
    buffer.advance(1)
    arrivals = np.random.default_rng(0).permutation(64).tolist()
    stale = set(arrivals[:32])
    for index in arrivals:
        version = 0 if index in stale else 1
        buffer.add(rollout(index, sequence(0, [version]), sequence(1, [version])))
        buffer.score(index, rewards(1, 0))
    buffer.advance(2)
    assert [index for index, _ in drained(buffer)[::2]] == sorted(arrivals[32:])


def test_a_state_is_not_touched_by_what_comes_after_it() -> None:
    buffer = RolloutBuffer(AlgoConfig(token_budget=4, group_size=2), seed=0)
    for index in (0, 1):
        buffer.add(rollout_of(index, 5, 3))
    buffer.score(1, rewards(1.0, 0.0))
    state = buffer.state()
    before = encode(state)
    for one in (buffer, RolloutBuffer(AlgoConfig(token_budget=4, group_size=2), 0, state)):
        one.add(rollout_of(2, 1, 1))
        one.score(0, rewards(1.0, 0.0))
        one.take()
        one.advance(1)
        assert encode(state) == before


def test_a_state_is_held_to_the_staleness_that_is_now_allowed() -> None:
    patient, strict = (AlgoConfig(token_budget=1, group_size=2, max_staleness=staleness) for staleness in (2, 0))
    buffer = RolloutBuffer(patient, seed=0)
    buffer.advance(1)
    buffer.add(rollout(0, sequence(0, [0, 1]), sequence(1, [0, 0])))
    buffer.score(0, rewards(1.0, 0.0))
    assert RolloutBuffer(patient, 0, buffer.state()).ledger() == Ledger(generated=4, queued=4)
    assert RolloutBuffer(strict, 0, buffer.state()).ledger() == Ledger(generated=4, queued=1, evicted=3)


def test_the_payload_is_never_copied() -> None:
    buffer = RolloutBuffer(AlgoConfig(token_budget=4, group_size=2), seed=0)
    added = rollout_of(0, 5, 3)
    buffer.add(added)
    buffer.score(0, rewards(1, 0))
    trained = [segment.sequence for _ in range(2) for segment in buffer.take()[0].segments]
    assert {id(one) for one in trained} == {id(one) for one in added.sequences}


def test_a_trained_response_is_released() -> None:
    buffer = RolloutBuffer(AlgoConfig(token_budget=8, group_size=2), seed=0)
    buffer.add(rollout_of(0, 5, 3))
    buffer.score(0, rewards(1, 0))
    held = len(encode(buffer.state()))
    buffer.take()
    assert len(encode(buffer.state())) < held
    assert b"response_ids" not in encode(buffer.state())


def test_a_group_whose_verifier_failed_is_gone_for_good() -> None:
    buffer = RolloutBuffer(AlgoConfig(token_budget=4, group_size=2), seed=0)
    buffer.add(rollout_of(0, 5, 3))
    assert buffer.score(0, (*rewards(1), FAILED)) == 0
    assert buffer.ledger() == Ledger(generated=8, dropped=8)
    with pytest.raises(ValueError, match="prompt 0 is not waiting"):
        buffer.score(0, rewards(1, 0))
    with pytest.raises(ValueError, match="prompt 0 was added before"):
        buffer.add(rollout_of(0, 5, 3))


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (rollout_of(3, 2, 2), "prompt 3 was added before"),
        (rollout_of(0, 2, 2), "prompt 0 was added before"),
        (rollout_of(1, 2), "prompt 1 has 1 responses, not 2"),
        (rollout_of(1, 2, 2, 2), "prompt 1 has 3 responses, not 2"),
        (rollout(1, sequence(0, [0]), sequence(1, [0], "unfinished")), "unfinished"),
        (rollout(1, sequence(0, [0]), sequence(1, [0, 1])), r"call advance\(\)"),
        (
            rollout(
                1,
                sequence(0, [0]),
                Sequence(
                    prompt_ids=np.zeros(1, np.int32),
                    response_ids=np.zeros(3, np.int32),
                    logprobs=np.zeros(2, np.float32),
                    versions=np.zeros(3, np.int32),
                    finish_reason="stop",
                ),
            ),
            "3 tokens with 2 log-probs and 3 versions",
        ),
        (
            rollout(
                1,
                sequence(0, [0]),
                Sequence(
                    prompt_ids=np.zeros(1, np.int32),
                    response_ids=np.zeros(3, np.int32),
                    logprobs=np.zeros(3, np.float32),
                    versions=np.zeros(4, np.int32),
                    finish_reason="stop",
                ),
            ),
            "3 tokens with 3 log-probs and 4 versions",
        ),
    ],
)
def test_add_refuses_and_changes_nothing(refused: Rollout, message: str) -> None:
    buffer = RolloutBuffer(AlgoConfig(token_budget=4, group_size=2), seed=0)
    for index in (3, 0):
        buffer.add(rollout_of(index, 5, 3))
        buffer.score(index, rewards(1, 0))
    buffer.take()
    before = encode(buffer.state())
    with pytest.raises(ValueError, match=message):
        buffer.add(refused)
    assert encode(buffer.state()) == before


@pytest.mark.parametrize(
    ("index", "verdicts", "message"),
    [
        (1, rewards(1, 0), "prompt 1 is not waiting"),
        (3, rewards(1, 0), "prompt 3 is not waiting"),
        (0, rewards(1), "1 rewards, not 2"),
        (0, rewards(1, math.nan), "finite"),
    ],
)
def test_score_refuses_and_changes_nothing(index: int, verdicts: tuple[Reward, ...], message: str) -> None:
    buffer = RolloutBuffer(AlgoConfig(token_budget=4, group_size=2), seed=0)
    for added in (3, 0):
        buffer.add(rollout_of(added, 5, 3))
    buffer.score(3, rewards(1, 0))
    before = encode(buffer.state())
    with pytest.raises(ValueError, match=message):
        buffer.score(index, verdicts)
    assert encode(buffer.state()) == before


def test_the_version_never_goes_back() -> None:
    buffer = RolloutBuffer(AlgoConfig(), seed=0)
    buffer.advance(2)
    with pytest.raises(ValueError, match="from 2 to 1"):
        buffer.advance(1)
    assert buffer.version == 2


@pytest.mark.parametrize(
    ("algo", "needed"),
    [
        (AlgoConfig(token_budget=9, group_size=2), "9 tokens"),
        (AlgoConfig(selection="groups", groups_per_step=2, group_size=2), "2 groups"),
    ],
)
def test_a_batch_too_early_is_refused_and_changes_nothing(algo: AlgoConfig, needed: str) -> None:
    buffer = RolloutBuffer(algo, seed=0)
    for index in range(4):
        buffer.add(rollout_of(index, 5, 3))
    buffer.score(0, rewards(1, 0))
    before = encode(buffer.state())
    state = "8 tokens of 1 groups are queued; 24 tokens of 3 groups wait"
    with pytest.raises(BufferNotReadyError, match=f"needs {needed}, but {state}"):
        buffer.take()
    assert encode(buffer.state()) == before


def test_rewards_are_told_apart_by_domain() -> None:
    buffer = RolloutBuffer(AlgoConfig(token_budget=8, group_size=2), seed=0)
    for index, domain, scores in ((0, "math", (1.0, 0.0)), (1, "code", (0.5, 0.0)), (2, "math", (0.0, 0.0))):
        group = rollout_of(index, 2, 2)
        buffer.add(replace(group, prompt=replace(group.prompt, domain=domain)))
        buffer.score(index, rewards(*scores))
    _, summary = buffer.take()
    assert summary.domains == {
        "math": DomainReward(mean=0.25, accuracy=0.25),
        "code": DomainReward(mean=0.25, accuracy=0.5),
    }
    assert summary.reward_mean == 0.25


def test_failed_verdicts_and_their_times_are_counted_by_domain() -> None:
    buffer = RolloutBuffer(AlgoConfig(token_budget=4, group_size=2), seed=0)
    failed = replace(FAILED, seconds=9.0)
    right, wrong = (replace(reward, seconds=1.0) for reward in rewards(1, 0))
    for index, domain, verdicts in (
        (0, "math", (right, wrong)),
        (1, "math", (right, failed)),
        (2, "code", (failed,) * 2),
    ):
        group = rollout_of(index, 2, 2)
        buffer.add(replace(group, prompt=replace(group.prompt, domain=domain)))
        buffer.score(index, verdicts)
    _, summary = buffer.take()
    math_reward, code = summary.domains["math"], summary.domains["code"]
    assert (math_reward.mean, math_reward.accuracy, math_reward.failures) == (0.5, 0.5, 1)
    assert (math_reward.seconds_p50, math_reward.seconds_p99) == (1.0, pytest.approx(8.76))
    assert (code.failures, code.seconds_p50) == (2, 9.0)
    assert isnan(code.mean)
    assert isnan(code.accuracy)
