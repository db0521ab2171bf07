"""Rollout workers: each holds one engine; the pool routes every rollout to the least loaded one."""

import asyncio
from typing import cast

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorProxy

from ring_ray.actors.calls import LeastLoaded, two_refs
from ring_ray.actors.memory import held_bytes
from ring_ray.actors.names import Named
from ring_ray.config import Device, RunConfig
from ring_ray.engines.base import RolloutEngine
from ring_ray.engines.weights import Parcel
from ring_ray.roles import ParcelRef, RolloutRef
from ring_ray.types import Prompt, Rollout, RolloutStatus, Sequence


class RolloutWorker(Named):
    """One engine in one Ray actor."""

    def __init__(self, model_path: str, config: RunConfig, device: Device, seed: int) -> None:
        from ring_ray.engines.vllm import VllmEngine  # here, so that the driver never imports vLLM

        self._device = device
        self._seed = config.seed if config.rollout.deterministic else None
        self._engine: RolloutEngine = VllmEngine(
            model_path,
            config.model,
            config.rollout,
            device,
            seed,
            replay_routing=config.algo.replay_routing,
            sleeps=config.cluster.take_turns,
        )

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
    async def close(self) -> None:
        await self._engine.close()


class RolloutPool:
    """`RolloutRole` over M workers."""

    def __init__(self, workers: list[ActorProxy[RolloutWorker]], transport: str) -> None:
        self._workers = workers
        self._from_own_rank = transport == "ipc"
        self._least_loaded = LeastLoaded(workers)

    async def generate(self, rollout: RolloutRef) -> tuple[RolloutRef, RolloutStatus]:
        with self._least_loaded.worker() as worker:
            grown, status = two_refs(worker.generate.remote(cast("Rollout | ObjectRef[Rollout]", rollout)))
            return RolloutRef(grown), await status

    async def interrupt(self, *, sleep: bool = False) -> None:
        await asyncio.gather(*(worker.interrupt.remote(sleep) for worker in self._workers))

    async def receive(self, parcel: ParcelRef) -> None:
        """Engine i takes what rank i sends, over shared memory; else all take what rank 0 sends."""
        by_rank = cast("list[ObjectRef[Parcel]]", parcel)
        own = [by_rank[index if self._from_own_rank else 0] for index in range(len(self._workers))]
        await asyncio.gather(*(worker.receive.remote(sent) for worker, sent in zip(self._workers, own, strict=True)))

    async def resume(self, version: int | None = None) -> None:
        await asyncio.gather(*(worker.resume.remote(version) for worker in self._workers))

    async def checksums(self) -> list[dict[str, str]]:
        return await asyncio.gather(*(worker.checksums.remote() for worker in self._workers))

    async def memory(self) -> int:
        return sum(await asyncio.gather(*(worker.memory.remote() for worker in self._workers)))

    async def close(self) -> None:
        await asyncio.gather(*(worker.close.remote() for worker in self._workers))
