"""From the segments of one step to padded micro-batches for every rank.

A row is a segment's prompt and its response up to ``stop``; what comes after is not needed. Dimensions: B rows of a
micro-batch, T tokens of its longest row, N trained tokens in it, row by row.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ring_ray.types import FloatArray, Segment, TokenBatch

Rows: TypeAlias = tuple[int, ...]
"""Indices of the segments that share a micro-batch; empty where a rank has nothing left to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Rows that go through the model together. Position t of a row predicts its token t + 1."""

    segments: Rows
    token_ids_BT: Tensor  # int64, padded on the right, where causal attention keeps the padding from every real token
    trained_BT: Tensor  # bool, positions that predict a trained token: N in all
    target_ids_N: Tensor  # int64, the trained tokens
    behaviour_logprobs_N: Tensor
    advantages_N: Tensor
    weights_N: Tensor  # of each token in the loss
    reference_logprobs_N: Tensor | None

    @property
    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a policy is called with."""
        return self.token_ids_BT, self.trained_BT, self.target_ids_N

    def to(self, device: torch.device) -> "MicroBatch":
        fields = {name: getattr(self, name) for name in self.__slots__}
        moved: dict[str, Any] = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in fields.items()}
        return MicroBatch(**moved)


def row_length(segment: Segment) -> int:
    return len(segment.sequence.prompt_ids) + segment.stop


def pack(batch: TokenBatch, ranks: int, micro_batch_tokens: int) -> tuple[tuple[Rows, ...], ...]:
    """Share the segments out: for each rank its micro-batches, the same number on every rank.

    Rows of similar length go together, and micro-batch j has a similar cost (padded tokens) on every rank, since
    collectives keep the ranks in step. Padded tokens stay within ``micro_batch_tokens``, except that a row longer
    than that goes alone. Deterministic; each segment is in exactly one micro-batch.
    """
    lengths = [row_length(segment) for segment in batch.segments]
    longest_first = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    count = len(_fill(longest_first, lengths, micro_batch_tokens))
    micro_batches_per_rank = -(-count // ranks)
    # The smallest cap that needs no more micro-batches than there are places evens out their cost.
    low, high = 1, micro_batch_tokens
    while low < high:
        middle = (low + high) // 2
        if len(_fill(longest_first, lengths, middle)) <= micro_batches_per_rank * ranks:
            high = middle
        else:
            low = middle + 1
    filled = sorted(_fill(longest_first, lengths, high), key=lambda rows: (-len(rows) * lengths[rows[0]], rows))
    filled += [()] * (micro_batches_per_rank * ranks - len(filled))
    rounds = [filled[start : start + ranks] for start in range(0, len(filled), ranks)]
    # Turning every other round over keeps one rank from getting the costliest micro-batch each time.
    snake = [turn if number % 2 == 0 else turn[::-1] for number, turn in enumerate(rounds)]
    return tuple(tuple(turn[rank] for turn in snake) for rank in range(ranks))


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


def token_weights(batch: TokenBatch, aggregation: str) -> list[float]:
    """The weight in the loss of every token of each segment.

    "budget" is 1/Φ, a constant (C3PO, arXiv 2506.14731, eq. 3). "response" is 1/(responses x own length): the mean
    over responses of each one's token mean, as GRPO has it. A response that is there in two segments is one response,
    and its length is that of the whole response.
    """
    if aggregation == "budget":
        return [1 / batch.token_budget] * len(batch.segments)
    responses = len({id(segment.sequence) for segment in batch.segments})
    return [1 / (responses * len(segment.sequence)) for segment in batch.segments]


def collate(
    batch: TokenBatch,
    rows: Rows,
    weights: list[float],
    reference_logprobs: tuple[FloatArray, ...] | None,
    dtype: torch.dtype = torch.float32,
) -> MicroBatch:
    """Tensors of one micro-batch; ``weights`` and ``reference_logprobs`` are those of all the batch's segments.

    Without rows it is one token that trains nothing, so that a rank with no work left still joins the collectives.
    Raises ValueError for an empty prompt: nothing would predict the first token of its response.
    """
    segments = [batch.segments[row] for row in rows]
    if any(len(segment.sequence.prompt_ids) == 0 for segment in segments):
        raise ValueError("a trained response needs a prompt of at least 1 token")
    shape = (max(len(rows), 1), max(map(row_length, segments), default=1))
    token_ids_BT, trained_BT = np.zeros(shape, np.int64), np.zeros(shape, bool)
    for row, segment in enumerate(segments):
        sequence, length, prompt = segment.sequence, row_length(segment), len(segment.sequence.prompt_ids)
        token_ids_BT[row, :length] = np.concatenate([sequence.prompt_ids, sequence.response_ids[: segment.stop]])
        trained_BT[row, prompt + segment.start - 1 : length - 1] = True

    def per_token(values: Callable[[int, Segment], FloatArray]) -> Tensor:
        parts = [values(row, segment) for row, segment in zip(rows, segments, strict=True)]
        return torch.as_tensor(np.concatenate([np.empty(0, np.float32), *parts]), dtype=dtype)

    references = reference_logprobs
    return MicroBatch(
        segments=rows,
        token_ids_BT=torch.from_numpy(token_ids_BT),
        trained_BT=torch.from_numpy(trained_BT),
        target_ids_N=torch.from_numpy(token_ids_BT[:, 1:][trained_BT[:, :-1]]),
        behaviour_logprobs_N=per_token(lambda _, s: s.sequence.logprobs[s.start : s.stop]),
        advantages_N=per_token(lambda _, s: np.full(len(s), s.advantage)),
        weights_N=per_token(lambda row, s: np.full(len(s), weights[row])),
        reference_logprobs_N=None if references is None else per_token(lambda row, _: references[row]),
    )


def split_tokens(batch: TokenBatch, rows: Rows, values_N: FloatArray) -> Iterator[tuple[int, FloatArray]]:
    """Undo the flattening of `collate`: yields each segment's index and its values [stop - start]."""
    stops = np.cumsum([0, *(len(batch.segments[row]) for row in rows)])
    for row, (start, stop) in zip(rows, pairwise(stops), strict=True):
        yield row, values_N[start:stop]
