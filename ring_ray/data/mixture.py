"""Which training prompt comes next, of domains that have their shares."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio


class Mixture:
    """The place of each prompt among the training prompts, from how many of each domain came before it.

    Prompts of a weighted mixture come by Weyl's sequence (index times the golden ratio, modulo 1), which falls into an
    interval as often as the interval is long, but for a few: no batch is short of a domain by bad luck. It remembers
    nothing, so that other weights apply from the next prompt on.
    """

    def __init__(self, domains: Mapping[str, Sequence[int]], weights: Mapping[str, float], seed: int) -> None:
        """``domains`` has the places of each domain's prompts; without ``weights`` all of them are one."""
        self._seed, self._weighted = seed, bool(weights)
        self._parts = {name: [*places] for name, places in domains.items() if not weights or weights[name] > 0}
        self._ends = [*accumulate(weights[name] for name in self._parts)] if weights else []
        if not weights:
            self._parts = {"": sorted(place for places in self._parts.values() for place in places)}
        self._start = int(np.random.default_rng(seed).integers(2**63))
        self._orders = dict[str, tuple[int, list[int]]]()  # of each part: its epoch, and the places in their order

    def __len__(self) -> int:
        """Prompts of all parts."""
        return sum(map(len, self._parts.values()))

    def place(self, index: int, issued: Mapping[str, int]) -> int:
        """Of prompt number ``index``, where ``issued`` counts those before it by domain."""
        part = self._part(index)
        epoch, position = divmod(issued[part] if self._weighted else index, len(self._parts[part]))
        if part not in self._orders or self._orders[part][0] != epoch:
            self._orders[part] = (
                epoch,
                np.random.default_rng([self._seed, epoch]).permutation(self._parts[part]).tolist(),
            )
        return self._orders[part][1][position]

    def _part(self, index: int) -> str:
        names = [*self._parts]
        if not self._weighted:
            return names[0]
        point = (self._start + index * _GOLDEN) % 2**64 / 2**64 * self._ends[-1]
        return names[min(bisect_right(self._ends, point), len(names) - 1)]
