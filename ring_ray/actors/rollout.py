"""Rollout workers: each holds one engine; the pool routes every rollout to the least loaded one that is up."""

import asyncio
import os
import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import numpy as np
import ray
from ray import ObjectRef

from ring_ray.actors.calls import WorkerLostError, expecting, two_refs
from ring_ray.actors.fleet import Fleet
from ring_ray.actors.memory import held_bytes
from ring_ray.actors.supervisor import Supervisor
from ring_ray.actors.worker import Worker
from ring_ray.config import Device, RunConfig
from ring_ray.engines.base import RolloutEngine
from ring_ray.engines.vllm_worker import exit_with
from ring_ray.engines.weights import Parcel
from ring_ray.roles import ParcelRef, RolloutRef
from ring_ray.types import Prompt, Rollout, RolloutStatus, Sequence

T = TypeVar("T")


class RolloutWorker(Worker):
    """One engine in one Ray actor, which ends when its engine does: there is one way to be lost."""

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
        self._closing = threading.Event()
        for process in engine.processes:
            exit_with(process, unless=self._closing)
        self._engine: RolloutEngine = engine
        self._is_dead: Callable[[], bool] = lambda: engine.dead

    async def extend(self, prompt: Prompt, response: int, sequence: Sequence) -> Sequence:
        """Continue response number ``response`` to a prompt."""
        if sequence.finished:
            return sequence
        seed = None
        if self._seed is not None:
            # Of the call, by where it begins: resumed, a response must not draw its first numbers again.
            call = (self._seed, prompt.index, response, len(sequence))
            seed = int(np.random.default_rng(call).integers(2**63))
        return await self._answer(self._engine.generate(sequence, seed))

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
        await self._answer(self._engine.interrupt(sleep=sleep))

    @ray.method
    async def receive(self, parcel: Parcel) -> None:
        await self._answer(self._engine.receive(parcel))

    @ray.method
    async def resume(self, version: int | None) -> None:
        await self._answer(self._engine.resume(version))

    @ray.method
    async def checksums(self) -> dict[str, str]:
        return await self._answer(self._engine.checksums())

    @ray.method
    async def memory(self) -> int:
        return held_bytes(self._device)

    @ray.method
    async def ping(self) -> None:
        await self._answer(self._engine.ping())

    @ray.method
    async def close(self) -> None:
        self._closing.set()
        await self._engine.close()

    async def _answer(self, call: Awaitable[T]) -> T:
        """What the engine answers."""
        try:
            return await call
        except Exception:
            if self._is_dead():
                traceback.print_exc()  # into the worker's log
                os._exit(1)
            raise


class RolloutPool:
    """`RolloutRole` over M workers. One that is lost is started anew, and is up again once it has the others' weights.

    Meanwhile the others go on; what it was working on returns as it was.
    """

    def __init__(self, fleet: Fleet[RolloutWorker], transport: str) -> None:
        self._fleet, self._recovery = fleet, fleet.recovery
        self._engines = Supervisor(fleet)
        self._from_own_rank = transport == "ipc"
        self._calls = [0] * len(fleet)  # in progress, by rank
        self._receivers = dict(self._engines.up)  # of the update that goes on, or of the interruption
        self._interrupted = False

    async def generate(self, rollout: RolloutRef) -> tuple[RolloutRef, RolloutStatus] | None:
        engines = self._engines
        await engines.until(lambda: engines.up or self._interrupted)
        if self._interrupted:
            return None
        rank = min(engines.up, key=lambda rank: self._calls[rank])
        worker = engines.up[rank]
        self._calls[rank] += 1
        try:
            async with expecting(self._fleet.names[rank], "generate"):
                grown, status = two_refs(worker.generate.remote(cast("Rollout | ObjectRef[Rollout]", rollout)))
                return RolloutRef(grown), await status
        except WorkerLostError as error:
            engines.lose(rank, worker, error)
            return None
        except ray.exceptions.ObjectLostError as error:
            raise self._recovery.rollout_lost() from error
        finally:
            self._calls[rank] -= 1

    async def interrupt(self, *, sleep: bool = False) -> None:
        engines = self._engines
        self._interrupted, engines.asleep = True, sleep
        await engines.notify()
        self._receivers = dict(engines.up)
        if sleep:
            self._receivers |= {rank: newcomer.worker for rank, newcomer in engines.back.items()}
        seconds = self._recovery.config.answer_seconds
        await engines.ask(self._receivers, lambda worker, _: worker.interrupt.remote(sleep), "interrupt", seconds)

    def begin_update(self, *, newcomers: bool) -> tuple[str, ...]:
        back = {rank: newcomer.worker for rank, newcomer in self._engines.back.items()}
        self._receivers = back if newcomers else self._engines.up | back
        if not newcomers:
            self._recovery.well("rollout")
        self._engines.watch(False)
        return tuple(map(self._fleet.label, self._receivers))

    async def receive(self, parcel: ParcelRef) -> bool:
        """Engine i takes what rank i sends, over shared memory; else all take what rank 0 sends."""
        sent = cast("list[ObjectRef[Parcel]]", parcel)
        answers = await self._engines.ask(
            self._receivers,
            lambda worker, rank: worker.receive.remote(sent[rank if self._from_own_rank else 0]),
            "receive weights",
            self._recovery.config.work_seconds,
            again=True,
        )
        return len(answers) == len(self._receivers)

    async def resume(self, version: int | None = None) -> None:
        seconds = self._recovery.config.work_seconds
        resumed = await self._engines.ask(
            self._receivers, lambda worker, _: worker.resume.remote(version), "resume", seconds
        )
        self._interrupted, self._engines.asleep = False, False
        await self._engines.put_up({rank: self._receivers[rank] for rank in resumed})
        self._engines.watch(True)

    async def returned(self) -> None:
        await self._engines.until(lambda: self._engines.back)

    async def checksums(self) -> list[dict[str, str]]:
        seconds = self._recovery.config.work_seconds
        answers = await self._engines.ask(
            self._receivers, lambda worker, _: worker.checksums.remote(), "add up its weights", seconds, again=True
        )
        return list(answers.values())

    async def memory(self) -> int:
        engines, seconds = self._engines, self._recovery.config.answer_seconds
        held = await engines.ask(engines.up, lambda worker, _: worker.memory.remote(), "measure its memory", seconds)
        return sum(held.values())

    async def close(self) -> None:
        self._engines.end()
        closed = await asyncio.gather(*(worker.close.remote() for worker in self._fleet), return_exceptions=True)
        for error in closed:
            if isinstance(error, BaseException) and not isinstance(error, ray.exceptions.RayActorError):
                raise error
