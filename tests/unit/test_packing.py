"""Packing: every segment once, the same number of micro-batches on every rank, padded size within the cap."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ring_ray.algo.packing import collate, pack, row_length, split_tokens, token_weights
from ring_ray.types import Segment, Sequence, TokenBatch


def make_sequence(rng: np.random.Generator, prompt: int, response: int, vocabulary: int = 32) -> Sequence:
    return Sequence(
        prompt_ids=rng.integers(0, vocabulary, prompt).astype(np.int32),
        response_ids=rng.integers(0, vocabulary, response).astype(np.int32),
        logprobs=-rng.uniform(2.5, 4.5, response).astype(np.float32),
        versions=np.zeros(response, np.int32),
        finish_reason="stop",
    )


def make_segment(sequence: Sequence, start: int, stop: int, advantage: float = 1.0) -> Segment:
    return Segment(sequence=sequence, start=start, stop=stop, advantage=advantage, prompt_index=0)


def make_batch(segments: list[Segment], token_budget: int | None = None) -> TokenBatch:
    budget = token_budget or sum(map(len, segments))
    return TokenBatch(segments=tuple(segments), token_budget=budget, version=0)


@st.composite
def batches(draw: st.DrawFn) -> TokenBatch:
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    segments = []
    for prompt, response in draw(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 30)), min_size=1, max_size=30)):
        start = draw(st.integers(0, response - 1))
        stop = draw(st.integers(start + 1, response))
        segments.append(make_segment(make_sequence(rng, prompt, response), start, stop, float(rng.normal())))
    return make_batch(segments)


@given(batches(), st.integers(1, 5), st.integers(1, 200))
def test_pack_places_each_segment_once_within_the_cap(batch: TokenBatch, ranks: int, cap: int) -> None:
    shares = pack(batch, ranks, cap)
    assert len(shares) == ranks
    assert len({len(share) for share in shares}) == 1
    micro_batches = [rows for share in shares for rows in share]
    assert sorted(row for rows in micro_batches for row in rows) == list(range(len(batch.segments)))
    for rows in micro_batches:
        longest = max((row_length(batch.segments[row]) for row in rows), default=0)
        assert len(rows) * longest <= cap or len(rows) == 1
    # No rank does nothing in every round while another has a round to spare.
    assert sum(1 for rows in micro_batches if not rows) < len(shares[0]) * ranks
    assert pack(batch, ranks, cap) == shares


@given(batches(), st.integers(1, 3), st.integers(1, 200))
def test_collate_keeps_the_tokens_and_what_belongs_to_them(batch: TokenBatch, ranks: int, cap: int) -> None:
    weights = [float(index) for index in range(len(batch.segments))]
    references = tuple(segment.sequence.logprobs[segment.start : segment.stop] - 1 for segment in batch.segments)
    for rows in (rows for share in pack(batch, ranks, cap) for rows in share):
        micro_batch = collate(batch, rows, weights, references)
        assert micro_batch.reference_logprobs_N is not None
        ids_BT, trained = micro_batch.token_ids_BT, micro_batch.trained_BT.nonzero().tolist()
        token = 0
        for row, index in enumerate(rows):
            segment = batch.segments[index]
            for position in range(segment.start, segment.stop):
                predictor = len(segment.sequence.prompt_ids) + position - 1
                assert trained[token] == [row, predictor]
                taken = int(segment.sequence.response_ids[position])
                assert int(ids_BT[row, predictor + 1]) == int(micro_batch.target_ids_N[token]) == taken
                logprob = segment.sequence.logprobs[position]
                assert micro_batch.behaviour_logprobs_N[token] == logprob
                assert micro_batch.reference_logprobs_N[token] == logprob - 1
                assert micro_batch.advantages_N[token] == np.float32(segment.advantage)
                assert micro_batch.weights_N[token] == weights[index]
                token += 1
            assert not ids_BT[row, row_length(segment) :].any()
        assert token == len(trained) == len(micro_batch.target_ids_N)
        split = dict(split_tokens(batch, rows, micro_batch.behaviour_logprobs_N.numpy()))
        for index in rows:
            segment = batch.segments[index]
            np.testing.assert_array_equal(split[index], segment.sequence.logprobs[segment.start : segment.stop])


def test_pack_balances_ranks_and_buckets_by_length() -> None:
    rng = np.random.default_rng(0)
    batch = make_batch([make_segment(make_sequence(rng, 4, n), 0, n) for n in rng.integers(10, 60, 200).tolist()])
    shares = pack(batch, 2, 1000)

    def padded(rows: tuple[int, ...]) -> int:
        return len(rows) * max(row_length(batch.segments[row]) for row in rows)

    costs = [sum(map(padded, share)) for share in shares]
    assert max(costs) < 1.05 * min(costs)
    assert sum(costs) < 1.1 * sum(map(row_length, batch.segments))


def test_a_rank_with_nothing_left_gets_an_empty_micro_batch() -> None:
    batch = make_batch([make_segment(make_sequence(np.random.default_rng(0), 3, 5), 0, 5)])
    shares = pack(batch, 2, 100)
    assert shares == (((0,),), ((),))
    empty = collate(batch, (), [1.0], None)
    assert not empty.trained_BT.any()
    assert len(empty.target_ids_N) == len(empty.weights_N) == 0
    assert empty.token_ids_BT.shape == (1, 1)


def test_token_weights_are_constant_for_a_budget_and_means_of_means_for_responses() -> None:
    rng = np.random.default_rng(0)
    long, short = make_sequence(rng, 2, 10), make_sequence(rng, 2, 5)
    batch = make_batch([make_segment(long, 0, 4), make_segment(long, 4, 10), make_segment(short, 0, 5)], 1000)
    assert token_weights(batch, "budget") == [1e-3] * 3
    assert token_weights(batch, "response") == [1 / 20, 1 / 20, 1 / 10]


def test_an_empty_prompt_is_refused() -> None:
    batch = make_batch([make_segment(make_sequence(np.random.default_rng(0), 0, 5), 0, 5)])
    with pytest.raises(ValueError, match="prompt"):
        collate(batch, (0,), [1.0], None)


def test_collate_makes_floats_of_the_asked_dtype() -> None:
    batch = make_batch([make_segment(make_sequence(np.random.default_rng(0), 2, 5), 1, 4)])
    assert collate(batch, (0,), [0.1], None, torch.float64).weights_N.tolist() == [0.1] * 3
