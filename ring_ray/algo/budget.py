"""Which queued tokens one optimizer step trains (Ring-lite, arXiv 2506.14731, figure 3 and equation 3).

Nothing here copies or writes a token array, nor looks at more segments than it takes and the rest of one group.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TypeAlias

import numpy as np

from ring_ray.config import AlgoConfig
from ring_ray.types import Segment

Segments: TypeAlias = tuple[Segment, ...]
"""What is left to train of one group: at most one segment a response, none of them empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The tokens of one step, and what is left of the last group that was reached."""

    taken: Segments
    rest: Segments = ()  # in order; the tail of a cut response comes first
    tail_tokens: int = 0  # that the tail holds; 0 where no response was cut


def select(groups: Iterable[Segments], algo: AlgoConfig) -> Selection:
    """Take from ``groups``, in their order, what ``algo`` trains in one step.

    An iterator is read no further than the last group that is reached, so the groups after it stay in it.

    Raises:
        ValueError: ``groups`` hold too little.
    """
    if algo.selection == "groups":
        return _select_groups(groups, algo.groups_per_step)
    return _select_tokens(groups, algo.token_budget, cut=algo.cutoff == "token")


def _select_tokens(groups: Iterable[Segments], token_budget: int, *, cut: bool) -> Selection:
    """Whole responses until Φ is reached; with ``cut`` the last one ends where the total is exactly Φ."""
    taken: list[Segment] = []
    missing = token_budget
    for group in groups:
        for position, segment in enumerate(group, start=1):
            if cut and missing < len(segment):
                boundary = segment.start + missing
                tail = replace(segment, start=boundary)
                taken.append(replace(segment, stop=boundary))
                return Selection(taken=tuple(taken), rest=(tail, *group[position:]), tail_tokens=len(tail))
            taken.append(segment)
            missing -= len(segment)
            if missing <= 0:
                return Selection(taken=tuple(taken), rest=group[position:])
    raise ValueError(f"{missing} of {token_budget} tokens are missing")


def _select_groups(groups: Iterable[Segments], count: int) -> Selection:
    """``count`` whole groups whatever their length, as GRPO does."""
    reached = tuple(islice(groups, count))
    if len(reached) < count:
        raise ValueError(f"{count - len(reached)} of {count} groups are missing")
    return Selection(taken=tuple(chain.from_iterable(reached)))


def without_stale(segment: Segment, oldest_version: int) -> Segment:
    """``segment`` from its first token that was sampled by ``oldest_version`` or later; possibly empty.

    Versions never decrease along a response, so its stale tokens are a prefix.
    """
    versions_T = segment.sequence.versions[segment.start : segment.stop]
    # A Python int as the key would make numpy convert, and so copy, the whole int32 array.
    stale = int(np.searchsorted(versions_T, np.int32(oldest_version)))
    return replace(segment, start=segment.start + stale) if stale else segment


def staleness_sum(segment: Segment, version: int) -> int:
    """Policy versions between sampling and ``version``, added up over the tokens of a segment that is not empty.

    Each version after the first takes one off every token from its boundary on: O(versions · log T), not O(T).
    """
    versions_T = segment.sequence.versions[segment.start : segment.stop]
    later_versions = np.arange(versions_T[0] + 1, versions_T[-1] + 1, dtype=np.int32)
    boundaries = np.searchsorted(versions_T, later_versions)
    return len(segment) * (version - int(versions_T[0])) - int((len(segment) - boundaries).sum())
