"""How many prompts may be under way: enough to keep the engines full, too few for a token to grow too old."""

import math

from ring_ray.config import AlgoConfig


class Pacing:
    """Back-pressure on the prompts, by what the groups that have ended say of the length of those to come."""

    def __init__(self, algo: AlgoConfig, *, overlap: bool, max_in_flight: int, max_response_tokens: int) -> None:
        """``max_in_flight`` unfinished responses keep the engines full."""
        self._algo, self._max_in_flight = algo, max_in_flight
        # How many steps' worth of tokens may be under way. With overlap the batch of version v is already taken when v
        # samples, so the first x steps' worth that v samples are trained at v + 1, ..., v + x: for no token to be
        # evicted, x may be max_staleness. Without overlap they are trained at v, ..., v + x - 1: one more.
        self._max_backlog = max(1, algo.max_staleness) if overlap else 1 + algo.max_staleness
        self._mean_length = float(max_response_tokens)  # falls to what is seen
        self._new_lengths: list[float] = []

    def ended(self, tokens: int) -> None:
        """A group ended whose K responses have that many."""
        self._new_lengths.append(tokens / self._algo.group_size)

    def mean_length(self) -> float:
        """Tokens that a response has on average, over groups of which the latest weigh most.

        The order of those that ended since the last call is nothing to it.
        """
        if self._new_lengths:
            new = math.fsum(self._new_lengths) / len(self._new_lengths)
            self._mean_length += (1 - 0.95 ** len(self._new_lengths)) * (new - self._mean_length)
            self._new_lengths.clear()
        return self._mean_length

    def restore(self, mean_length: float) -> None:
        self._mean_length = mean_length
        self._new_lengths.clear()

    def admits_another(self, *, unfinished: int, groups: int, backlog: float) -> bool:
        """Whether to issue a prompt on top of ``unfinished`` responses in as many ``groups``.

        ``backlog`` are the steps that the finished responses fill.
        """
        algo = self._algo
        group_tokens = self.mean_length() * algo.group_size
        steps_per_group = group_tokens / algo.token_budget if algo.selection == "tokens" else 1 / algo.groups_per_step
        return unfinished < self._max_in_flight and backlog + groups * steps_per_group < self._max_backlog
