"""Which rollout workers are up, and how others come in the places of those that are lost."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from ray import ObjectRef
from ray.actor import ActorProxy
from ray.exceptions import RayActorError

from ring_ray.actors.calls import WorkerLostError, expecting
from ring_ray.actors.fleet import Fleet, Outage

Engine = TypeVar("Engine")
T = TypeVar("T")

PINGS = 4  # in the time in which an engine must have answered one


@dataclass(frozen=True, slots=True)
class Newcomer(Generic[Engine]):
    """A worker in the place of one that was lost."""

    worker: ActorProxy[Engine]
    outage: Outage  # which it makes good once it has the weights


class Supervisor(Generic[Engine]):
    """Of workers that have the methods ``ping``, ``resume`` and ``interrupt`` of a `RolloutWorker`.

    Attributes:
        up: the workers that can be asked for work, by rank.
        back: those that were started anew, and have the weights that engines begin with.
        asleep: whether a newcomer is to sleep, like the others.
    """

    def __init__(self, fleet: Fleet[Engine]) -> None:
        self.up: dict[int, ActorProxy[Engine]] = dict(enumerate(fleet))
        self.back: dict[int, Newcomer[Engine]] = {}
        self.asleep = False
        self._fleet = fleet
        self._changed = asyncio.Condition()
        self._failure: Exception | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: asyncio.Task[None] | None = None
        self._watching = True

    async def ask(
        self,
        workers: Mapping[int, ActorProxy[Engine]],
        call: Callable[[Any, int], ObjectRef[T]],
        doing: str,
        seconds: float | None,
        *,
        again: bool = False,
    ) -> dict[int, T]:
        """The answers of those that are not lost, by rank. Raises what one of them raised.

        Not if it is going to be asked ``again`` because one was lost: where that sends to them all, the others fail.
        """

        async def one(rank: int, worker: ActorProxy[Engine]) -> T:
            async with expecting(self._fleet.names[rank], doing, seconds):
                return await call(worker, rank)

        answers = await asyncio.gather(*(one(*member) for member in workers.items()), return_exceptions=True)
        found, failed, lost = dict[int, T](), list[BaseException](), False
        for (rank, worker), answer in zip(workers.items(), answers, strict=True):
            if isinstance(answer, WorkerLostError):
                self.lose(rank, worker, answer)
                lost = True
            elif isinstance(answer, BaseException):
                failed.append(answer)
            elif self._fleet[rank] is worker:
                found[rank] = answer
        if failed and not (lost and again):
            raise failed[0]
        return found

    def lose(self, rank: int, worker: ActorProxy[Engine], error: WorkerLostError) -> None:
        """Have another come in the place of ``worker``, unless that was noticed before."""
        newcomer = self.back.get(rank)
        if self.up.get(rank) is not worker and (newcomer is None or newcomer.worker is not worker):
            return
        self.up.pop(rank, None)
        self.back.pop(rank, None)
        self._start(self._bring_back(rank, worker, error))

    async def put_up(self, workers: Mapping[int, ActorProxy[Engine]]) -> None:
        """They have the weights, and sample."""
        for rank, worker in workers.items():
            self.up[rank] = worker
            if newcomer := self.back.pop(rank, None):
                self._fleet.recovery.made_good(newcomer.outage)
        await self.notify()

    def watch(self, on: bool) -> None:
        """Whether engines are pinged: one that is given weights can't answer."""
        self._watching = on
        if on and self._watch is None:
            self._watch = asyncio.create_task(self._ping())
            self._watch.add_done_callback(self._ended)

    async def until(self, condition: Callable[[], object]) -> None:
        """Raises what keeps a worker from coming back."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure or condition())
        if self._failure:
            raise self._failure

    async def notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def end(self) -> None:
        for task in (*self._tasks, *([self._watch] if self._watch else [])):
            task.cancel()

    async def _bring_back(self, rank: int, worker: ActorProxy[Engine], error: WorkerLostError) -> None:
        outage = await self._fleet.make_good("rollout", {rank: worker}, error, lambda: self._ready(rank))
        self.back[rank] = Newcomer(self._fleet[rank], outage)
        await self.notify()

    async def _ready(self, rank: int) -> None:
        """Have a newcomer do what the others do: sample, or sleep. Raises `WorkerLostError`."""
        newcomer: Any = self._fleet[rank]
        seconds = self._fleet.recovery.config.work_seconds
        try:
            await self._fleet.ask(rank, newcomer.resume.remote(None), "start", seconds)
            if self.asleep:
                await self._fleet.ask(rank, newcomer.interrupt.remote(True), "sleep", seconds)
        except RayActorError as failed:  # in its constructor, as where what it needs is not free yet
            raise WorkerLostError(f"{self._fleet.names[rank]} can't start: {failed}", silent=False) from failed

    async def _ping(self) -> None:
        """Take engines that do not answer for lost."""
        seconds = self._fleet.recovery.config.answer_seconds
        for rank in list(self.up):
            with suppress(WorkerLostError):  # which the first ping finds
                await self._fleet.started(rank)  # and known: who falls silent can't say where it is
        while True:
            await asyncio.sleep(seconds / PINGS)
            if self._watching:
                back = {rank: newcomer.worker for rank, newcomer in self.back.items()}
                await self.ask(self.up | back, lambda worker, _: worker.ping.remote(), "answer a ping", seconds)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._failure = cast(Exception, error)
            self._start(self.notify())
