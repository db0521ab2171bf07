"""Rollout workers: each holds one engine; the pool routes every rollout to the least loaded one that is up."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorProxy

from ring_ray.actors.calls import WorkerLostError, two_refs
from ring_ray.actors.fleet import Fleet
from ring_ray.actors.memory import held_bytes
from ring_ray.actors.worker import Worker
from ring_ray.config import Device, RunConfig
from ring_ray.engines.base import RolloutEngine
from ring_ray.engines.vllm_worker import exit_with
from ring_ray.engines.weights import Parcel
from ring_ray.roles import ParcelRef, RolloutRef
from ring_ray.types import Fault, Prompt, Rollout, RolloutStatus, Sequence

T = TypeVar("T")

PINGS = 4  # in the time in which an engine must have answered one


class RolloutWorker(Worker):
    """One engine in one Ray actor, which ends when its engine's processes do: there is one way to be lost."""

    def __init__(self, model_path: str, config: RunConfig, device: Device, seed: int) -> None:
        from ring_ray.engines.vllm import VllmEngine  # here, so that the driver never imports vLLM

        self._device = device
        self._seed = config.seed if config.rollout.deterministic else None
        engine = VllmEngine(
            model_path,
            config.model,
            config.rollout,
            device,
            seed,
            replay_routing=config.algo.replay_routing,
            sleeps=config.cluster.take_turns,
        )
        for process in engine.processes:
            exit_with(process)
        self._engine: RolloutEngine = engine

    async def extend(self, prompt: Prompt, response: int, sequence: Sequence) -> Sequence:
        """Continue response number ``response`` to a prompt."""
        if sequence.finished:
            return sequence
        seed = None
        if self._seed is not None:
            # Of the call, by where it begins: resumed, a response must not draw its first numbers again.
            call = (self._seed, prompt.index, response, len(sequence))
            seed = int(np.random.default_rng(call).integers(2**63))
        return await self._engine.generate(sequence, seed)

    @ray.method(num_returns=2)
    async def generate(self, rollout: Rollout) -> tuple[Rollout, RolloutStatus]:
        before = sum(len(sequence) for sequence in rollout.sequences)
        numbered = enumerate(rollout.sequences)
        sequences = tuple(await asyncio.gather(*(self.extend(rollout.prompt, *response) for response in numbered)))
        in_flight = sum(len(sequence) for sequence in sequences if not sequence.finished)
        total = sum(len(sequence) for sequence in sequences)
        status = RolloutStatus(
            new_tokens=total - before,
            in_flight_tokens=in_flight,
            finished_tokens=total - in_flight,
            unfinished=sum(not sequence.finished for sequence in sequences),
        )
        return Rollout(prompt=rollout.prompt, sequences=sequences), status

    @ray.method
    async def interrupt(self, sleep: bool) -> None:
        await self._engine.interrupt(sleep=sleep)

    @ray.method
    async def receive(self, parcel: Parcel) -> None:
        await self._engine.receive(parcel)

    @ray.method
    async def resume(self, version: int | None) -> None:
        await self._engine.resume(version)

    @ray.method
    async def checksums(self) -> dict[str, str]:
        return await self._engine.checksums()

    @ray.method
    async def memory(self) -> int:
        return held_bytes(self._device)

    @ray.method
    async def ping(self) -> None:
        await self._engine.ping()

    @ray.method
    async def close(self) -> None:
        await self._engine.close()


class Outage(NamedTuple):
    """Of a worker that was lost, from then until another in its place is up."""

    what: str
    start: float  # on the clock of time.perf_counter


class RolloutPool:
    """`RolloutRole` over M workers. One that is lost is started anew, and is up again once it has the others' weights.

    Meanwhile the others go on; what it was working on returns as it was.
    """

    def __init__(self, fleet: Fleet[RolloutWorker], transport: str) -> None:
        self._fleet = fleet
        self._from_own_rank = transport == "ipc"
        self._calls = [0] * len(fleet)  # in progress, by rank
        self._up = set(range(len(fleet)))
        self._back = dict[int, Outage]()  # started anew, without weights
        self._receivers = sorted(self._up)  # of the update that goes on
        self._losses = 0  # since the last update of all
        self._interrupted, self._asleep = False, False
        self._changed = asyncio.Condition()
        self._failure: Exception | None = None
        self._background: set[asyncio.Task[None]] = set()

    async def generate(self, rollout: RolloutRef) -> tuple[RolloutRef, RolloutStatus] | None:
        await self._until(lambda: self._up or self._interrupted)
        if self._interrupted:
            return None
        rank = min(self._up, key=lambda rank: self._calls[rank])
        worker = self._fleet[rank]
        self._calls[rank] += 1
        try:
            grown, status = two_refs(worker.generate.remote(cast("Rollout | ObjectRef[Rollout]", rollout)))
            return RolloutRef(grown), await self._fleet.ask(rank, status, "generate")
        except WorkerLostError as error:
            self._lose(rank, worker, error)
            return None
        except ray.exceptions.ObjectLostError as error:
            raise self._fleet.recovery.rollout_lost() from error
        finally:
            self._calls[rank] -= 1

    async def interrupt(self, *, sleep: bool = False) -> None:
        self._interrupted, self._asleep = True, sleep
        await self._notify()
        self._receivers = sorted(self._up)
        await self._ask(self._receivers, lambda worker, _: worker.interrupt.remote(sleep), "interrupt")

    def begin_update(self, *, newcomers: bool) -> tuple[str, ...]:
        self._receivers = sorted(self._back if newcomers else self._up | self._back.keys())
        self._losses = self._losses if newcomers else 0
        return tuple(map(self._fleet.label, self._receivers))

    async def receive(self, parcel: ParcelRef) -> bool:
        """Engine i takes what rank i sends, over shared memory; else all take what rank 0 sends."""
        sent = cast("list[ObjectRef[Parcel]]", parcel)
        receivers = self._receivers
        answers = await self._ask(
            receivers,
            lambda worker, rank: worker.receive.remote(sent[rank if self._from_own_rank else 0]),
            "receive weights",
        )
        return len(answers) == len(receivers)

    async def resume(self, version: int | None = None) -> None:
        resumed = await self._ask(self._receivers, lambda worker, _: worker.resume.remote(version), "resume", None)
        self._interrupted, self._asleep = False, False
        for rank in resumed:
            self._up.add(rank)
            if outage := self._back.pop(rank, None):
                seconds = time.perf_counter() - outage.start
                self._fleet.recovery.log.fault(Fault(kind="rollout", what=outage.what, seconds=seconds))
        await self._notify()
        if not self._background:
            self._start(self._watch())

    async def returned(self) -> None:
        await self._until(lambda: self._back)

    async def checksums(self) -> list[dict[str, str]]:
        answers = await self._ask(
            self._receivers, lambda worker, _: worker.checksums.remote(), "add up its weights", None
        )
        return list(answers.values())

    async def memory(self) -> int:
        return sum((await self._ask(self._up, lambda worker, _: worker.memory.remote(), "measure its memory")).values())

    async def close(self) -> None:
        """Also ends the workers, which do not outlive their engines."""
        for task in self._background:
            task.cancel()
        closed = await asyncio.gather(*(worker.close.remote() for worker in self._fleet), return_exceptions=True)
        for error in closed:
            if isinstance(error, BaseException) and not isinstance(error, ray.exceptions.RayActorError):
                raise error

    async def _ask(
        self,
        ranks: Iterable[int],
        call: "Callable[[ActorProxy[RolloutWorker], int], ObjectRef[T]]",
        doing: str,
        seconds: float | None = 0,
    ) -> dict[int, T]:
        """The answers of those that are not lost, by rank; ``seconds`` is the limit, 0 for the usual one."""
        seconds = self._fleet.recovery.config.answer_seconds if seconds == 0 else seconds
        workers = {rank: self._fleet[rank] for rank in ranks}
        answers = await asyncio.gather(
            *(self._fleet.ask(rank, call(worker, rank), doing, seconds) for rank, worker in workers.items()),
            return_exceptions=True,
        )
        found: dict[int, T] = {}
        for (rank, worker), answer in zip(workers.items(), answers, strict=True):
            if isinstance(answer, WorkerLostError):
                self._lose(rank, worker, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found[rank] = answer
        return found

    def _lose(self, rank: int, worker: ActorProxy[RolloutWorker], error: WorkerLostError) -> None:
        """Have another come in the place of ``worker``, unless that was noticed before."""
        known = rank not in self._up and rank not in self._back
        if known or self._fleet[rank] is not worker:
            return
        self._up.discard(rank)
        self._back.pop(rank, None)
        self._losses += 1
        self._start(self._bring_back(rank, worker, error))

    async def _bring_back(self, rank: int, worker: ActorProxy[RolloutWorker], error: WorkerLostError) -> None:
        start, log = time.perf_counter(), self._fleet.recovery.log
        limit = self._fleet.recovery.config.limit * len(self._fleet)
        while self._losses <= limit:
            what = await self._fleet.replace({rank: worker}, error)
            log.stage(f"{what}; another is started in its place")
            worker = self._fleet[rank]
            try:
                await self._fleet.ask(rank, worker.resume.remote(None), "start")
                if self._asleep:
                    await self._fleet.ask(rank, worker.interrupt.remote(True), "sleep")
            except WorkerLostError as again:
                error = again
                self._losses += 1
                continue
            self._back[rank] = Outage(what, start)
            break
        else:
            self._failure = RuntimeError(f"{error}; rollout engines were lost {self._losses} times since the last step")
        await self._notify()

    async def _watch(self) -> None:
        """Take engines that do not answer for lost."""
        while True:
            await asyncio.sleep(self._fleet.recovery.config.answer_seconds / PINGS)
            await self._ask(self._up, lambda worker, _: worker.ping.remote(), "answer a ping")

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()):
            self._failure = cast(Exception, error)
            self._start(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, condition: Callable[[], object]) -> None:
        """Raises what keeps a worker from coming back."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._failure or condition())
        if self._failure:
            raise self._failure
