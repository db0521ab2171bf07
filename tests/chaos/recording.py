"""Roles that write down what passes through them, before and after the roles of a run do their work."""

import inspect
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ring_ray.buffer import BufferState
from ring_ray.config import AlgoConfig, RunConfig, TrainConfig
from ring_ray.roles import BatchRef, BufferStateRef, BufferStatus, LogprobsRef, Roles, RolloutRef
from ring_ray.types import Ledger, Reward, Rollout, RolloutStatus, TokenBatch, UpdateMetrics
from tests.chaos.journal import (
    FILE,
    Added,
    Begun,
    BufferRestored,
    Event,
    Journal,
    PolicyRestored,
    Response,
    Saved,
    Scored,
    Settled,
    Span,
    Trained,
    Turn,
    digest,
)


class Recorder:
    """Of reinforcement learning only: evaluations and the cold start train no token that anybody counts."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.on = False

    def write(self, event: Event) -> None:
        if self.on:
            self._journal.write(event)


class Recorded:
    """A role that does all that ``role`` does."""

    def __init__(self, role: Any, recorder: Recorder) -> None:
        self._role, self._recorder = role, recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._role, name)


class RecordedRollout(Recorded):
    async def generate(self, rollout: RolloutRef) -> tuple[RolloutRef, RolloutStatus] | None:
        answer = await self._role.generate(rollout)
        if answer is None:
            return None
        grown, status = answer
        before: Rollout = await opened(rollout)
        after: Rollout = await opened(grown)
        pairs = zip(before.sequences, after.sequences, strict=True)
        self._recorder.write(
            Turn(
                prompt=after.prompt.index,
                begins=tuple(digest(new, len(old)) for old, new in pairs),
                responses=tuple(map(Response.of, after.sequences)),
            )
        )
        return grown, status


class RecordedBuffer(Recorded):
    """Writes before it calls: the buffer answers in the order of the calls, and so nothing comes in between."""

    async def add(self, rollout: RolloutRef) -> BufferStatus:
        added: Rollout = await opened(rollout)
        digests = tuple(Response.of(sequence).digest for sequence in added.sequences)
        self._recorder.write(Added(prompt=added.prompt.index, digests=digests))
        return await self._role.add(rollout)

    async def score(self, prompt_index: int, rewards: tuple[Reward, ...]) -> BufferStatus:
        reached = all(reward.verdict.reached for reward in rewards)
        equal = len({reward.score for reward in rewards}) == 1
        self._recorder.write(Scored(prompt=prompt_index, reached=reached, equal=equal))
        return await self._role.score(prompt_index, rewards)

    async def advance(self, version: int, skipped: BatchRef | None = None) -> tuple[Ledger, BufferStatus]:
        assert skipped is None, "a step without finite numbers: the recount knows of none"
        self._recorder.write(Settled(step=version))
        return await self._role.advance(version)

    async def snapshot(self) -> BufferStateRef:
        self._recorder.write(Saved())
        return await self._role.snapshot()

    async def restore(self, state: BufferStateRef) -> tuple[BufferStatus, dict[int, RolloutRef]]:
        restored: BufferState = await opened(state)
        self._recorder.write(BufferRestored(step=restored.version))
        return await self._role.restore(state)


class RecordedPolicy(Recorded):
    async def start(self, model_path: str, train: TrainConfig, algo: AlgoConfig) -> None:
        self._recorder.on = algo.objective != "likelihood"
        self._recorder.write(Begun())
        await self._role.start(model_path, train, algo)

    async def restore(self, checkpoint: str) -> None:
        await self._role.restore(checkpoint)
        number = re.search(r"step-(\d+)/?$", checkpoint)
        assert number is not None, checkpoint
        self._recorder.write(PolicyRestored(step=int(number[1])))

    async def update(self, batch: BatchRef, reference: LogprobsRef | None) -> UpdateMetrics:
        metrics = await self._role.update(batch, reference)
        trained: TokenBatch = await opened(batch)
        spans = tuple(
            Span(
                prompt=segment.prompt_index,
                digest=digest(segment.sequence, len(segment.sequence)),
                start=segment.start,
                stop=segment.stop,
            )
            for segment in trained.segments
        )
        self._recorder.write(Trained(step=trained.version + 1, spans=spans))
        return metrics


async def opened(ref: Any) -> Any:
    """What ``ref`` refers to, or ``ref`` where it is the object itself."""
    return await ref if inspect.isawaitable(ref) else ref


def recorded_roles(roles: Roles, journal: Journal) -> Roles:
    recorder = Recorder(journal)
    return replace(
        roles,
        rollout=RecordedRollout(roles.rollout, recorder),
        buffer=RecordedBuffer(roles.buffer, recorder),
        policy=RecordedPolicy(roles.policy, recorder),
    )


def recorded(spawned: Any) -> Any:
    """``spawned`` of ring_ray/actors/cluster.py, with roles that write the journal of the run."""

    @asynccontextmanager
    async def spawn(config: RunConfig, *args: Any, **options: Any) -> AsyncIterator[Roles]:
        journal = Journal(Path(config.run_dir) / FILE)
        try:
            async with spawned(config, *args, **options) as roles:
                yield recorded_roles(roles, journal)
        finally:
            journal.close()

    return spawn
