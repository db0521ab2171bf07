"""Rollout workers: each holds one engine; the pool routes every rollout to the least loaded one."""

import asyncio
from typing import cast

import ray
from ray import ObjectRef
from ray.actor import ActorProxy

from ring_ray.actors.calls import LeastLoaded, two_refs
from ring_ray.config import Device, RunConfig
from ring_ray.engines.base import RolloutEngine
from ring_ray.roles import RolloutRef, WeightsRef
from ring_ray.types import Rollout, RolloutStatus, Sequence, Weights


class RolloutWorker:
    """One engine in one Ray actor."""

    def __init__(self, model_path: str, config: RunConfig, device: Device, seed: int) -> None:
        from ring_ray.engines.vllm import VllmEngine  # here, so that the driver never imports vLLM

        self._engine: RolloutEngine = VllmEngine(model_path, config.model, config.rollout, device, seed)

    @ray.method(num_returns=2)
    async def generate(self, rollout: Rollout) -> tuple[Rollout, RolloutStatus]:
        async def go_on(sequence: Sequence) -> Sequence:
            return sequence if sequence.finished else await self._engine.generate(sequence)

        before = sum(len(sequence) for sequence in rollout.sequences)
        sequences = tuple(await asyncio.gather(*(go_on(sequence) for sequence in rollout.sequences)))
        in_flight = sum(len(sequence) for sequence in sequences if not sequence.finished)
        total = sum(len(sequence) for sequence in sequences)
        status = RolloutStatus(
            new_tokens=total - before,
            in_flight_tokens=in_flight,
            finished_tokens=total - in_flight,
            finished=all(sequence.finished for sequence in sequences),
        )
        return Rollout(prompt=rollout.prompt, sequences=sequences), status

    @ray.method
    async def interrupt(self) -> None:
        await self._engine.interrupt()

    @ray.method
    async def load(self, weights: Weights, version: int) -> None:
        await self._engine.load(weights, version)

    @ray.method
    async def resume(self) -> None:
        await self._engine.resume()

    @ray.method
    async def close(self) -> None:
        await self._engine.close()


class RolloutPool:
    """`RolloutRole` over M workers."""

    def __init__(self, workers: list[ActorProxy[RolloutWorker]]) -> None:
        self._workers = workers
        self._least_loaded = LeastLoaded(workers)

    async def generate(self, rollout: RolloutRef) -> tuple[RolloutRef, RolloutStatus]:
        with self._least_loaded.worker() as worker:
            grown, status = two_refs(worker.generate.remote(cast("Rollout | ObjectRef[Rollout]", rollout)))
            return RolloutRef(grown), await status

    async def interrupt(self) -> None:
        await asyncio.gather(*(worker.interrupt.remote() for worker in self._workers))

    async def load(self, weights: WeightsRef, version: int) -> None:
        stored = cast("ObjectRef[Weights]", weights)
        await asyncio.gather(*(worker.load.remote(stored, version) for worker in self._workers))

    async def resume(self) -> None:
        await asyncio.gather(*(worker.resume.remote() for worker in self._workers))

    async def close(self) -> None:
        await asyncio.gather(*(worker.close.remote() for worker in self._workers))
