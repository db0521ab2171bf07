"""The stage of reinforcement learning, and how it goes on when a part of its state is lost."""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ring_ray.checkpoint.store import CheckpointStore
from ring_ray.config import RunConfig
from ring_ray.controller import Controller, MemoryMeter, StepLog
from ring_ray.resume import Resumed, checkpoint_to_go_back_to
from ring_ray.roles import RecoveryError, Roles, RollBackError
from ring_ray.saver import RunOrigin, Saver
from ring_ray.stream import Prompts, RolloutStream, StreamSnapshot
from ring_ray.sync import WeightSync
from ring_ray.types import Fault


class TrainingLog(StepLog, Protocol):
    @property
    def steps(self) -> int:
        """Optimizer steps that were logged."""

    def stage(self, text: str) -> None: ...

    def fault(self, fault: Fault) -> None: ...

    def rewind(self, steps: int) -> None:
        """Forget the steps after ``steps``."""


class Reinforcement:
    """C3PO from the model that came before it, or from a checkpoint, to the last step.

    What the policy and the buffer hold is nowhere else but in checkpoints: where one of them is lost, all go back to
    the newest. Engines, verifiers and the reference hold nothing of their own, and are replaced without that.
    """

    def __init__(
        self,
        config: RunConfig,
        origin: RunOrigin,
        *,
        roles: Roles,
        sync: WeightSync,
        prompts: Prompts,
        tracker: TrainingLog,
        store: CheckpointStore,
    ) -> None:
        self._config, self._origin, self._roles, self._sync = config, origin, roles, sync
        self._prompts, self._tracker, self._store = prompts, tracker, store

    async def run(self, target: Path, resumed: Resumed | None) -> None:
        """Leaves the trained model in ``target``, and in the engines."""
        self._announce()
        lost: Loss | None = None
        furthest, times = -1, 0
        while True:
            try:
                await self._train(resumed, lost)
                return await self._hand_over(target)
            except Exception as error:
                lost = await self._loss_behind(error)
                if lost is None:
                    raise
                reached = self._tracker.steps
                # A collapse is one of the run itself: it is no progress to come further before it collapses again.
                progress = reached > furthest and lost.error.kind != "collapse"
                furthest, times = max(furthest, reached), 1 if progress else times + 1
                if times > self._config.recovery.limit:
                    raise RecoveryError(f"{lost.error}; recovery.limit={self._config.recovery.limit}") from error
                resumed = self._go_back(lost.error, resumed)

    def _announce(self) -> None:
        config = self._config
        self._tracker.stage(f"{config.algo.name}: {config.train.steps} steps")
        longest_group = config.algo.group_size * config.rollout.max_response_tokens
        if config.algo.selection == "tokens" and longest_group > config.algo.token_budget:
            self._tracker.stage(
                f"  one group may have {longest_group} tokens, more than algo.token_budget={config.algo.token_budget}: "
                "expect many to grow too old before their turn"
            )

    async def _train(self, resumed: Resumed | None, lost: "Loss | None") -> None:
        """From ``resumed``, which makes good what was ``lost``, to the last step."""
        config, roles = self._config, self._roles
        done = resumed.state.step if resumed else 0
        await self._sync.rest()
        if roles.reference is not None:
            await roles.reference.start(self._origin.model_path)
        await roles.policy.start(self._origin.model_path, config.train, config.algo)
        stream = self._make_stream()
        saver = Saver(
            config,
            store=self._store,
            archive=roles.archive,
            policy=roles.policy,
            origin=self._origin,
            say=self._tracker.stage,
        )
        try:
            if resumed:
                await self._restore(stream, resumed)
            elif saver.due(0):  # before the policy makes room for the engines
                await saver.take(0, await stream.snapshot(), math.nan)
                saver.write()
            await self._sync.transfer(version=done)
            if lost:
                self._tracker.fault(lost.made_good())
            controller = Controller(
                config,
                stream=stream,
                policy=roles.policy,
                reference=roles.reference,
                reward=roles.reward,
                meters=self._meters() if config.cluster.take_turns else {},
                checkpoints=saver,
                tracker=self._tracker,
            )
            await controller.run(done)
        finally:
            await saver.finish()  # a run that was stopped has one more to go on from

    async def _hand_over(self, target: Path) -> None:
        await self._sync.rest()
        await self._roles.policy.save(str(target))
        await self._sync.transfer(version=self._config.train.steps)

    async def _restore(self, stream: RolloutStream, resumed: Resumed) -> None:
        """The policy, the buffer and the stream as they were; the policy's model is started, the engines rest."""
        await self._roles.policy.restore(resumed.checkpoint)
        state = resumed.state.stream
        buffer, unfinished = await self._roles.archive.read(resumed.checkpoint, [*state.unfinished])
        await stream.restore(StreamSnapshot(state=state, buffer=buffer, unfinished=unfinished))

    async def _loss_behind(self, error: Exception) -> "Loss | None":
        """An engine may have failed because a rank of the policy did."""
        start = time.perf_counter()
        if isinstance(error, RollBackError):
            return Loss(error, start)
        try:
            await self._roles.policy.check()
        except RollBackError as lost:
            return Loss(lost, start)
        return None

    def _go_back(self, lost: RollBackError, begun: Resumed | None) -> Resumed:
        """To the newest checkpoint that will do, or the one that was ``begun`` from, which may be another run's.

        What was reported after it is forgotten.
        """
        will_do = begun if begun and (lost.before is None or begun.state.step <= lost.before) else None
        resumed = checkpoint_to_go_back_to(self._store, lost.before) or will_do
        if resumed is None:
            since = "" if lost.before is None else f" of step {lost.before} or before"
            every = self._config.checkpoint.every
            raise RecoveryError(
                f"{lost}; there is no checkpoint{since} to go back to: checkpoint.every={every}"
            ) from lost
        step = resumed.state.step
        self._tracker.stage(f"{lost}; going back to step {step}")
        self._store.discard(after=step)
        self._tracker.rewind(step)
        return resumed

    def _make_stream(self) -> RolloutStream:
        config, roles = self._config, self._roles
        return RolloutStream(
            prompts=self._prompts,
            rollout=roles.rollout,
            sync=self._sync,
            reward=roles.reward,
            buffer=roles.buffer,
            algo=config.algo,
            overlap=config.cluster.overlap,
            # Twice as many as the engines decode at a time: when one ends, the next is there, whatever its group does.
            max_in_flight=2 * config.rollout.max_sequences * config.cluster.rollout.workers,
            max_response_tokens=config.rollout.max_response_tokens,
            in_waves=config.rollout.deterministic,
        )

    def _meters(self) -> dict[str, MemoryMeter]:
        """On a GPU the policy's rank sees what all roles hold there."""
        roles = self._roles
        if self._config.cluster.device == "cuda":
            return {"device": roles.policy}
        meters: dict[str, MemoryMeter] = {"policy": roles.policy, "rollout": roles.rollout}
        return meters | ({"reference": roles.reference} if roles.reference else {})


@dataclass(frozen=True, slots=True)
class Loss:
    error: RollBackError
    noticed: float  # on the clock of time.perf_counter

    def made_good(self) -> Fault:
        return Fault(kind=self.error.kind, what=str(self.error), seconds=time.perf_counter() - self.noticed)
