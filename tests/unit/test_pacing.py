"""How many prompts may be under way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring_ray.algo.pacing import Pacing
from ring_ray.config import AlgoConfig


def pacing(algo: AlgoConfig, *, overlap: bool = False, max_in_flight: int = 10**6) -> Pacing:
    return Pacing(algo, overlap=overlap, max_in_flight=max_in_flight, max_response_tokens=100)


def admitted(paces: Pacing, group_size: int, backlog: float = 0) -> int:
    """Groups, until no more is."""
    groups = 0
    while paces.admits_another(unfinished=groups * group_size, groups=groups, backlog=backlog):
        groups += 1
    return groups


@given(tokens=st.lists(st.integers(0, 10**6), min_size=1, max_size=50), data=st.data())
def test_the_order_in_which_groups_end_is_nothing_to_it(tokens: list[int], data: st.DataObject) -> None:
    first, second = (pacing(AlgoConfig(group_size=3)) for _ in range(2))
    for ended in tokens:
        first.ended(ended)
    for ended in data.draw(st.permutations(tokens)):
        second.ended(ended)
    assert first.mean_length() == second.mean_length()


def test_groups_that_end_together_weigh_as_much_as_one_by_one() -> None:
    together, one_by_one = (pacing(AlgoConfig(group_size=2)) for _ in range(2))
    for _ in range(20):
        together.ended(20)
        one_by_one.ended(20)
        one_by_one.mean_length()
    assert together.mean_length() == pytest.approx(one_by_one.mean_length())
    assert 10 < together.mean_length() < 50


def test_a_restored_one_goes_on_from_the_mean() -> None:
    algo = AlgoConfig(group_size=2)
    first, second = pacing(algo), pacing(algo)
    first.ended(20)
    second.ended(4000)
    second.restore(first.mean_length())
    assert second.mean_length() == first.mean_length() == pytest.approx(95.5)


@pytest.mark.parametrize(("overlap", "staleness", "steps"), [(False, 0, 1), (False, 2, 3), (True, 0, 1), (True, 2, 2)])
def test_no_more_is_under_way_than_is_trained_in_time(overlap: bool, staleness: int, steps: int) -> None:
    tokens = AlgoConfig(token_budget=1000, group_size=2, max_staleness=staleness)
    assert admitted(pacing(tokens, overlap=overlap), 2) == 5 * steps
    assert admitted(pacing(tokens, overlap=overlap), 2, backlog=0.5) == 5 * steps - 2
    groups = AlgoConfig(selection="groups", groups_per_step=4, group_size=2, max_staleness=staleness)
    assert admitted(pacing(groups, overlap=overlap), 2) == 4 * steps


def test_no_more_is_under_way_than_keeps_the_engines_full() -> None:
    assert admitted(pacing(AlgoConfig(token_budget=10**6, group_size=4), max_in_flight=10), 4) == 3
