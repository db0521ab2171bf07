"""The C3PO loop: pull exactly N tokens, update, move generation to the new weights, carry the rest over."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from ring_ray.config import RunConfig
from ring_ray.health import Guard, SkippedSteps
from ring_ray.roles import PolicyRole, ReferenceRole, RewardRole
from ring_ray.stream import RolloutStream, StreamSnapshot
from ring_ray.types import RolloutSample, StepMetrics


class StepLog(Protocol):
    def log(self, metrics: StepMetrics) -> None: ...

    def rollouts(self, step: int, samples: Sequence[RolloutSample]) -> None: ...


class Checkpoints(Protocol):
    def due(self, step: int) -> bool:
        """Whether the state after ``step`` is to be saved."""

    async def take(self, step: int, stream: StreamSnapshot, score: float) -> None:
        """Keep what the stream holds, and the policy's state."""

    def write(self) -> None:
        """Write what was taken, if anything, while the run goes on."""


class MemoryMeter(Protocol):
    async def memory(self) -> int:
        """Bytes held now."""


class Controller:
    """Wires the roles into optimizer steps. It sees references, counts and metrics, never a token."""

    def __init__(
        self,
        config: RunConfig,
        *,
        stream: RolloutStream,
        policy: PolicyRole,
        reference: ReferenceRole | None,
        reward: RewardRole,
        meters: Mapping[str, MemoryMeter],
        checkpoints: Checkpoints,
        tracker: StepLog,
    ) -> None:
        """``meters`` are read at the end of each phase; none where phases overlap and a figure would say nothing."""
        self._config, self._meters = config, meters
        self._stream, self._policy, self._reference, self._reward = stream, policy, reference, reward
        self._checkpoints, self._tracker = checkpoints, tracker
        self._skipped, self._guard = SkippedSteps(config, policy), Guard(config.guard)

    async def run(self, done: int = 0) -> None:
        """Train until ``train.steps`` optimizer steps, each followed by a weight sync to policy version ``step``.

        ``done`` of them were taken before; the policy and the stream are as they were then. Raises `NonFiniteError` and
        `CollapseError` where going on makes no sense.
        """
        await self._reward.samples()  # what evaluations left belongs to no step
        async with self._stream as stream:
            generated = stream.generated
            for step in range(done + 1, self._config.train.steps + 1):
                phases = Phases(self._meters)
                async with phases.phase("wait"):
                    batch, summary = await stream.take()  # exactly N finished tokens, never fewer, never more
                    if not self._config.cluster.overlap:
                        await stream.pause()
                async with phases.phase("reference"):
                    reference = await self._reference.logprobs(batch) if self._reference else None
                async with phases.phase("update"):
                    update = await self._policy.update(batch, reference)  # one optimizer step, loss scaled by 1/Φ
                async with phases.phase("sync"):  # every token accounted for
                    ledger = await stream.settle(version=step, skipped=batch if update.skipped else None)
                if self._checkpoints.due(step):
                    async with phases.phase("checkpoint"):
                        await self._checkpoints.take(step, await stream.snapshot(), summary.reward_mean)
                async with phases.phase("sync"):
                    await stream.go_on(version=step)  # by the new weights
                self._tracker.log(
                    StepMetrics(
                        step=step,
                        batch=summary,
                        update=update,
                        ledger=ledger,
                        token_budget=self._config.algo.token_budget,
                        step_seconds=sum(phases.seconds.values()),
                        phase_seconds=phases.seconds,
                        memory_bytes=phases.memory_bytes,
                        generated_tokens=ledger.generated - generated,
                    )
                )
                self._tracker.rollouts(step, await self._reward.samples())
                self._checkpoints.write()  # now that all of the step is reported
                await self._skipped.observe(step, update, batch, reference)
                self._guard.observe(step, update, summary)
                generated = ledger.generated


class Phases:
    """Wall seconds of one step by phase, and what each meter read at its end."""

    def __init__(self, meters: Mapping[str, MemoryMeter]) -> None:
        self._meters = meters
        self.seconds: dict[str, float] = {}
        self.memory_bytes: dict[str, int] = {}

    @asynccontextmanager
    async def phase(self, name: str) -> AsyncIterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        read = await asyncio.gather(*(meter.memory() for meter in self._meters.values()))
        self.memory_bytes |= {f"{name}/{role}": held for role, held in zip(self._meters, read, strict=True)}
