"""The invariants of `RolloutBuffer` in random runs, against a model that keeps every single token in a set.

A copy that is restored from a snapshot at any moment goes the same way, and must answer the same.
"""

import math
import statistics
from itertools import groupby

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ring_ray.buffer import BufferNotReadyError
from ring_ray.config import AlgoConfig
from ring_ray.types import BatchSummary, DomainReward, Ledger, Rollout, TokenBatch
from tests.unit.rollouts import FAILED, Response, Token, response_of, rewards, rollout, sequence, tokens_of
from tests.unit.twins import Twins


def mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else math.nan


class BufferMachine(RuleBasedStateMachine):
    """Random runs: groups out of order, interruptions, failing verifiers, updates, snapshots, takes."""

    @initialize(
        selection=st.sampled_from(["tokens", "tokens", "groups"]),
        cutoff=st.sampled_from(["token", "token", "response"]),
        carry=st.sampled_from([True, True, False]),
        filter_zero_advantage=st.booleans(),
        token_budget=st.integers(1, 40),
        groups_per_step=st.integers(1, 3),
        group_size=st.integers(2, 4),
        max_staleness=st.integers(0, 3),
        seed=st.integers(0, 3),
    )
    def start(self, seed: int, **options: object) -> None:
        self.algo = AlgoConfig(**options)  # type: ignore[arg-type]
        self.buffer = Twins(self.algo, seed)
        self.version = 0
        self.issued: list[int] = []
        self.next_index = 0
        self.waiting: dict[int, Rollout] = {}
        self.token_version: dict[Token, int] = {}
        self.length: dict[Response, int] = {}
        self.advantage: dict[Response, float] = {}
        self.at: dict[str, set[Token]] = {
            place: set() for place in ("waiting", "queued", "trained", "filtered", "evicted", "dropped")
        }
        self.opened: int | None = None  # group that the last batch ended in
        self.cut: Response | None = None  # response that it ended in
        self.taken: TokenBatch | None = None  # by the step that is under way
        self.last: dict[str, list[float]] = {}  # what the batch before saw, for what nothing completed since
        self.reset_window()

    def reset_window(self) -> None:
        self.scores: list[float] = []
        self.lengths: list[float] = []
        self.lost_lengths: list[float] = []
        self.truncated: list[float] = []
        self.zero: list[float] = []
        self.failures = 0

    def move(self, tokens: set[Token], source: str, target: str) -> None:
        assert tokens <= self.at[source]
        self.at[source] -= tokens
        self.at[target] |= tokens
        if target in ("evicted", "dropped"):
            self.lost_lengths += [self.length[response] for response in {token[:2] for token in tokens}]

    def tokens_of_group(self, index: int, place: str) -> set[Token]:
        return {token for token in self.at[place] if token[0] == index}

    def evict(self) -> None:
        oldest = self.version - self.algo.max_staleness
        self.move({token for token in self.at["queued"] if self.token_version[token] < oldest}, "queued", "evicted")
        queued = {token[:2] for token in self.at["queued"]}
        if self.cut not in queued:
            self.cut = None
        if self.opened not in {index for index, _ in queued}:
            self.opened = None

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        """A group finishes, not always in the order of issue, its tokens sampled by versions up to the current one."""
        while len(self.issued) < 4:
            self.issued.append(self.next_index)
            self.next_index += 1
        index = self.issued.pop(data.draw(st.integers(0, 3)))
        sequences = []
        for response in range(self.algo.group_size):
            sampled_by = st.integers(max(0, self.version - 5), self.version)
            versions = sorted(data.draw(st.lists(sampled_by, min_size=response == 0, max_size=16)))
            finish_reason = data.draw(st.sampled_from(["stop", "length"]))
            sequences.append(sequence(response, versions, finish_reason))
            self.length[index, response] = len(versions)
            self.lengths.append(len(versions))
            self.truncated.append(finish_reason == "length")
            for position, version in enumerate(versions):
                self.token_version[index, response, position] = version
                self.at["waiting"].add((index, response, position))
        self.waiting[index] = rollout(index, *sequences)
        self.buffer.add(self.waiting[index])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data(), fails=st.integers(0, 9).map(lambda one: one == 0))
    def score(self, data: st.DataObject, fails: bool) -> None:
        index = data.draw(st.sampled_from(sorted(self.waiting)))
        size = self.algo.group_size
        scores = data.draw(st.lists(st.sampled_from([0.0, 0.0, 1.0, 0.5]), min_size=size, max_size=size))
        verdicts = rewards(*scores)
        tokens = self.tokens_of_group(index, "waiting")
        del self.waiting[index]
        if fails:
            self.move(tokens, "waiting", "dropped")
            self.failures += 1
            assert self.buffer.score(index, (FAILED, *verdicts[1:])) == 0
            return
        self.scores += scores
        self.zero.append(len(set(scores)) == 1)
        if self.algo.filter_zero_advantage and len(set(scores)) == 1:
            self.move(tokens, "waiting", "filtered")
            assert self.buffer.score(index, verdicts) == 0
            return
        deviation = statistics.pstdev(scores) + self.algo.advantage_epsilon
        for response, score in enumerate(scores):
            self.advantage[index, response] = (score - mean(scores)) / deviation
        self.move(tokens, "waiting", "queued")
        self.evict()
        assert self.buffer.score(index, verdicts) == len(self.tokens_of_group(index, "queued"))

    @rule(by=st.integers(0, 2), skipped=st.booleans())
    def advance(self, by: int, skipped: bool) -> None:
        """A batch that was taken since the last time was trained, or its step was skipped."""
        self.version += by
        batch, self.taken = self.taken if skipped else None, None
        if batch is not None:
            self.move({token for segment in batch.segments for token in tokens_of(segment)}, "trained", "dropped")
        self.evict()
        self.buffer.advance(self.version, batch)

    @rule()
    def snapshot(self) -> None:
        self.buffer.restore_twin()

    @precondition(lambda self: self.next_index > 4)
    @rule(index=st.integers(0, 30))
    def refuse(self, index: int) -> None:
        """What was never added can't be scored, what was can't be added again: of that a copy must know, too."""
        if index not in self.waiting:
            with pytest.raises(ValueError, match=f"prompt {index} is not waiting"):
                self.buffer.score(index, rewards(*[1.0] * self.algo.group_size))
        if index < self.next_index and index not in self.issued:
            again = rollout(index, *[sequence(response, [0]) for response in range(self.algo.group_size)])
            with pytest.raises(ValueError, match=f"prompt {index} was added before"):
                self.buffer.add(again)

    def steps(self, *places: str) -> float:
        if self.algo.selection == "groups":
            groups = {token[0] for place in places for token in self.at[place]}
            return len(groups) / self.algo.groups_per_step
        return sum(len(self.at[place]) for place in places) / self.algo.token_budget

    @rule()
    def take(self) -> None:
        if self.steps("queued") < 1:
            with pytest.raises(BufferNotReadyError, match=f"but {len(self.at['queued'])} tokens of"):
                self.buffer.take()
            return
        batch, summary = self.buffer.take()
        self.check_amount(batch)
        self.check_order(batch)
        self.check_tokens(batch)
        tokens = [token for segment in batch.segments for token in tokens_of(segment)]
        assert len(set(tokens)) == len(tokens)
        self.move(set(tokens), "queued", "trained")
        self.reopen(batch)
        if not self.algo.carry:
            self.move(set(self.at["queued"]), "queued", "dropped")
            self.opened = self.cut = None
        self.check_summary(batch, summary)
        self.reset_window()
        self.taken = batch

    def check_amount(self, batch: TokenBatch) -> None:
        assert (batch.token_budget, batch.version) == (self.algo.token_budget, self.version)
        groups = {segment.prompt_index for segment in batch.segments}
        if self.algo.selection == "groups":
            assert len(groups) == self.algo.groups_per_step
            assert batch.trained_tokens == sum(len(self.tokens_of_group(index, "queued")) for index in groups)
        elif self.algo.cutoff == "token":
            assert batch.trained_tokens == self.algo.token_budget
        else:
            before_last = batch.trained_tokens - len(batch.segments[-1])
            assert before_last < self.algo.token_budget <= batch.trained_tokens

    def check_order(self, batch: TokenBatch) -> None:
        queued = {index for index, _, _ in self.at["queued"]}
        order = sorted(queued, key=lambda index: (index != self.opened, index))
        reached = [index for index, _ in groupby(segment.prompt_index for segment in batch.segments)]
        assert reached == order[: len(reached)]
        for index in reached[:-1]:
            taken = sum(len(segment) for segment in batch.segments if segment.prompt_index == index)
            assert taken == len(self.tokens_of_group(index, "queued"))
        if self.cut is not None:
            assert response_of(batch.segments[0]) == self.cut

    def check_tokens(self, batch: TokenBatch) -> None:
        """Each response goes on where it was, is whole unless it is cut at Φ, and keeps its advantage."""
        for segment in batch.segments:
            response = response_of(segment)
            left = sorted(token for token in self.at["queued"] if token[:2] == response)
            tokens = tokens_of(segment)
            assert tokens
            assert tokens == left[: len(tokens)]
            if segment is not batch.segments[-1] or self.algo.selection == "groups" or self.algo.cutoff == "response":
                assert tokens == left
            assert segment.advantage == pytest.approx(self.advantage[response], rel=1e-5, abs=1e-6)
            assert all(self.version - self.token_version[token] <= self.algo.max_staleness for token in tokens)
            assert len(segment.sequence) == self.length[response]
            np.testing.assert_array_equal(segment.sequence.logprobs, -np.arange(self.length[response]))

    def reopen(self, batch: TokenBatch) -> None:
        last = response_of(batch.segments[-1])
        queued = {token[:2] for token in self.at["queued"]}
        self.cut = last if last in queued else None
        self.opened = last[0] if last[0] in {index for index, _ in queued} else None

    def check_summary(self, batch: TokenBatch, summary: BatchSummary) -> None:
        if self.lengths:
            self.last |= {"lengths": self.lengths, "truncated": self.truncated}
        if self.scores:
            self.last |= {"scores": self.scores, "zero": self.zero}
        tokens = [token for segment in batch.segments for token in tokens_of(segment)]
        staleness = [self.version - self.token_version[token] for token in tokens]
        tail = [token for token in self.at["queued"] if token[:2] == self.cut]
        expected = BatchSummary(
            trained_tokens=len(tokens),
            carried_tokens=len(tail),
            segments=len({token[:2] for token in tokens}),
            groups=len({token[0] for token in tokens}),
            reward_mean=mean(self.last["scores"]),
            reward_std=statistics.pstdev(self.last["scores"]),
            domains={
                "math": DomainReward(
                    mean=mean(self.last["scores"]),
                    accuracy=mean([score > 0 for score in self.last["scores"]]),
                    failures=self.failures,
                )
            },
            response_length_mean=mean(self.last["lengths"]),
            trained_response_length_mean=mean([self.length[response] for response in {token[:2] for token in tokens}]),
            lost_response_length_mean=mean(self.lost_lengths),
            truncated_fraction=mean(self.last["truncated"]),
            zero_advantage_fraction=mean(self.last["zero"]),
            staleness_mean=mean(staleness),
            staleness_max=max(staleness),
        )
        for name in BatchSummary.__slots__:
            assert getattr(summary, name) == pytest.approx(getattr(expected, name), nan_ok=True), name

    @invariant()
    def every_token_is_where_the_model_has_it(self) -> None:
        if not hasattr(self, "buffer"):
            return
        ledger = self.buffer.ledger()
        assert ledger.balanced
        assert ledger == Ledger(
            generated=len(self.token_version), **{place: len(tokens) for place, tokens in self.at.items()}
        )
        assert self.buffer.queued_steps() == self.steps("queued")
        assert self.buffer.backlog_steps() == self.steps("queued", "waiting")
        assert self.buffer.ready() == (self.steps("queued") >= 1)


BufferMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBufferMachine = BufferMachine.TestCase
