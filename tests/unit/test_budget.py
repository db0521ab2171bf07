from collections.abc import Iterator
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_ray.algo.budget import Segments, select, staleness_sum, without_stale
from ring_ray.config import AlgoConfig
from ring_ray.types import Segment, Sequence


def segment(versions: list[int], start: int = 0, stop: int | None = None, prompt_index: int = 0) -> Segment:
    length = len(versions)
    sequence = Sequence(
        prompt_ids=np.zeros(1, np.int32),
        response_ids=np.arange(length, dtype=np.int32),
        logprobs=np.zeros(length, np.float32),
        versions=np.array(versions, np.int32),
        finish_reason="stop",
    )
    stop = length if stop is None else stop
    return Segment(sequence=sequence, start=start, stop=stop, advantage=0.5, prompt_index=prompt_index)


def group(prompt_index: int, *lengths: int) -> Segments:
    return tuple(segment([0] * length, prompt_index=prompt_index) for length in lengths)


def spans(segments: Segments) -> list[tuple[int, int, int]]:
    return [(segment.prompt_index, segment.start, segment.stop) for segment in segments]


groups = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=4), min_size=1, max_size=6).map(
    lambda sizes: [group(index, *lengths) for index, lengths in enumerate(sizes)]
)


@st.composite
def spans_with_versions(draw: st.DrawFn) -> Segment:
    versions = sorted(draw(st.lists(st.integers(0, 6), min_size=1, max_size=12)))
    start = draw(st.integers(0, len(versions) - 1))
    return segment(versions, start, draw(st.integers(start + 1, len(versions))))


def test_the_last_response_is_cut_at_the_budget() -> None:
    cut, after = group(1, 4, 5)
    selection = select([group(0, 3, 2), (cut, after), group(2, 9)], AlgoConfig(token_budget=6))
    assert spans(selection.taken) == [(0, 0, 3), (0, 0, 2), (1, 0, 1)]
    assert spans(selection.rest) == [(1, 1, 4), (1, 0, 5)]
    assert selection.tail_tokens == 3
    head, tail = selection.taken[-1], selection.rest[0]
    assert head.sequence is tail.sequence is cut.sequence
    assert head.advantage == tail.advantage == cut.advantage
    assert selection.rest[1] is after


def test_a_tail_is_cut_again_where_it_starts() -> None:
    selection = select([(segment([0] * 10, start=2),)], AlgoConfig(token_budget=3))
    assert spans(selection.taken) == [(0, 2, 5)]
    assert spans(selection.rest) == [(0, 5, 10)]


def test_cutoff_response_keeps_the_last_one_whole() -> None:
    selection = select([group(0, 3), group(1, 4, 5)], AlgoConfig(token_budget=4, cutoff="response"))
    assert spans(selection.taken) == [(0, 0, 3), (1, 0, 4)]
    assert spans(selection.rest) == [(1, 0, 5)]
    assert selection.tail_tokens == 0


@pytest.mark.parametrize("cutoff", ["token", "response"])
def test_nothing_is_cut_where_the_budget_ends_with_a_response(cutoff: str) -> None:
    selection = select([group(0, 3, 2, 1)], AlgoConfig(token_budget=5, cutoff=cutoff))
    assert spans(selection.taken) == [(0, 0, 3), (0, 0, 2)]
    assert spans(selection.rest) == [(0, 0, 1)]
    assert selection.tail_tokens == 0


def test_groups_are_taken_whole() -> None:
    remaining = iter([group(0, 3, 2), group(1, 4), group(2, 9)])
    selection = select(remaining, AlgoConfig(selection="groups", groups_per_step=2, token_budget=1))
    assert spans(selection.taken) == [(0, 0, 3), (0, 0, 2), (1, 0, 4)]
    assert selection.rest == ()
    assert [spans(left) for left in remaining] == [[(2, 0, 9)]]


def test_too_little_is_refused() -> None:
    with pytest.raises(ValueError, match="1 of 6 tokens are missing"):
        select([group(0, 3), group(1, 2)], AlgoConfig(token_budget=6))
    with pytest.raises(ValueError, match="1 of 3 groups are missing"):
        select([group(0, 3), group(1, 2)], AlgoConfig(selection="groups", groups_per_step=3))


@given(groups, st.data())
@settings(deadline=None)
def test_budget_splits_the_tokens_in_two_without_touching_them(groups: list[Segments], data: st.DataObject) -> None:
    available = sum(map(len, chain.from_iterable(groups)))
    budget = data.draw(st.integers(1, available))
    cutoff = data.draw(st.sampled_from(["token", "response"]))
    unread: Iterator[Segments] = iter(groups)
    selection = select(unread, AlgoConfig(token_budget=budget, cutoff=cutoff))

    def tokens(segments: Segments) -> list[tuple[int, int]]:
        return [(id(segment.sequence), t) for segment in segments for t in range(segment.start, segment.stop)]

    left = tuple(chain(selection.rest, chain.from_iterable(unread)))
    assert tokens(selection.taken) + tokens(left) == tokens(tuple(chain.from_iterable(groups)))
    taken = sum(map(len, selection.taken))
    if cutoff == "token":
        assert taken == budget
    else:
        assert taken - len(selection.taken[-1]) < budget <= taken
    assert all(len(segment) for segment in (*selection.taken, *left))


@given(spans_with_versions(), st.integers(-2, 8))
@settings(deadline=None)
def test_stale_tokens_are_a_prefix(segment: Segment, oldest_version: int) -> None:
    kept = without_stale(segment, oldest_version)
    fresh = [t for t in range(segment.start, segment.stop) if segment.sequence.versions[t] >= oldest_version]
    assert list(range(kept.start, kept.stop)) == fresh
    assert (kept.sequence, kept.advantage) == (segment.sequence, segment.advantage)


@given(spans_with_versions(), st.integers(6, 9))
@settings(deadline=None)
def test_staleness_is_added_up_token_by_token(segment: Segment, version: int) -> None:
    sampled = segment.sequence.versions[segment.start : segment.stop].tolist()
    assert staleness_sum(segment, version) == sum(version - one for one in sampled)
