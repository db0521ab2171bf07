"""The stream of rollouts: prompts in, finished and scored groups out to the buffer, unfinished responses resumed.

A prompt's life is a few small tasks: turns of an engine, each up to an interruption, until its K responses are finished
and in the buffer, then its rewards. Between them the stream holds only references and counts. So whenever generation is
paused its share of the ledger is exact, and what it holds is all that a restart needs.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Protocol

from ring_ray.algo.pacing import Pacing
from ring_ray.config import AlgoConfig, ConfigError
from ring_ray.data.source import Cursor
from ring_ray.roles import (
    BatchRef,
    BufferRole,
    BufferStateRef,
    BufferStatus,
    RewardRole,
    RollBackError,
    RolloutLostError,
    RolloutRef,
    RolloutRole,
)
from ring_ray.sync import WeightSync
from ring_ray.types import BatchSummary, Ledger, Prompt, Rollout, RolloutStatus, Sequence

MAX_PASSES = 10  # over the data for one step; a step that needs more is not going to come


class Prompts(Protocol):
    """An endless source; ``len`` is the number of distinct prompts, one pass."""

    def next(self) -> Prompt: ...

    def state(self) -> Cursor: ...

    def restore(self, cursor: Cursor) -> None: ...

    def __len__(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamState:
    """What a stream knows between two steps, as plain data."""

    generated: int  # tokens
    lost: int = 0  # of those, tokens that are gone with the node that held them
    mean_length: float  # of a response, in tokens, as far as is known
    cursor: Cursor
    unfinished: dict[int, RolloutStatus]  # by prompt index


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSnapshot:
    """All that a stream and its buffer hold between two steps; the tokens by reference."""

    state: StreamState
    buffer: BufferStateRef
    unfinished: dict[int, RolloutRef]  # by prompt index, as in ``state``


class StarvedError(RuntimeError):
    """The buffer can't be filled: the data, or what the options leave of it, is too little for the budget."""


class LedgerError(RuntimeError):
    """A token was lost or counted twice."""


def check_budget(algo: AlgoConfig, prompts: int, max_response_tokens: int) -> None:
    """Refuse a budget that not even one pass of longest responses over the data could fill."""
    most = prompts * algo.group_size * max_response_tokens
    if algo.selection == "tokens" and algo.token_budget > most:
        raise ConfigError(
            f"algo.token_budget={algo.token_budget}: one step can never be filled, a pass over the data gives at most "
            f"{most} tokens ({prompts} prompts x algo.group_size={algo.group_size} x "
            f"rollout.max_response_tokens={max_response_tokens})"
        )
    if algo.selection == "groups" and algo.groups_per_step > prompts:
        raise ConfigError(
            f"algo.groups_per_step={algo.groups_per_step}: one step can never be filled, the data has {prompts} prompts"
        )


class RolloutStream:
    """Keeps engines and verifiers busy, between the prompts and the buffer.

    Attributes:
        generated: tokens that the engines say they sampled.
    """

    def __init__(
        self,
        *,
        prompts: Prompts,
        rollout: RolloutRole,
        sync: WeightSync,
        reward: RewardRole,
        buffer: BufferRole,
        algo: AlgoConfig,
        overlap: bool,
        max_in_flight: int,
        max_response_tokens: int,
        in_waves: bool = False,
    ) -> None:
        """``max_in_flight`` unfinished responses keep the engines full: prompts are issued as long as there are fewer.

        Of a group that goes on over a weight sync only the responses that do are counted: a few long ones must not hold
        the place of the many that have ended.

        ``overlap``: generation goes on while the policy trains.

        ``in_waves``: no prompt is issued and no batch taken while another prompt is under way. The engines wait for the
        longest response of every wave, but, without overlap, what a step trains no longer depends on who is faster.
        """
        check_budget(algo, len(prompts), max_response_tokens)
        self._prompts, self._rollout, self._sync, self._reward, self._buffer = prompts, rollout, sync, reward, buffer
        self._algo, self._in_waves = algo, in_waves
        self._pacing = Pacing(
            algo, overlap=overlap, max_in_flight=max_in_flight, max_response_tokens=max_response_tokens
        )
        self.generated = 0
        self._lost = 0  # of those, tokens that are gone with the node that held them
        self._in_flight: dict[int, tuple[RolloutRef, RolloutStatus]] = {}  # by prompt index, as of the last return
        self._begun: dict[int, tuple[RolloutRef, RolloutStatus]] = {}  # the same as they began, for one that is lost
        self._unscored: dict[int, RolloutRef] = {}  # by prompt index: finished and in the buffer
        self._scored = 0  # groups, since the last batch or the last eviction
        self._status = BufferStatus(revision=0, queued=0.0, backlog=0.0)
        self._open = False  # the engines may sample
        self._changed = asyncio.Event()  # the buffer got a group, or a prompt failed: `take` waits for it
        self._turns: set[asyncio.Task[None]] = set()  # of the engines: `pause` waits for them
        self._scorings: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    async def __aenter__(self) -> "RolloutStream":
        for index in self._unscored:
            self._start(self._score(index), self._scorings)
        self._resume()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        tasks = self._turns | self._scorings
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if kind is None:
            await self._rollout.interrupt()  # what was in flight stops sampling
            await self._rollout.resume()
            self._raise_failure()

    async def take(self) -> tuple[BatchRef, BatchSummary]:
        """Wait until one step's tokens are there, then take exactly those.

        Raises `StarvedError` where they will not come, and what any prompt's generation or scoring raised.
        """
        await self._sync.alongside(self._filled())
        batch, summary, status = await self._buffer.take()
        self._observe(status)
        self._scored = 0
        self._issue()
        return batch, summary

    async def pause(self) -> None:
        """Interrupt the engines; returns once every unfinished response is back, with all its tokens."""
        self._open = False
        await self._sync.rest()
        await asyncio.gather(*self._turns)

    async def settle(self, version: int, skipped: BatchRef | None = None) -> Ledger:
        """Pause, tell the buffer that the policy is now ``version``, and account for every token.

        ``skipped`` is the batch of a step that trained nothing.
        Raises `LedgerError` if a token is not exactly where the ledger says.
        """
        await self.pause()
        self._raise_failure()
        buffered, status = await self._buffer.advance(version, skipped)
        self._observe(status)
        self._scored = 0
        return self._account(buffered)

    async def go_on(self, version: int) -> None:
        """Move generation to the policy's weights, now ``version``, and resume it. To be called once settled."""
        await self._sync.transfer(version)
        self._resume()

    async def snapshot(self) -> StreamSnapshot:
        """All that is here and in the buffer, for `restore`. Only while generation is paused."""
        assert not self._open
        state = StreamState(
            generated=self.generated,
            lost=self._lost,
            mean_length=self._pacing.mean_length(),
            cursor=self._prompts.state(),
            unfinished={index: status for index, (_, status) in self._in_flight.items()},
        )
        unfinished = {index: rollout for index, (rollout, _) in self._in_flight.items()}
        return StreamSnapshot(state=state, buffer=await self._buffer.snapshot(), unfinished=unfinished)

    async def restore(self, snapshot: StreamSnapshot) -> None:
        """Hold what ``snapshot`` holds; for a stream that was not entered yet.

        Once it is, unfinished responses go on after their last token, and groups that waited for rewards are scored
        anew. Raises what the prompts raise if ``snapshot`` belongs to others.
        """
        state = snapshot.state
        self._prompts.restore(state.cursor)
        self._pacing.restore(state.mean_length)
        self.generated, self._lost = state.generated, state.lost
        self._in_flight = {index: (snapshot.unfinished[index], status) for index, status in state.unfinished.items()}
        self._status, self._unscored = await self._buffer.restore(snapshot.buffer)

    async def _filled(self) -> None:
        """Wait until there is a step to take."""
        while not self._status.ready or self._wave_under_way():
            self._raise_failure()
            self._check_not_starved()
            self._changed.clear()
            await self._changed.wait()
        self._raise_failure()

    def _account(self, buffered: Ledger) -> Ledger:
        unfinished = [status for _, status in self._in_flight.values()]
        ledger = replace(
            buffered,
            generated=self.generated,
            in_flight=sum(status.in_flight_tokens for status in unfinished),
            waiting=buffered.waiting + sum(status.finished_tokens for status in unfinished),
            dropped=buffered.dropped + self._lost,
        )
        if not ledger.balanced:
            raise LedgerError(
                f"{ledger.generated} tokens were generated but {ledger.accounted} are accounted for: {ledger}"
            )
        return ledger

    def _resume(self) -> None:
        """Let the engines sample: first what they have begun, then as much more as there is room for."""
        self._open = True
        for index in self._in_flight:
            self._start(self._generate(index), self._turns)
        self._issue()

    def _issue(self) -> None:
        """Add prompts while the engines have room and what is under way won't be too old when it is trained."""
        if self._wave_under_way() or (self._in_waves and self._status.ready):
            return
        unfinished = sum(status.unfinished for _, status in self._in_flight.values())
        while self._pacing.admits_another(
            unfinished=unfinished, groups=len(self._in_flight), backlog=self._status.backlog
        ):
            prompt = self._prompts.next()
            self._in_flight[prompt.index] = self._begun[prompt.index] = self._begin(prompt)
            unfinished += self._algo.group_size
            if self._open:
                self._start(self._generate(prompt.index), self._turns)

    def _wave_under_way(self) -> bool:
        return self._in_waves and bool(self._in_flight or self._unscored)

    def _begin(self, prompt: Prompt) -> tuple[RolloutRef, RolloutStatus]:
        """K responses without a token."""
        size = self._algo.group_size
        empty = Rollout(prompt=prompt, sequences=(Sequence.start(prompt.token_ids),) * size)
        return RolloutRef(empty), RolloutStatus(new_tokens=0, in_flight_tokens=0, finished_tokens=0, unfinished=size)

    def _start(self, work: Coroutine[Any, Any, None], group: set[asyncio.Task[None]]) -> None:
        task = asyncio.create_task(work)
        group.add(task)
        task.add_done_callback(group.discard)
        task.add_done_callback(self._note_failure)

    def _note_failure(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
            self._changed.set()

    async def _generate(self, index: int) -> None:
        """Turns of the engine, until a rollout is finished and in the buffer, or generation is paused."""
        while self._open and index in self._in_flight:
            try:
                await self._turn(index)
            except RolloutLostError:
                self._begin_again(index)

    async def _turn(self, index: int) -> None:
        """A finished rollout leaves `_in_flight` only when the buffer has it."""
        grown = await self._rollout.generate(self._in_flight[index][0])
        if grown is None:
            return
        rollout, status = self._in_flight[index] = grown
        self.generated += status.new_tokens
        if status.finished:
            self._observe(await self._buffer.add(rollout))
            self._pacing.ended(status.finished_tokens)
            del self._in_flight[index]
            self._begun.pop(index, None)
            self._unscored[index] = rollout
            self._start(self._score(index), self._scorings)

    def _begin_again(self, index: int) -> None:
        """A rollout's tokens are gone: have others in their place."""
        if index not in self._begun:
            raise RollBackError(f"what prompt {index} had got before the run went on is lost", kind="data")
        _, status = self._in_flight[index]
        self._lost += status.in_flight_tokens + status.finished_tokens
        self._in_flight[index] = self._begun[index]

    async def _score(self, index: int) -> None:
        try:
            rewards = await self._reward.score(self._unscored[index])
        except RolloutLostError:
            self._unscored[index] = await self._buffer.waiting(index)  # which has a copy of its own
            rewards = await self._reward.score(self._unscored[index])
        self._observe(await self._buffer.score(index, rewards))
        del self._unscored[index]
        self._scored += 1
        self._changed.set()
        self._issue()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _observe(self, status: BufferStatus) -> None:
        """Keep the buffer's newest answer: answers may be seen out of order."""
        if status.revision > self._status.revision:
            self._status = status

    def _check_not_starved(self) -> None:
        passes = self._scored / len(self._prompts)
        if passes < 1 or self._status.ready or (passes < MAX_PASSES and self._status.queued > 0):
            return
        algo = self._algo
        key = "token_budget" if algo.selection == "tokens" else "groups_per_step"
        raise StarvedError(
            f"one optimizer step can't be filled: {passes:.1f} passes over the {len(self._prompts)} prompts gave "
            f"{self._status.queued:.0%} of algo.{key}={getattr(algo, key)}. Lower it, raise algo.group_size, add data, "
            f"or look at the rewards and at algo.filter_zero_advantage={algo.filter_zero_advantage}"
        )
