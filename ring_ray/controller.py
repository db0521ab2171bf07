"""The C3PO loop: pull exactly N tokens, update, move generation to the new weights, carry the rest over."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from ring_ray.config import RunConfig
from ring_ray.roles import PolicyRole, ReferenceRole
from ring_ray.stream import RolloutStream
from ring_ray.types import StepMetrics


class StepLog(Protocol):
    def log(self, metrics: StepMetrics) -> None: ...


class Controller:
    """Wires the roles into optimizer steps. It sees references, counts and metrics, never a token."""

    def __init__(
        self,
        config: RunConfig,
        *,
        stream: RolloutStream,
        policy: PolicyRole,
        reference: ReferenceRole | None,
        tracker: StepLog,
    ) -> None:
        self._config = config
        self._stream, self._policy, self._reference, self._tracker = stream, policy, reference, tracker

    async def run(self) -> None:
        """Train for ``train.steps`` optimizer steps, each followed by a weight sync to policy version ``step``."""
        async with self._stream as stream:
            generated = 0
            for step in range(1, self._config.train.steps + 1):
                clock = PhaseClock()
                with clock.phase("wait"):
                    batch, summary = await stream.take()  # exactly N finished tokens, never fewer, never more
                    if not self._config.cluster.overlap:
                        await stream.pause()
                with clock.phase("reference"):
                    reference = await self._reference.logprobs(batch) if self._reference else None
                with clock.phase("update"):
                    update = await self._policy.update(batch, reference)  # one optimizer step, loss scaled by 1/Φ
                with clock.phase("sync"):
                    ledger = await stream.load(await self._policy.weights(), version=step)
                self._tracker.log(
                    StepMetrics(
                        step=step,
                        batch=summary,
                        update=update,
                        ledger=ledger,
                        token_budget=self._config.algo.token_budget,
                        step_seconds=clock.total,
                        phase_seconds=clock.seconds,
                        generated_tokens=ledger.generated - generated,
                    )
                )
                generated = ledger.generated


class PhaseClock:
    """Wall seconds of one step, by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
