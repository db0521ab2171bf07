"""From the segments of one step to the micro-batches of every rank.

A row is a segment's prompt and its response up to ``stop``; what comes after is not needed. A micro-batch holds its
rows side by side, padded to the longest, or for attention that can be told where rows end, end to end without padding.

Dimensions: B rows of a padded micro-batch and T tokens of its longest, or B = 1 and T tokens of all rows; S = B T
positions; N trained tokens, row by row; L layers, K experts that a position is sent to.
"""

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ring_ray.types import ExpertArray, FloatArray, Segment, TokenBatch

Rows: TypeAlias = tuple[int, ...]
"""Indices of the segments that share a micro-batch; empty where a rank has nothing left to do."""


class PolicyInputs(NamedTuple):
    """What a policy is called with. Position t of a row predicts its token t + 1."""

    token_ids_BT: Tensor  # int64; padding is on the right, where causal attention keeps it from every real token
    trained_BT: Tensor  # bool, positions that predict a trained token: N in all
    target_ids_N: Tensor  # int64, the trained tokens
    position_ids_BT: Tensor | None  # int64, from 0 in each of the rows that lie end to end; None if padded
    cu_seqlens: Tensor | None  # int32 [rows + 1], where such rows begin and end; None if padded
    longest: int  # tokens of the longest row
    routed_experts_SLK: Tensor | None  # int16, the experts to send each position to, -1 for the model's own choice


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Rows that go through the model together."""

    segments: Rows
    inputs: PolicyInputs
    rows_N: Tensor  # int64, the row that each trained token is in
    behaviour_logprobs_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor  # of each token in the loss
    reference_logprobs_N: Tensor | None

    def to(self, device: torch.device) -> "MicroBatch":
        def move(value: Any) -> Any:
            return value.to(device) if isinstance(value, Tensor) else value

        fields = {name: getattr(self, name) for name in self.__slots__}
        inputs = PolicyInputs(*map(move, fields.pop("inputs")))
        return MicroBatch(inputs=inputs, **{name: move(value) for name, value in fields.items()})


def row_length(segment: Segment) -> int:
    return len(segment.sequence.prompt_ids) + segment.stop


def pack(
    batch: TokenBatch, ranks: int, micro_batch_tokens: int, *, padded: bool = True
) -> tuple[tuple[Rows, ...], ...]:
    """Share the segments out: for each rank its micro-batches, the same number on every rank.

    Tokens of a micro-batch, which with ``padded`` include the padding, stay within ``micro_batch_tokens``, except that
    a row longer than that goes alone. Micro-batch j has about as many on every rank, since collectives keep the ranks
    in step. Deterministic; each segment is in exactly one micro-batch.
    """
    lengths = [row_length(segment) for segment in batch.segments]
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    filled = (_bucket if padded else _balance)(longest_first, lengths, ranks, micro_batch_tokens)

    def cost(rows: Rows) -> int:
        return len(rows) * lengths[rows[0]] if padded else sum(lengths[row] for row in rows)

    filled.sort(key=lambda rows: (-cost(rows), rows))
    filled += [()] * (-len(filled) % ranks)
    rounds = [filled[start : start + ranks] for start in range(0, len(filled), ranks)]
    # Turning every other round over keeps one rank from getting the costliest micro-batch each time.
    snake = [turn if number % 2 == 0 else turn[::-1] for number, turn in enumerate(rounds)]
    return tuple(tuple(turn[rank] for turn in snake) for rank in range(ranks))


def _bucket(longest_first: list[int], lengths: list[int], ranks: int, cap: int) -> list[Rows]:
    """Rows of similar length together, of at most ``cap`` padded tokens, in as few rounds of all ranks as there can be.

    The smallest cap that needs no more rounds evens out their cost.
    """
    places = -(-len(_fill(longest_first, lengths, cap)) // ranks) * ranks
    low, high = 1, cap
    while low < high:
        middle = (low + high) // 2
        if len(_fill(longest_first, lengths, middle)) <= places:
            high = middle
        else:
            low = middle + 1
    return _fill(longest_first, lengths, high)


def _fill(longest_first: list[int], lengths: list[int], cap: int) -> list[Rows]:
    """Cut the sorted rows into as few micro-batches of at most ``cap`` padded tokens as there can be."""
    micro_batches: list[list[int]] = []
    for row in longest_first:
        last = micro_batches[-1] if micro_batches else []
        if last and (len(last) + 1) * lengths[last[0]] <= cap:
            last.append(row)
        else:
            micro_batches.append([row])
    return [tuple(rows) for rows in micro_batches]


def _balance(longest_first: list[int], lengths: list[int], ranks: int, cap: int) -> list[Rows]:
    """Each row, the longest first, to the micro-batch with the fewest tokens; no more rounds than that takes."""
    rounds = -(-sum(min(length, cap) for length in lengths) // (cap * ranks))
    while True:
        places: list[tuple[int, Rows]] = [(0, ())] * (rounds * ranks)
        for row in longest_first:
            tokens, rows = places[0]
            heapq.heapreplace(places, (tokens + lengths[row], (*rows, row)))
        if all(tokens <= cap or len(rows) == 1 for tokens, rows in places):
            return [rows for _, rows in places if rows]
        rounds += 1


def token_weights(batch: TokenBatch, aggregation: str) -> list[float]:
    """The weight in the loss of every token of each segment.

    "budget" is 1/Φ, a constant (C3PO, arXiv 2506.14731, eq. 3). "token" is 1/trained tokens of the step, over all ranks
    (DAPO, arXiv 2503.14476, section 3.3). "response" is 1/(responses x own length): the mean over responses of each
    one's token mean, as GRPO has it. A response that is there in two segments is one response, and its length is that
    of the whole response.
    """
    if aggregation == "budget":
        return [1 / batch.token_budget] * len(batch.segments)
    if aggregation == "token":
        return [1 / batch.trained_tokens] * len(batch.segments)
    responses = len({id(segment.sequence) for segment in batch.segments})
    return [1 / (responses * len(segment.sequence)) for segment in batch.segments]


def collate(
    batch: TokenBatch,
    rows: Rows,
    weights: list[float],
    reference_logprobs: tuple[FloatArray, ...] | None,
    dtype: torch.dtype = torch.float32,
    *,
    padded: bool = True,
    with_routing: bool = False,
) -> MicroBatch:
    """Tensors of one micro-batch; ``weights`` and ``reference_logprobs`` are those of all the batch's segments.

    Without rows it is one token that trains nothing, so that a rank with no work left still joins the collectives.
    ``with_routing`` brings along the experts that the rollout chose. Raises ValueError for an empty prompt, as nothing
    would predict the first token of its response, and for a response without the experts that are asked for.
    """
    segments = [batch.segments[row] for row in rows]
    if any(len(segment.sequence.prompt_ids) == 0 for segment in segments):
        raise ValueError("a trained response needs a prompt of at least 1 token")

    def per_token(values: Callable[[int, Segment], FloatArray]) -> Tensor:
        parts = [values(row, segment) for row, segment in zip(rows, segments, strict=True)]
        return torch.as_tensor(np.concatenate([np.empty(0, np.float32), *parts]), dtype=dtype)

    references = reference_logprobs
    return MicroBatch(
        segments=rows,
        inputs=_policy_inputs(batch, segments, padded=padded, with_routing=with_routing),
        rows_N=torch.repeat_interleave(torch.tensor([len(segment) for segment in segments], dtype=torch.int64)),
        behaviour_logprobs_N=per_token(lambda _, s: s.sequence.logprobs[s.start : s.stop]),
        advantages_N=per_token(lambda _, s: np.full(len(s), s.advantage)),
        weights_N=per_token(lambda row, s: np.full(len(s), weights[row])),
        reference_logprobs_N=None if references is None else per_token(lambda row, _: references[row]),
    )


def _policy_inputs(batch: TokenBatch, segments: list[Segment], *, padded: bool, with_routing: bool) -> PolicyInputs:
    lengths = [row_length(segment) for segment in segments] or [1]
    longest = max(lengths)
    edges = np.cumsum([0, *([longest] * len(lengths) if padded else lengths)])
    token_ids_S, trained_S = np.zeros(edges[-1], np.int64), np.zeros(edges[-1], bool)
    for start, segment in zip(edges, segments, strict=False):
        sequence, stop, prompt = segment.sequence, start + row_length(segment), len(segment.sequence.prompt_ids)
        token_ids_S[start:stop] = np.concatenate([sequence.prompt_ids, sequence.response_ids[: segment.stop]])
        trained_S[start + prompt + segment.start - 1 : stop - 1] = True
    shape = (len(lengths), longest) if padded else (1, -1)
    return PolicyInputs(
        token_ids_BT=torch.from_numpy(token_ids_S).view(shape),
        trained_BT=torch.from_numpy(trained_S).view(shape),
        target_ids_N=torch.from_numpy(token_ids_S[1:][trained_S[:-1]]),  # no row ends with a trained position
        position_ids_BT=None if padded else torch.cat([torch.arange(length) for length in lengths]).view(shape),
        cu_seqlens=None if padded else torch.from_numpy(edges.astype(np.int32)),
        longest=longest,
        routed_experts_SLK=torch.from_numpy(_routed_experts(batch, segments, edges)) if with_routing else None,
    )


def _routed_experts(batch: TokenBatch, segments: list[Segment], edges: npt.NDArray[np.int64]) -> ExpertArray:
    """[S, L, K]; -1 at the end of a response, from which nothing was sampled, and in the padding."""
    experts_SLK = np.full((edges[-1], *_routing(batch.segments[0]).shape[1:]), -1, np.int16)
    for start, segment in zip(edges, segments, strict=False):
        known = _routing(segment)[: row_length(segment)]
        experts_SLK[start : start + len(known)] = known
    return experts_SLK


def _routing(segment: Segment) -> ExpertArray:
    sequence = segment.sequence
    experts, positions = sequence.routed_experts, len(sequence.prompt_ids) + len(sequence) - 1
    if experts is None or len(experts) != positions:
        found = "none" if experts is None else str(len(experts))
        raise ValueError(
            f"algo.replay_routing: a response to prompt {segment.prompt_index} has {positions} routed positions, "
            f"and came with the experts of {found}"
        )
    return experts


def split_tokens(batch: TokenBatch, rows: Rows, values_N: FloatArray) -> Iterator[tuple[int, FloatArray]]:
    """Undo the flattening of `collate`: yields each segment's index and its values [stop - start]."""
    stops = np.cumsum([0, *(len(batch.segments[row]) for row in rows)])
    for row, (start, stop) in zip(rows, pairwise(stops), strict=True):
        yield row, values_N[start:stop]
