"""Packing: every segment once, the same number of micro-batches on every rank, sizes within the cap."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ring_ray.algo.packing import PolicyInputs, collate, pack, row_length, split_tokens, token_weights
from ring_ray.types import ExpertArray, Segment, Sequence, TokenBatch


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


def make_routed_segment(
    rng: np.random.Generator,
    prompt: int,
    start: int,
    stop: int,
    vocabulary: int = 32,
    experts: Callable[[int], ExpertArray] | None = None,
) -> Segment:
    """With one more response token than it trains; ``experts`` of that many positions, or by number."""
    sequence = make_sequence(rng, prompt, stop + 1, vocabulary)
    positions = prompt + stop
    routed = (
        np.arange(positions * 4, dtype=np.int16).reshape(positions, 2, 2) if experts is None else experts(positions)
    )
    return make_segment(replace(sequence, routed_experts=routed), start, stop)


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


def cost(batch: TokenBatch, rows: tuple[int, ...], padded: bool) -> int:
    lengths = [row_length(batch.segments[row]) for row in rows]
    return len(rows) * max(lengths, default=0) if padded else sum(lengths)


@given(batches(), st.integers(1, 5), st.integers(1, 200), st.booleans())
def test_pack_places_each_segment_once_within_the_cap(batch: TokenBatch, ranks: int, cap: int, padded: bool) -> None:
    shares = pack(batch, ranks, cap, padded=padded)
    assert len(shares) == ranks
    assert len({len(share) for share in shares}) == 1
    micro_batches = [rows for share in shares for rows in share]
    assert sorted(row for rows in micro_batches for row in rows) == list(range(len(batch.segments)))
    for rows in micro_batches:
        assert cost(batch, rows, padded) <= cap or len(rows) == 1
    # No rank does nothing in every round while another has a round to spare.
    assert sum(1 for rows in micro_batches if not rows) < len(shares[0]) * ranks
    assert pack(batch, ranks, cap, padded=padded) == shares


@given(batches(), st.integers(1, 3), st.integers(1, 200), st.booleans())
def test_collate_keeps_the_tokens_and_what_belongs_to_them(
    batch: TokenBatch, ranks: int, cap: int, padded: bool
) -> None:
    weights = [float(index) for index in range(len(batch.segments))]
    references = tuple(segment.sequence.logprobs[segment.start : segment.stop] - 1 for segment in batch.segments)
    for rows in (rows for share in pack(batch, ranks, cap, padded=padded) for rows in share):
        micro_batch = collate(batch, rows, weights, references, padded=padded)
        assert micro_batch.reference_logprobs_N is not None
        ids, trained = lay_out(micro_batch.inputs, padded)
        token = 0
        for row, index in enumerate(rows):
            segment = batch.segments[index]
            for position in range(segment.start, segment.stop):
                predictor = len(segment.sequence.prompt_ids) + position - 1
                assert trained[token] == (row, predictor)
                taken = int(segment.sequence.response_ids[position])
                assert int(ids[row][predictor + 1]) == int(micro_batch.inputs.target_ids_N[token]) == taken
                logprob = segment.sequence.logprobs[position]
                assert micro_batch.rows_N[token] == row
                assert micro_batch.behaviour_logprobs_N[token] == logprob
                assert micro_batch.reference_logprobs_N[token] == logprob - 1
                assert micro_batch.advantages_N[token] == np.float32(segment.advantage)
                assert micro_batch.weights_N[token] == weights[index]
                token += 1
            prompt_and_response = [*segment.sequence.prompt_ids, *segment.sequence.response_ids[: segment.stop]]
            assert ids[row][: row_length(segment)].tolist() == prompt_and_response
            assert not ids[row][row_length(segment) :].any()
        assert token == len(trained) == len(micro_batch.inputs.target_ids_N)
        split = dict(split_tokens(batch, rows, micro_batch.behaviour_logprobs_N.numpy()))
        for index in rows:
            segment = batch.segments[index]
            np.testing.assert_array_equal(split[index], segment.sequence.logprobs[segment.start : segment.stop])


def lay_out(inputs: PolicyInputs, padded: bool) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Token ids of each row, and the row and place of each trained position."""
    if padded:
        assert inputs.cu_seqlens is inputs.position_ids_BT is None
        assert inputs.longest == inputs.token_ids_BT.shape[1]
        return list(inputs.token_ids_BT), [(row, place) for row, place in inputs.trained_BT.nonzero().tolist()]
    assert inputs.cu_seqlens is not None
    assert inputs.position_ids_BT is not None
    assert inputs.cu_seqlens.dtype == torch.int32
    lengths = inputs.cu_seqlens.diff().tolist()
    assert len(inputs.token_ids_BT) == 1
    assert inputs.longest == max(lengths)
    places = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    assert inputs.position_ids_BT[0].tolist() == [place for _, place in places]
    trained = [place for place, is_trained in zip(places, inputs.trained_BT[0].tolist(), strict=True) if is_trained]
    return list(inputs.token_ids_BT[0].split(lengths)), trained


@pytest.mark.parametrize("padded", [True, False])
def test_pack_balances_ranks_and_wastes_little(padded: bool) -> None:
    rng = np.random.default_rng(0)
    batch = make_batch([make_segment(make_sequence(rng, 4, n), 0, n) for n in rng.integers(10, 60, 200).tolist()])
    shares = pack(batch, 2, 1000, padded=padded)
    costs = [sum(cost(batch, rows, padded) for rows in share) for share in shares]
    assert max(costs) < 1.05 * min(costs)
    assert sum(costs) < (1.1 if padded else 1.0001) * sum(map(row_length, batch.segments))
    assert len(shares[0]) == 5  # of 1000 tokens each; there are about 8000


def test_varlen_fills_micro_batches_evenly_however_unlike_the_lengths() -> None:
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.lognormal(4, 1, 300), 1500).astype(int) + 2
    batch = make_batch([make_segment(make_sequence(rng, 1, n), 0, n) for n in lengths.tolist()])
    costs = [cost(batch, rows, False) for share in pack(batch, 4, 4096, padded=False) for rows in share]
    assert len(costs) == -(-sum(costs) // (4 * 4096)) * 4
    assert max(costs) - min(costs) < 0.02 * max(costs)


def test_a_row_longer_than_a_micro_batch_goes_alone_and_makes_no_others_smaller() -> None:
    rng = np.random.default_rng(0)
    batch = make_batch([make_segment(make_sequence(rng, 1, n), 0, n) for n in (999, 39, 39, 19)])
    (share,) = pack(batch, 1, 100, padded=False)
    assert share == ((0,), (1, 2, 3))


def test_varlen_takes_no_more_micro_batches_than_it_must() -> None:
    rng = np.random.default_rng(0)
    batch = make_batch([make_segment(make_sequence(rng, 1, n - 1), 0, n - 1) for n in (60, 60, 60, 10, 10)])
    assert pack(batch, 1, 100, padded=False) == (((0, 3), (1, 4), (2,)),)


@pytest.mark.parametrize("padded", [True, False])
def test_no_rank_gets_the_costliest_micro_batch_of_every_round(padded: bool) -> None:
    rng = np.random.default_rng(0)
    batch = make_batch([make_segment(make_sequence(rng, 1, n), 0, n) for n in (40, 30, 20, 10)])
    assert pack(batch, 2, 5, padded=padded) == (((0,), (3,)), ((1,), (2,)))


@pytest.mark.parametrize("padded", [True, False])
def test_a_rank_with_nothing_left_gets_an_empty_micro_batch(padded: bool) -> None:
    batch = make_batch([make_routed_segment(np.random.default_rng(0), 3, 0, 5)])
    shares = pack(batch, 2, 100, padded=padded)
    assert shares == (((0,),), ((),))
    empty = collate(batch, (), [1.0], None, padded=padded, with_routing=True)
    assert not empty.inputs.trained_BT.any()
    assert len(empty.inputs.target_ids_N) == len(empty.weights_N) == 0
    assert empty.inputs.token_ids_BT.shape == (1, 1)
    assert empty.inputs.routed_experts_SLK is not None
    assert empty.inputs.routed_experts_SLK.tolist() == [[[-1, -1], [-1, -1]]]


@pytest.mark.parametrize("padded", [True, False])
def test_collate_lays_routed_experts_out_as_the_tokens(padded: bool) -> None:
    rng = np.random.default_rng(0)
    batch = make_batch([make_routed_segment(rng, *sizes) for sizes in [(3, 1, 4), (2, 0, 8), (1, 0, 2)]])
    whole = replace(batch.segments[2], stop=3)  # nothing was sampled from its last token
    batch = make_batch([*batch.segments[:2], whole])
    inputs = collate(batch, (0, 2), [1.0] * 3, None, padded=padded, with_routing=True).inputs
    first, last = (batch.segments[row].sequence.routed_experts for row in (0, 2))
    assert first is not None
    assert last is not None
    unknown = np.full((1, 2, 2), -1)
    gaps = [np.repeat(unknown, 3, axis=0)] if padded else []
    expected = np.concatenate([first[:7], last, unknown, *gaps])
    assert inputs.routed_experts_SLK is not None
    np.testing.assert_array_equal(inputs.routed_experts_SLK, expected)


@pytest.mark.parametrize("change", [lambda routed: None, lambda routed: routed[:-1]], ids=["none", "too few"])
def test_a_response_without_the_experts_that_are_asked_for_is_refused(change: Any) -> None:
    segment = make_routed_segment(np.random.default_rng(0), 3, 0, 5)
    routed = change(segment.sequence.routed_experts)
    batch = make_batch([replace(segment, sequence=replace(segment.sequence, routed_experts=routed))])
    with pytest.raises(ValueError, match=r"algo\.replay_routing: a response to prompt 0 has 8 routed positions"):
        collate(batch, (0,), [1.0], None, with_routing=True)
    assert collate(batch, (0,), [1.0], None).inputs.routed_experts_SLK is None


def test_a_micro_batch_moves_with_what_is_in_it() -> None:
    batch = make_batch([make_routed_segment(np.random.default_rng(0), 3, 0, 5)])
    moved = collate(batch, (0,), [1.0], None, padded=False, with_routing=True).to(torch.device("meta"))
    tensors = [getattr(moved, name) for name in moved.__slots__] + list(moved.inputs)
    assert {tensor.device.type for tensor in tensors if isinstance(tensor, Tensor)} == {"meta"}
    assert (moved.segments, moved.inputs.longest) == ((0,), 8)


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
