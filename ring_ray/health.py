"""Whether training is sound after a step: numbers that are finite, a policy that has not collapsed."""

from pathlib import Path

from ring_ray.algo.guard import CollapseDetector
from ring_ray.checkpoint.store import CheckpointError
from ring_ray.config import GuardConfig, RunConfig
from ring_ray.roles import BatchRef, LogprobsRef, PolicyRole, RollBackError
from ring_ray.types import BatchSummary, UpdateMetrics


class NonFiniteError(RuntimeError):
    """Too many steps in a row were skipped: their loss or gradient was not finite."""


class CollapseError(RuntimeError):
    """Training has collapsed."""


class CollapseRollBackError(CollapseError, RollBackError):
    """The same, and the run is to go back to a checkpoint from before the steps that show it."""


class SkippedSteps:
    """Counts the steps in a row that were skipped, and stops the run at ``train.max_skipped_steps``."""

    def __init__(self, config: RunConfig, policy: PolicyRole, name: str = "step") -> None:
        """``name`` is that of the steps, for people and for the file's name."""
        self._limit, self._policy, self._name = config.train.max_skipped_steps, policy, name
        self._directory = Path(config.run_dir).absolute()  # the policy works elsewhere
        self._in_a_row = 0

    async def observe(self, step: int, update: UpdateMetrics, batch: BatchRef, reference: LogprobsRef | None) -> None:
        """Raises `NonFiniteError` at the last step that may be skipped, once the policy has written its batch."""
        self._in_a_row = self._in_a_row + 1 if update.skipped else 0
        if self._in_a_row < self._limit:
            return
        path = self._directory / f"skipped-{self._name}-{step:08d}.msgpack"
        try:
            await self._policy.keep(batch, reference, str(path))
            kept = f"{path} has its batch: docs/faults.md says how to look at it"
        except CheckpointError as error:
            kept = f"its batch could not be kept: {error}"
        raise NonFiniteError(
            f"train.max_skipped_steps={self._limit}: as many steps in a row were skipped, the last {self._name} {step} "
            f"with loss {update.loss:g} and gradient norm {update.grad_norm:g}; {kept}"
        )


class Guard:
    """Does what ``guard.action`` says when training collapses. It begins without a history."""

    def __init__(self, config: GuardConfig) -> None:
        self._action, self._detector = config.action, CollapseDetector(config)

    def observe(self, step: int, update: UpdateMetrics, summary: BatchSummary) -> None:
        """Raises `CollapseError`, with ``guard.action=rollback`` a `CollapseRollBackError`."""
        if self._action == "off" or update.skipped:
            return
        collapse = self._detector.observe(step, entropy=update.entropy, reward=summary.reward_mean)
        if collapse is None:
            return
        message = (
            f"training has collapsed: over the steps {collapse.first} to {collapse.last} the mean {collapse.finding}; "
            f"{collapse.advice} (guard.action={self._action})"
        )
        if self._action == "rollback":
            raise CollapseRollBackError(message, kind="collapse", before=collapse.first - 1)
        raise CollapseError(message)
