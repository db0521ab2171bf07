"""The streaming rollout buffer: groups of finished responses go in as they come, exactly Φ tokens a step come out.

::

    add(rollout) ──► waiting ──score(rewards)──► queued ──take()──► trained
                        │                          │ ▲      │
                        ├──► dropped (verifier)    │ └──────┘ tail of the cut response, then the rest of its group
                        └──► filtered              ├──► evicted (advance)
                                                   └──► dropped (carry: false)

Invariants, each asserted by tests/unit/test_buffer.py and test_buffer_model.py:

- Budget: with ``selection: tokens`` a batch holds exactly Φ tokens (``cutoff: token``), or ends with the response that
  reaches Φ (``cutoff: response``); with ``selection: groups`` it holds exactly ``groups_per_step`` groups.
- Once: no token is trained twice.
- Ledger: the tokens that were added are, each in exactly one place, waiting, queued, trained, filtered, evicted or
  dropped, after every call.
- Order: the tail of the cut response comes first and then the rest of its group, so that a group is never interleaved
  with another; then groups by prompt index as far as they are complete. Within a group the order is a shuffle that only
  the seed and the prompt index decide.
- Advantage: it comes from the whole group, and a response has the same one in every batch that trains a part of it.
- Staleness: no token that is trained was sampled more than ``max_staleness`` policy versions ago, and nothing younger
  is evicted.
- Refusal: a call that raises changes nothing.
- Snapshot: the state is plain data; pickling it at any moment and going on from the copy changes nothing.

Cost: `add`, `score` and `take` are O(segments) and `advance` is O(queued segments · log T); token arrays are neither
copied nor read through.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Literal, TypeAlias

import numpy as np

from ring_ray.algo.advantage import group_advantages
from ring_ray.algo.budget import Segments, Selection, select, staleness_sum, without_stale
from ring_ray.config import AlgoConfig
from ring_ray.types import BatchSummary, DomainReward, FloatArray, Ledger, Reward, Rollout, Segment, TokenBatch

Place: TypeAlias = Literal["waiting", "queued", "trained", "filtered", "evicted", "dropped"]


class BufferNotReadyError(RuntimeError):
    """`RolloutBuffer.take` was called before the buffer held a whole batch."""


@dataclass(slots=True)
class Window:
    """What happened since the last batch; lengths are response tokens."""

    rewards: dict[str, list[Reward]] = field(default_factory=dict)  # by domain
    response_lengths: list[int] = field(default_factory=list)
    lost_response_lengths: list[int] = field(default_factory=list)  # one entry each time that a response lost tokens
    truncated: list[bool] = field(default_factory=list)  # per response
    zero_advantage: list[bool] = field(default_factory=list)  # per group

    def else_of(self, earlier: "Window") -> "Window":
        """This window, with what ``earlier`` saw wherever nothing completed or was scored since."""
        lengths_from = self if self.response_lengths else earlier
        rewards_from = self if self.rewards else earlier
        return Window(
            rewards=rewards_from.rewards,
            zero_advantage=rewards_from.zero_advantage,
            response_lengths=lengths_from.response_lengths,
            truncated=lengths_from.truncated,
            lost_response_lengths=self.lost_response_lengths,
        )


class RolloutBuffer:
    """Holds finished responses until they are trained, and knows where every one of their tokens went.

    Attributes:
        version: policy version that the next batch updates.
    """

    def __init__(self, algo: AlgoConfig, seed: int) -> None:
        """``seed`` decides the order of responses within their groups; not negative."""
        self.version = 0
        self._algo = algo
        self._seed = seed
        self._waiting: dict[int, Rollout] = {}  # by prompt index
        self._opened: Segments = ()  # what the last batch left of the group that it ended in
        self._queue: list[tuple[int, Segments]] = []  # heap by prompt index
        self._generated = 0
        self._tokens: dict[Place, int] = dict.fromkeys(
            ("waiting", "queued", "trained", "filtered", "evicted", "dropped"), 0
        )
        self._first_unseen = 0  # every prompt index below it was added
        self._seen: set[int] = set()  # prompt indices above it that were added
        self._window = self._last_window = Window()

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
        self._waiting[index] = rollout
        tokens = sum(map(len, rollout.sequences))
        self._generated += tokens
        self._tokens["waiting"] += tokens
        self._window.response_lengths.extend(map(len, rollout.sequences))
        self._window.truncated.extend(sequence.finish_reason == "length" for sequence in rollout.sequences)

    def score(self, prompt_index: int, rewards: tuple[Reward, ...]) -> int:
        """Queue a waiting group, now that its K rewards are known; returns how many tokens became trainable.

        That is 0 for a group that is dropped because its verifier failed, or filtered because it has no advantage.

        Raises:
            ValueError: no such group is waiting, there are not K rewards, or a score is not finite.
        """
        rollout = self._waiting.get(prompt_index)
        if rollout is None:
            raise ValueError(f"prompt {prompt_index} is not waiting for rewards")
        if len(rewards) != self._algo.group_size:
            raise ValueError(f"prompt {prompt_index} has {len(rewards)} rewards, not {self._algo.group_size}")
        tokens = sum(map(len, rollout.sequences))
        if not all(reward.verdict.reached for reward in rewards):
            del self._waiting[prompt_index]
            self._move(tokens, "waiting", "dropped")
            self._window.lost_response_lengths.extend(len(sequence) for sequence in rollout.sequences if len(sequence))
            return 0
        scores = [reward.score for reward in rewards]
        advantages_K = group_advantages(scores, self._algo.advantage_epsilon)
        del self._waiting[prompt_index]
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
            return (len(self._queue) + len(self._waiting)) / self._algo.groups_per_step
        return (self._tokens["queued"] + self._tokens["waiting"]) / self._algo.token_budget

    def ready(self) -> bool:
        """Whether `take` would succeed now."""
        return self.queued_steps() >= 1

    def take(self) -> tuple[TokenBatch, BatchSummary]:
        """Remove and return the tokens of one optimizer step; they count as trained from here on.

        Raises:
            BufferNotReadyError: the buffer holds less than one batch.
        """
        if not self.ready():
            algo = self._algo
            needed = f"{algo.groups_per_step} groups" if algo.selection == "groups" else f"{algo.token_budget} tokens"
            raise BufferNotReadyError(
                f"a batch needs {needed}, but {self._tokens['queued']} tokens of "
                f"{len(self._queue) + bool(self._opened)} groups are queued; {self._tokens['waiting']} tokens of "
                f"{len(self._waiting)} groups wait for rewards"
            )
        selection = select(self._pop_groups(), self._algo)
        self._opened = selection.rest
        self._move(sum(map(len, selection.taken)), "queued", "trained")
        if not self._algo.carry:
            self._drop_queued()
        batch = TokenBatch(segments=selection.taken, token_budget=self._algo.token_budget, version=self.version)
        self._last_window = self._window.else_of(self._last_window)
        self._window = Window()
        return batch, self._summary(selection, self._last_window)

    def advance(self, version: int) -> None:
        """The policy is now at ``version``: evict the queued tokens that became too old.

        Raises:
            ValueError: ``version`` is lower than it was.
        """
        if version < self.version:
            raise ValueError(f"the policy version can't go back from {self.version} to {version}")
        self.version = version
        self._opened = self._evict(self._opened)
        evicted = ((index, self._evict(segments)) for index, segments in self._queue)
        self._queue = [(index, segments) for index, segments in evicted if segments]
        heapify(self._queue)

    def ledger(self) -> Ledger:
        """Where every token that was added is now; what is in flight is not known here."""
        return Ledger(generated=self._generated, in_flight=0, **self._tokens)

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
            self._move(sum(map(len, segments)), "queued", "dropped")
            self._window.lost_response_lengths.extend(len(segment.sequence) for segment in segments)
        self._opened, self._queue = (), []

    def _move(self, tokens: int, source: Place, target: Place) -> None:
        self._tokens[source] -= tokens
        self._tokens[target] += tokens

    def _summary(self, selection: Selection, window: Window) -> BatchSummary:
        taken = selection.taken
        trained_tokens = sum(map(len, taken))
        scores = [reward.score for rewards in window.rewards.values() for reward in rewards]
        return BatchSummary(
            trained_tokens=trained_tokens,
            carried_tokens=selection.tail_tokens if self._algo.carry else 0,
            segments=len(taken),
            groups=len({segment.prompt_index for segment in taken}),
            reward_mean=_mean(scores),
            reward_std=float(np.std(scores)),
            domains={domain: DomainReward.of(rewards) for domain, rewards in window.rewards.items()},
            response_length_mean=_mean(window.response_lengths),
            trained_response_length_mean=_mean([len(segment.sequence) for segment in taken]),
            lost_response_length_mean=_mean(window.lost_response_lengths),
            truncated_fraction=_mean(window.truncated),
            zero_advantage_fraction=_mean(window.zero_advantage),
            staleness_mean=sum(staleness_sum(segment, self.version) for segment in taken) / trained_tokens,
            staleness_max=self.version - min(int(segment.sequence.versions[segment.start]) for segment in taken),
        )


def _mean(values: list[float] | list[int] | list[bool]) -> float:
    return sum(values) / len(values) if values else float("nan")
