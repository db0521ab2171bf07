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
from ring_ray.config import AlgoConfig
from ring_ray.data.source import Cursor
from ring_ray.in_flight import InFlight
from ring_ray.roles import (
    BatchRef,
    BufferRole,
    BufferStateRef,
    BufferStatus,
    RewardRole,
    RolloutLostError,
    RolloutRef,
    RolloutRole,
)
from ring_ray.starvation import check_budget, check_supply
from ring_ray.sync import WeightSync
from ring_ray.types import BatchSummary, Ledger, Prompt, RolloutStatus


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


class LedgerError(RuntimeError):
    """A token was lost or counted twice."""


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
        self._in_flight = InFlight(algo.group_size)
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
            lost=self._in_flight.lost,
            mean_length=self._pacing.mean_length(),
            cursor=self._prompts.state(),
            unfinished=self._in_flight.statuses(),
        )
        unfinished = self._in_flight.rollouts()
        return StreamSnapshot(state=state, buffer=await self._buffer.snapshot(), unfinished=unfinished)

    async def restore(self, snapshot: StreamSnapshot) -> None:
        """Hold what ``snapshot`` holds; for a stream that was not entered yet.

        Once it is, unfinished responses go on after their last token, and groups that waited for rewards are scored
        anew. Raises what the prompts raise if ``snapshot`` belongs to others.
        """
        state = snapshot.state
        self._prompts.restore(state.cursor)
        self._pacing.restore(state.mean_length)
        self.generated = state.generated
        self._in_flight.restore(snapshot.unfinished, state.unfinished, state.lost)
        self._status, self._unscored = await self._buffer.restore(snapshot.buffer)

    async def _filled(self) -> None:
        """Wait until there is a step to take."""
        while not self._status.ready or self._wave_under_way():
            self._raise_failure()
            check_supply(self._algo, self._status, scored_groups=self._scored, prompts=len(self._prompts))
            self._changed.clear()
            await self._changed.wait()
        self._raise_failure()

    def _account(self, buffered: Ledger) -> Ledger:
        in_flight, finished = self._in_flight.tokens
        ledger = replace(
            buffered,
            generated=self.generated,
            in_flight=in_flight,
            waiting=buffered.waiting + finished,
            dropped=buffered.dropped + self._in_flight.lost,
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
        unfinished = self._in_flight.unfinished
        while self._pacing.admits_another(
            unfinished=unfinished, groups=len(self._in_flight), backlog=self._status.backlog
        ):
            prompt = self._prompts.next()
            self._in_flight.begin(prompt)
            unfinished += self._algo.group_size
            if self._open:
                self._start(self._generate(prompt.index), self._turns)

    def _wave_under_way(self) -> bool:
        return self._in_waves and bool(self._in_flight or self._unscored)

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
                self._in_flight.begin_again(index)

    async def _turn(self, index: int) -> None:
        """A finished rollout leaves `_in_flight` only when the buffer has it."""
        grown = await self._rollout.generate(self._in_flight[index])
        if grown is None:
            return
        rollout, status = grown
        self._in_flight.grow(index, rollout, status)
        self.generated += status.new_tokens
        if status.finished:
            self._observe(await self._buffer.add(rollout))
            self._pacing.ended(status.finished_tokens)
            self._in_flight.end(index)
            self._unscored[index] = rollout
            self._start(self._score(index), self._scorings)

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
