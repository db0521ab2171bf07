"""The streaming rollout buffer: groups of finished responses go in as they come, exactly Φ tokens a step come out.

::

    add(rollout) ──► waiting ──score(rewards)──► queued ──take()──► trained ──► dropped (advance: skipped step)
                        │                          │ ▲      │
                        ├──► dropped (verifier)    │ └──────┘ tail of the cut response, then the rest of its group
                        └──► filtered              ├──► evicted (advance)
                                                   └──► dropped (carry: false)

Invariants, each asserted by tests/unit/test_buffer.py and test_buffer_model.py:

- Budget: with ``selection: tokens`` a batch holds exactly Φ tokens (``cutoff: token``), or ends with the response that
  reaches Φ (``cutoff: response``); with ``selection: groups`` it holds exactly ``groups_per_step`` groups.
- Once: no token is trained twice.
- Skip: the tokens of a batch that `advance` is given are dropped, not trained, and do not come back.
- Ledger: the tokens that were added are, each in exactly one place, waiting, queued, trained, filtered, evicted or
  dropped, after every call.
- Order: the tail of the cut response comes first and then the rest of its group, so that a group is never interleaved
  with another; then groups by prompt index as far as they are complete. Within a group the order is a shuffle that only
  the seed and the prompt index decide.
- Advantage: it comes from the whole group, and a response has the same one in every batch that trains a part of it.
- Staleness: no token that is trained was sampled more than ``max_staleness`` policy versions ago, and nothing younger
  is evicted.
- Refusal: a call that raises changes nothing.
- Snapshot: a buffer that starts from another's `state` does for ever what that one does.

Cost: `add`, `score` and `take` are O(segments) and `advance` is O(queued segments · log T); token arrays are neither
copied nor read through.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Literal, TypeAlias, get_args

import numpy as np

from ring_ray.algo.advantage import group_advantages
from ring_ray.algo.budget import Segments, select, without_stale
from ring_ray.algo.summary import Window, summarize
from ring_ray.config import AlgoConfig
from ring_ray.types import BatchSummary, FloatArray, Ledger, Reward, Rollout, Segment, TokenBatch

Place: TypeAlias = Literal["waiting", "queued", "trained", "filtered", "evicted", "dropped"]


class BufferNotReadyError(RuntimeError):
    """`RolloutBuffer.take` was called before the buffer held a whole batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferState:
    """All that a `RolloutBuffer` holds, as plain data; by default that of an empty one."""

    version: int = 0
    waiting: dict[int, Rollout] = field(default_factory=dict)  # by prompt index
    opened: Segments = ()  # what the last batch left of the group that it ended in
    queue: tuple[tuple[int, Segments], ...] = ()  # by prompt index, ascending
    tokens: dict[Place, int] = field(default_factory=lambda: dict.fromkeys(get_args(Place), 0))
    first_unseen: int = 0  # every prompt index below it was added
    seen: tuple[int, ...] = ()  # prompt indices above it that were added, ascending
    window: Window = field(default_factory=Window)
    last_window: Window = field(default_factory=Window)


class RolloutBuffer:
    """Holds finished responses until they are trained, and knows where every one of their tokens went.

    Attributes:
        version: policy version that the next batch updates.
        waiting: the groups whose rewards are not known yet, by prompt index.
    """

    def __init__(self, algo: AlgoConfig, seed: int, state: BufferState | None = None) -> None:
        """An empty buffer, or one that goes on from ``state``, of which tokens too old for ``algo`` are evicted.

        ``seed`` decides the order of responses within their groups; not negative.
        """
        state = state or BufferState()
        self._algo, self._seed = algo, seed
        self.version = state.version
        self.waiting = dict(state.waiting)
        self._opened = state.opened
        self._queue = list(state.queue)  # a heap
        self._tokens = dict(state.tokens)
        self._first_unseen, self._seen = state.first_unseen, set(state.seen)
        self._window, self._last_window = deepcopy(state.window), state.last_window
        self.advance(state.version)

    def state(self) -> BufferState:
        """A snapshot, which nothing that happens to the buffer changes; it shares the token arrays."""
        return BufferState(
            version=self.version,
            waiting=dict(self.waiting),
            opened=self._opened,
            queue=tuple(sorted(self._queue)),
            tokens=dict(self._tokens),
            first_unseen=self._first_unseen,
            seen=tuple(sorted(self._seen)),
            window=deepcopy(self._window),
            last_window=self._last_window,
        )

    def add(self, rollout: Rollout) -> None:
        """Take in a prompt's K finished responses, whose rewards are not known yet.

        Raises:
            ValueError: a response is unfinished, has arrays of different lengths or tokens of a later policy version
                than the buffer's; there are not K of them; or this prompt index was added before.
        """
        self._check(rollout)
        index = rollout.prompt.index
        self._seen.add(index)
        while self._first_unseen in self._seen:
            self._seen.remove(self._first_unseen)
            self._first_unseen += 1
        self.waiting[index] = rollout
        tokens = sum(map(len, rollout.sequences))
        self._tokens["waiting"] += tokens
        self._window.response_lengths.extend(map(len, rollout.sequences))
        self._window.truncated.extend(sequence.finish_reason == "length" for sequence in rollout.sequences)

    def score(self, prompt_index: int, rewards: tuple[Reward, ...]) -> int:
        """Queue a waiting group, now that its K rewards are known; returns how many tokens became trainable.

        That is 0 for a group that is dropped because its verifier failed, or filtered because it has no advantage.

        Raises:
            ValueError: no such group is waiting, there are not K rewards, or a score is not finite.
        """
        rollout = self.waiting.get(prompt_index)
        if rollout is None:
            raise ValueError(f"prompt {prompt_index} is not waiting for rewards")
        if len(rewards) != self._algo.group_size:
            raise ValueError(f"prompt {prompt_index} has {len(rewards)} rewards, not {self._algo.group_size}")
        tokens = sum(map(len, rollout.sequences))
        if not all(reward.verdict.reached for reward in rewards):
            del self.waiting[prompt_index]
            self._move(tokens, "waiting", "dropped")
            self._window.lost_response_lengths.extend(len(sequence) for sequence in rollout.sequences if len(sequence))
            self._window.dropped_rewards.setdefault(rollout.prompt.domain, []).extend(rewards)
            return 0
        scores = [reward.score for reward in rewards]
        advantages_K = group_advantages(scores, self._algo.advantage_epsilon)
        del self.waiting[prompt_index]
        zero_advantage = not advantages_K.any()
        self._window.rewards.setdefault(rollout.prompt.domain, []).extend(rewards)
        self._window.zero_advantage.append(zero_advantage)
        if zero_advantage and self._algo.filter_zero_advantage:
            self._move(tokens, "waiting", "filtered")
            return 0
        self._move(tokens, "waiting", "queued")
        segments = self._evict(self._shuffled(rollout, advantages_K))
        if segments:
            heappush(self._queue, (prompt_index, segments))
        return sum(map(len, segments))

    def queued_steps(self) -> float:
        """How many optimizer steps the queued groups fill; `take` succeeds from 1 on."""
        if self._algo.selection == "groups":
            return len(self._queue) / self._algo.groups_per_step
        return self._tokens["queued"] / self._algo.token_budget

    def backlog_steps(self) -> float:
        """The same, with the groups that wait for their rewards."""
        if self._algo.selection == "groups":
            return (len(self._queue) + len(self.waiting)) / self._algo.groups_per_step
        return (self._tokens["queued"] + self._tokens["waiting"]) / self._algo.token_budget

    def ready(self) -> bool:
        """Whether `take` would succeed now."""
        return self.queued_steps() >= 1

    def take(self) -> tuple[TokenBatch, BatchSummary]:
        """Remove and return the tokens of one optimizer step; they count as trained, unless `advance` is told else.

        Raises:
            BufferNotReadyError: the buffer holds less than one batch.
        """
        if not self.ready():
            algo = self._algo
            needed = f"{algo.groups_per_step} groups" if algo.selection == "groups" else f"{algo.token_budget} tokens"
            raise BufferNotReadyError(
                f"a batch needs {needed}, but {self._tokens['queued']} tokens of "
                f"{len(self._queue) + bool(self._opened)} groups are queued; {self._tokens['waiting']} tokens of "
                f"{len(self.waiting)} groups wait for rewards"
            )
        selection = select(self._pop_groups(), self._algo)
        self._opened = selection.rest
        self._move(sum(map(len, selection.taken)), "queued", "trained")
        if not self._algo.carry:
            self._drop_queued()
        batch = TokenBatch(segments=selection.taken, token_budget=self._algo.token_budget, version=self.version)
        self._last_window = self._window.else_of(self._last_window)
        self._window = Window()
        return batch, summarize(selection, self._last_window, version=self.version, carry=self._algo.carry)

    def advance(self, version: int, skipped: TokenBatch | None = None) -> None:
        """The policy is now at ``version``: evict the queued tokens that became too old.

        ``skipped`` is the batch of a step that trained nothing: its tokens count as dropped.

        Raises:
            ValueError: ``version`` is lower than it was.
        """
        if version < self.version:
            raise ValueError(f"the policy version can't go back from {self.version} to {version}")
        self.version = version
        if skipped is not None:
            self._drop(skipped.segments, "trained")
        self._opened = self._evict(self._opened)
        evicted = ((index, self._evict(segments)) for index, segments in self._queue)
        self._queue = [(index, segments) for index, segments in evicted if segments]
        heapify(self._queue)

    def ledger(self) -> Ledger:
        """Where every token that was added is now; what is in flight is not known here."""
        return Ledger(generated=sum(self._tokens.values()), in_flight=0, **self._tokens)

    def _check(self, rollout: Rollout) -> None:
        index = rollout.prompt.index
        if index < self._first_unseen or index in self._seen:
            raise ValueError(f"prompt {index} was added before")
        if len(rollout.sequences) != self._algo.group_size:
            raise ValueError(f"prompt {index} has {len(rollout.sequences)} responses, not {self._algo.group_size}")
        for sequence in rollout.sequences:
            if not sequence.finished:
                raise ValueError(f"prompt {index} has an unfinished response")
            if not len(sequence) == len(sequence.logprobs) == len(sequence.versions):
                raise ValueError(
                    f"prompt {index} has a response of {len(sequence)} tokens with {len(sequence.logprobs)} log-probs "
                    f"and {len(sequence.versions)} versions"
                )
            if len(sequence) and sequence.versions[-1] > self.version:
                raise ValueError(
                    f"prompt {index} has tokens of policy version {sequence.versions[-1]}, but the buffer is at "
                    f"{self.version}: call advance() before an engine samples with new weights"
                )

    def _shuffled(self, rollout: Rollout, advantages_K: FloatArray) -> Segments:
        """One segment a response, in an order that does not depend on when the group arrived."""
        index = rollout.prompt.index
        order_K = np.random.default_rng((self._seed, index)).permutation(len(rollout.sequences))
        return tuple(
            Segment(
                sequence=rollout.sequences[response],
                start=0,
                stop=len(rollout.sequences[response]),
                advantage=float(advantages_K[response]),
                prompt_index=index,
            )
            for response in order_K
        )

    def _evict(self, segments: Segments) -> Segments:
        """Queued ``segments`` without their stale tokens, and without those that have no token left."""
        oldest_version = self.version - self._algo.max_staleness
        fresh = tuple(without_stale(segment, oldest_version) for segment in segments)
        for before, after in zip(segments, fresh, strict=True):
            if evicted := len(before) - len(after):
                self._move(evicted, "queued", "evicted")
                self._window.lost_response_lengths.append(len(before.sequence))
        return tuple(segment for segment in fresh if len(segment))

    def _pop_groups(self) -> Iterator[Segments]:
        """The groups in the order in which they are trained, each removed from the queue as it is reached."""
        if self._opened:
            yield self._opened
        while self._queue:
            yield heappop(self._queue)[1]

    def _drop_queued(self) -> None:
        for segments in (self._opened, *(segments for _, segments in self._queue)):
            self._drop(segments, "queued")
        self._opened, self._queue = (), []

    def _drop(self, segments: Segments, source: Place) -> None:
        self._move(sum(map(len, segments)), source, "dropped")
        self._window.lost_response_lengths.extend(len(segment.sequence) for segment in segments)

    def _move(self, tokens: int, source: Place, target: Place) -> None:
        self._tokens[source] -= tokens
        self._tokens[target] += tokens
