"""The stream of rollouts: prompts in, finished and scored groups out to the buffer, unfinished responses resumed.

Every prompt is one small task: generate (again after each interruption) until its K responses are finished, hand them
to the buffer, have them scored. The stream holds only references and counts, so its share of the ledger is exact
whenever generation is paused.
"""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Protocol

from ring_ray.config import AlgoConfig, ConfigError
from ring_ray.roles import BatchRef, BufferRole, BufferStatus, RewardRole, RolloutRef, RolloutRole
from ring_ray.sync import WeightSync
from ring_ray.types import BatchSummary, Ledger, Prompt, Rollout, RolloutStatus, Sequence

MAX_PASSES = 10  # over the data for one step; a step that needs more is not going to come


class Prompts(Protocol):
    """An endless source; ``len`` is the number of distinct prompts, one pass."""

    def next(self) -> Prompt: ...

    def __len__(self) -> int: ...


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
    ) -> None:
        """``max_in_flight`` unfinished responses keep the engines full: prompts are issued as long as there are fewer.

        Of a group that goes on over a weight sync only the responses that do are counted: a few long ones must not hold
        the place of the many that have ended.

        ``overlap``: generation goes on while the policy trains.
        """
        check_budget(algo, len(prompts), max_response_tokens)
        self._prompts, self._rollout, self._sync, self._reward, self._buffer = prompts, rollout, sync, reward, buffer
        self._algo, self._max_in_flight = algo, max_in_flight
        # How many steps' worth of tokens may be under way. With overlap the batch of version v is already taken when v
        # samples, so the first x steps' worth that v samples are trained at v + 1, ..., v + x: for no token to be
        # evicted, x may be max_staleness. Without overlap they are trained at v, ..., v + x - 1: one more.
        self._max_backlog = max(1, algo.max_staleness) if overlap else 1 + algo.max_staleness
        self._mean_length = float(max_response_tokens)  # of a response; falls to what is seen
        self._generated = 0  # tokens that the engines say they sampled
        self._in_flight: dict[int, RolloutStatus] = {}  # by prompt index, as of the last return
        self._scored = 0  # groups, since the last batch or the last eviction
        self._status = BufferStatus(revision=0, queued=0.0, backlog=0.0)
        self._open = asyncio.Event()  # the engines may sample: prompts wait for it, only `pause` clears it
        self._changed = asyncio.Event()  # the buffer got a group, or a prompt failed: `take` waits for it
        self._prompt_tasks: set[asyncio.Task[None]] = set()  # a prompt's life
        self._generating: set[asyncio.Task[tuple[RolloutRef, bool]]] = set()  # its turns of an engine: `pause` waits
        self._failure: BaseException | None = None

    async def __aenter__(self) -> "RolloutStream":
        self._open.set()
        self._issue()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.clear()
        for task in self._prompt_tasks | self._generating:
            task.cancel()
        await asyncio.gather(*self._prompt_tasks, *self._generating, return_exceptions=True)
        if kind is None:
            await self._rollout.interrupt()  # what was in flight stops sampling
            await self._rollout.resume()
            self._raise_failure()

    async def take(self) -> tuple[BatchRef, BatchSummary]:
        """Wait until one step's tokens are there, then take exactly those.

        Raises `StarvedError` where they will not come, and what any prompt's generation or scoring raised.
        """
        while not self._status.ready:
            self._raise_failure()
            self._check_not_starved()
            self._changed.clear()
            await self._changed.wait()
        self._raise_failure()
        batch, summary, status = await self._buffer.take()
        self._observe(status)
        self._scored = 0
        self._issue()
        return batch, summary

    async def pause(self) -> None:
        """Interrupt the engines; returns once every unfinished response is back, with all its tokens."""
        self._open.clear()
        await self._sync.rest()
        await asyncio.gather(*self._generating)

    async def advance(self, version: int) -> Ledger:
        """Move generation to the policy's weights, now ``version``: pause, account for every token, load, resume.

        Raises `LedgerError` if a token is not exactly where the ledger says.
        """
        await self.pause()
        self._raise_failure()
        buffered, status = await self._buffer.advance(version)
        self._observe(status)
        self._scored = 0
        ledger = self._account(buffered)
        await self._sync.transfer(version)
        self._open.set()
        self._issue()
        return ledger

    def _account(self, buffered: Ledger) -> Ledger:
        ledger = Ledger(
            generated=self._generated,
            in_flight=sum(status.in_flight_tokens for status in self._in_flight.values()),
            waiting=buffered.waiting + sum(status.finished_tokens for status in self._in_flight.values()),
            queued=buffered.queued,
            trained=buffered.trained,
            filtered=buffered.filtered,
            evicted=buffered.evicted,
            dropped=buffered.dropped,
        )
        if not ledger.balanced:
            raise LedgerError(
                f"{ledger.generated} tokens were generated but {ledger.accounted} are accounted for: {ledger}"
            )
        return ledger

    def _issue(self) -> None:
        """Start prompts while the engines have room and what is under way won't be too old when it is trained."""
        algo = self._algo
        group_tokens = self._mean_length * algo.group_size
        steps_per_group = group_tokens / algo.token_budget if algo.selection == "tokens" else 1 / algo.groups_per_step
        unfinished = sum(status.unfinished for status in self._in_flight.values())
        while unfinished < self._max_in_flight and (
            self._status.backlog + len(self._in_flight) * steps_per_group < self._max_backlog
        ):
            prompt = self._prompts.next()
            self._in_flight[prompt.index] = RolloutStatus(
                new_tokens=0, in_flight_tokens=0, finished_tokens=0, unfinished=algo.group_size
            )
            unfinished += algo.group_size
            self._spawn(self._run_prompt(prompt))

    def _spawn(self, life: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(life)
        self._prompt_tasks.add(task)
        task.add_done_callback(self._prompt_done)

    def _prompt_done(self, task: asyncio.Task[None]) -> None:
        self._prompt_tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._failure = self._failure or task.exception()
            self._changed.set()

    async def _run_prompt(self, prompt: Prompt) -> None:
        """A prompt's life, from its first token to its reward."""
        start = tuple(Sequence.start(prompt.token_ids) for _ in range(self._algo.group_size))
        rollout, finished = RolloutRef(Rollout(prompt=prompt, sequences=start)), False
        while not finished:
            await self._open.wait()
            turn = asyncio.create_task(self._generate(prompt.index, rollout))
            self._generating.add(turn)
            turn.add_done_callback(self._generating.discard)
            rollout, finished = await turn
        rewards = await self._reward.score(rollout)
        self._observe(await self._buffer.score(prompt.index, rewards))
        self._scored += 1
        self._changed.set()
        self._issue()

    async def _generate(self, index: int, rollout: RolloutRef) -> tuple[RolloutRef, bool]:
        """One turn of the engine. A finished rollout leaves `_in_flight` only when the buffer has it."""
        grown, status = await self._rollout.generate(rollout)
        self._generated += status.new_tokens
        self._in_flight[index] = status
        if status.finished:
            length = status.finished_tokens / self._algo.group_size
            self._mean_length += 0.05 * (length - self._mean_length)
            self._observe(await self._buffer.add(grown))
            del self._in_flight[index]
        return grown, status.finished

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _observe(self, status: BufferStatus) -> None:
        """Keep the buffer's newest answer: answers may be seen out of order."""
        if status.revision > self._status.revision:
            self._status = status

    def _check_not_starved(self) -> None:
        passes = self._scored / len(self._prompts)
        if passes < 1 or (passes < MAX_PASSES and self._status.queued > 0):
            return
        algo = self._algo
        key = "token_budget" if algo.selection == "tokens" else "groups_per_step"
        raise StarvedError(
            f"one optimizer step can't be filled: {passes:.1f} passes over the {len(self._prompts)} prompts gave "
            f"{self._status.queued:.0%} of algo.{key}={getattr(algo, key)}. Lower it, raise algo.group_size, add data, "
            f"or look at the rewards and at algo.filter_zero_advantage={algo.filter_zero_advantage}"
        )
