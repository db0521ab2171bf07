"""The responses that are kept for people to read."""

from collections import Counter

from ring_ray.actors.reward import Reservoir, rollout_sample
from tests.unit.rollouts import rewards, rollout, sequence


def kept(size: int, offered: int, seed: int = 0) -> list[int]:
    reservoir = Reservoir[int](size, seed)
    for item in range(offered):
        reservoir.offer(item)
    return reservoir.take()


def test_every_item_is_kept_equally_often() -> None:
    counts = Counter(item for seed in range(2000) for item in kept(4, 20, seed))
    assert sum(counts.values()) == 4 * 2000
    assert all(abs(counts[item] - 400) < 5 * 18 for item in range(20)), counts  # 18: the standard deviation


def test_fewer_items_are_all_kept_and_none_where_none_is_wanted() -> None:
    assert kept(4, 3) == [0, 1, 2]
    assert kept(0, 3) == []


def test_taking_begins_anew_and_the_seed_decides() -> None:
    reservoir = Reservoir[int](2, seed=1)
    taken = []
    for _ in range(50):
        for item in range(10):
            reservoir.offer(item)
        taken.append(tuple(reservoir.take()))
    assert reservoir.take() == []
    assert len(set(taken)) > 10
    assert kept(4, 100, seed=3) == kept(4, 100, seed=3)


def test_a_sample_says_what_became_of_the_response() -> None:
    group = rollout(7, sequence(0, [0, 0]), sequence(1, [1, 1, 2], finish_reason="length"))
    right, wrong = rewards(1.0, 0.0)
    first, second = rollout_sample(group, 0, "4", right), rollout_sample(group, 1, "5 or", wrong)
    assert (first.prompt_index, first.domain, first.prompt, first.response) == (7, "math", "1+1", "4")
    assert (first.tokens, first.first_version, first.last_version, first.truncated, first.carried) == (
        2, 0, 0, False, False,
    )  # fmt: skip
    assert (second.tokens, second.first_version, second.last_version, second.truncated, second.carried) == (
        3, 1, 2, True, True,
    )  # fmt: skip
    assert (second.response, second.reward) == ("5 or", wrong)
