"""The workers of a role. Those that are lost are replaced by others in their places."""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, cast

from ray import ObjectRef
from ray.actor import ActorProxy

from ring_ray.actors.calls import WorkerLostError, end_actor, expecting
from ring_ray.actors.processes import Whereabouts, autopsy, headline
from ring_ray.config import RecoveryConfig
from ring_ray.roles import RecoveryError, RolloutLostError
from ring_ray.types import Fault

DEATH_SECONDS = 10  # in which Ray knows that a process is gone

Member = TypeVar("Member")
T = TypeVar("T")


class FaultLog(Protocol):
    def stage(self, text: str) -> None: ...

    def fault(self, fault: Fault) -> None: ...


@dataclass(frozen=True, slots=True)
class Outage:
    """Of a worker, whose successor has started."""

    kind: str  # of fault
    what: str  # had happened, for people
    since: float  # on the clock of time.perf_counter


class Recovery:
    """What the fleets of a run share: their limits, whom they tell, and where the stacks of silent processes go."""

    def __init__(self, config: RecoveryConfig, log: FaultLog, directory: Path) -> None:
        self.config, self.log = config, log
        self._directory = directory
        self._in_a_row = Counter[str]()  # by kind of fault
        self._numbers = count()  # of stacks

    def lost(self, kind: str, what: str, among: int) -> None:
        """One of ``among`` workers is about to be started anew. Raises `RecoveryError` where that was often enough."""
        self._in_a_row[kind] += 1
        limit = self.config.limit
        if self._in_a_row[kind] > limit * among:
            raise RecoveryError(f"{what}; that was the last straw: recovery.limit={limit} in a row for each of {among}")
        self.log.stage(f"{what}; another is started in its place")

    def made_good(self, outage: Outage) -> None:
        self.log.fault(Fault(kind=outage.kind, what=outage.what, seconds=time.perf_counter() - outage.since))

    def well(self, kind: str) -> None:
        """There was progress since the last loss."""
        self._in_a_row[kind] = 0

    def rollout_lost(self) -> RolloutLostError:
        """To be raised, once it is told."""
        error = RolloutLostError("the tokens of a rollout are lost with the node that held them")
        self.log.fault(Fault(kind="data", what=str(error), seconds=0.0))
        return error

    def keep(self, stacks: str) -> str:
        """Where they are now, for people."""
        path = self._directory / f"stacks-{time.strftime('%Y%m%d-%H%M%S')}-{next(self._numbers)}.txt"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            path.write_text(stacks)
        except OSError as error:  # as on a full disk: no reason to lose what can be made good
            return f"could not be kept: {error}"
        return str(path)


class Fleet(Generic[Member]):
    """The workers of one role, by rank."""

    def __init__(self, names: list[str], spawn: Callable[[int, str], ActorProxy[Member]], recovery: Recovery) -> None:
        """``spawn`` makes the actor of a rank, with its `label`: Ray gives no name twice at a time."""
        self.names, self.recovery = names, recovery
        self._spawn = spawn
        self._members: list[ActorProxy[Member]] = []
        self._places: list[Whereabouts | None] = []  # None before it has started
        self._starts = [0] * len(names)
        for rank in range(len(names)):
            self._add(rank)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[ActorProxy[Member]]:
        return iter(self._members)

    def __getitem__(self, rank: int) -> ActorProxy[Member]:
        return self._members[rank]

    def label(self, rank: int) -> str:
        """A worker's name, in which it differs from those before it in its place."""
        starts = self._starts[rank]
        return self.names[rank] if starts == 1 else f"{self.names[rank]}, start {starts}"

    async def ask(self, rank: int, call: Awaitable[T], doing: str, seconds: float | None = None) -> T:
        """What a worker answers, within ``seconds`` if it has started. Raises `WorkerLostError`."""
        await self.started(rank)
        async with expecting(self.names[rank], doing, seconds):
            return await call

    async def ask_all(self, calls: Iterable[Awaitable[T]], doing: str, seconds: float | None = None) -> list[T]:
        """What all workers answer, by rank. Raises `WorkerLostError`, or the first error of one of them."""
        return await asyncio.gather(*(self.ask(rank, call, doing, seconds) for rank, call in enumerate(calls)))

    async def death(self) -> WorkerLostError | None:
        """Of a worker, if one has died; one that is busy may be."""
        asked = [
            self.ask(rank, member, "say where it is", DEATH_SECONDS)
            for rank, member in enumerate(map(_whereabouts, self))
        ]
        found = await asyncio.gather(*asked, return_exceptions=True)
        return next((error for error in found if isinstance(error, WorkerLostError) and not error.silent), None)

    async def make_good(
        self,
        kind: str,
        lost: dict[int, ActorProxy[Member]],
        why: WorkerLostError,
        ready: Callable[[], Awaitable[object]],
    ) -> Outage:
        """Start others in the places of ``lost``, by rank, until they are ``ready``, which may lose them as well.

        Raises `RecoveryError` where that happens too often.
        """
        since = time.perf_counter()
        while True:
            what = await self.replace(lost, why)
            self.recovery.lost(kind, what, among=len(self) // len(lost))
            lost = {rank: self._members[rank] for rank in lost}
            try:
                await ready()
                return Outage(kind, what, since)
            except WorkerLostError as again:
                why = again

    async def replace(self, lost: dict[int, ActorProxy[Member]], why: WorkerLostError) -> str:
        """Start others in the places of ``lost``, by rank, as far as nobody has; returns what happened, for people.

        If they are silent, what their processes were doing is kept, and those are ended first.
        """
        lost = {rank: member for rank, member in lost.items() if self._members[rank] is member}
        places = {rank: self._places[rank] for rank in lost}
        told = str(why)
        for rank in lost:
            self._add(rank)
        try:
            if why.silent and lost:
                told += await self._autopsies(places)
        finally:
            for member in lost.values():
                end_actor(member)
        return told

    def end(self) -> None:
        for member in self._members:
            end_actor(member)

    def _add(self, rank: int) -> None:
        self._starts[rank] += 1
        member = self._spawn(rank, self.label(rank))
        if rank == len(self._members):
            # At once, so that `end` finds it if the next can't be made.
            self._members.append(member)
            self._places.append(None)
        else:
            self._members[rank], self._places[rank] = member, None

    async def started(self, rank: int) -> None:
        """Wait until a worker has started. Raises `WorkerLostError`, or what its constructor raised."""
        member = self._members[rank]
        if self._places[rank] is not None:
            return
        async with expecting(self.names[rank], "start", self.recovery.config.work_seconds):
            place = await _whereabouts(member)
        if self._members[rank] is member:
            self._places[rank] = place

    async def _autopsies(self, places: dict[int, Whereabouts | None]) -> str:
        async def of(place: Whereabouts | None) -> str:
            return await autopsy(place) if place else "is not started"

        found = await asyncio.gather(*map(of, places.values()))
        stacks = "".join(f"# {self.names[rank]}\n{text}\n\n" for rank, text in zip(places, found, strict=True))
        brief = ", ".join(f"{self.names[rank]} {headline(text)}" for rank, text in zip(places, found, strict=True))
        return f": {brief}; stacks: {self.recovery.keep(stacks)}"


def _whereabouts(member: Any) -> ObjectRef[Whereabouts]:
    return cast("ObjectRef[Whereabouts]", member.whereabouts.remote())
