"""What the controller asks of each role, without knowing who answers.

The Ray actors in `actors/` answer in a run; in-process fakes answer in the tests of the controller, in milliseconds.
Data travels by reference: a ``...Ref`` is an object in Ray's store that the controller passes on and never opens, or
the object itself where there is nothing to keep out of the process: with fakes, for a rollout that has no token yet,
and for the demonstrations that the driver makes.
"""

from collections.abc import AsyncIterator
from collections.abc import Sequence as Many
from dataclasses import dataclass
from typing import NewType, Protocol

from ring_ray.checkpoint.store import FileRecord
from ring_ray.config import AlgoConfig, TrainConfig
from ring_ray.types import BatchSummary, Ledger, Reward, RolloutSample, RolloutStatus, UpdateMetrics

RolloutRef = NewType("RolloutRef", object)  # to a Rollout
BatchRef = NewType("BatchRef", object)  # to a TokenBatch
BufferStateRef = NewType("BufferStateRef", object)  # to a BufferState
LogprobsRef = NewType("LogprobsRef", object)  # to tuple[FloatArray, ...], one array a segment
PolicyStateRef = NewType("PolicyStateRef", object)  # to a share of the training state of each rank of the policy
ParcelRef = NewType("ParcelRef", object)  # to a Parcel of each rank of the policy


@dataclass(frozen=True, slots=True, kw_only=True)
class BufferStatus:
    """How full the buffer is, in steps: 1.0 is what one optimizer step takes."""

    revision: int  # counts the buffer's changes: of two answers the one with more is the newer
    queued: float  # ready to be trained
    backlog: float  # queued, and finished responses that wait for their group or its rewards

    @property
    def ready(self) -> bool:
        return self.queued >= 1


class RollBackError(RuntimeError):
    """The run can only go on from its last checkpoint: who held a part of its state is lost, or that state is bad.

    Whoever raises it has seen to it that its role can take that checkpoint's state.
    """

    def __init__(self, message: str, *, kind: str, before: int | None = None) -> None:
        """``kind`` as in `Fault`; only checkpoints of steps up to ``before`` will do, if that is given."""
        super().__init__(message)
        self.kind, self.before = kind, before


class RecoveryError(RuntimeError):
    """What a run has lost can't be made good, or was too often in a row."""


class RolloutLostError(RuntimeError):
    """The tokens of a rollout are gone with the node that held them."""


class RolloutRole(Protocol):
    """The engines. One that is lost is started anew by itself, and then needs the weights of the others."""

    async def generate(self, rollout: RolloutRef) -> tuple[RolloutRef, RolloutStatus] | None:
        """Continue a rollout until its K responses are finished, or until `interrupt`.

        Waits for an engine that is up. None where that was lost, or `interrupt` came first: then the rollout is as it
        was. Raises `RolloutLostError`.
        """

    async def interrupt(self, *, sleep: bool = False) -> None:
        """Make every `generate` in progress return; until `resume` no token is sampled.

        With ``sleep`` the engines' memory is given back, too; new weights must then be received before `resume`.
        """

    def begin_update(self, *, newcomers: bool) -> tuple[str, ...]:
        """Begin with new weights for all engines, or for those only that have `returned`.

        Returns a name for each, which an engine that was started anew has never had.
        """

    async def receive(self, parcel: ParcelRef) -> bool:
        """Copy some of the weights into every engine of the update. False where one was lost: it must begin again."""

    async def resume(self, version: int | None = None) -> None:
        """Have the engines of the update sample, by weights of ``version`` if new ones were received.

        Without an update those that were interrupted; at the beginning all, and it answers once they are started.
        """

    async def returned(self) -> None:
        """Wait until there is an engine that was lost, is started anew, and has not got the weights of the others."""

    async def checksums(self) -> list[dict[str, str]]:
        """For each engine of the update, of every weight by its name."""

    async def memory(self) -> int:
        """Bytes that the engines hold: on a GPU everyone's on their GPUs."""


class RewardRole(Protocol):
    async def score(self, rollout: RolloutRef) -> tuple[Reward, ...]:
        """One reward for each of the K responses; all FAILED where verifiers died of it. Raises `RolloutLostError`."""

    async def samples(self) -> tuple[RolloutSample, ...]:
        """Some of the responses that were scored since the last call, each as likely as any other."""


class BufferRole(Protocol):
    """All methods raise `RollBackError` where the buffer is lost: it is then empty until `restore`."""

    async def add(self, rollout: RolloutRef) -> BufferStatus:
        """Raises `RolloutLostError`."""

    async def waiting(self, prompt_index: int) -> RolloutRef:
        """A rollout that was added and not scored, once more."""

    async def score(self, prompt_index: int, rewards: tuple[Reward, ...]) -> BufferStatus: ...

    async def take(self) -> tuple[BatchRef, BatchSummary, BufferStatus]: ...

    async def advance(self, version: int, skipped: BatchRef | None = None) -> tuple[Ledger, BufferStatus]:
        """The policy is now ``version``: evict what is too old, then say where every token is.

        ``skipped`` is the batch of a step that trained nothing.
        """

    async def snapshot(self) -> BufferStateRef:
        """The buffer as it is before any later call."""

    async def restore(self, state: BufferStateRef) -> tuple[BufferStatus, dict[int, RolloutRef]]:
        """Hold what ``state`` holds and nothing else; also returns what waits for rewards, by prompt index."""


class ReferenceRole(Protocol):
    """A worker that is lost is started anew by itself."""

    async def start(self, model_path: str) -> None:
        """Load the model that stays frozen for the stage that begins."""

    async def logprobs(self, batch: BatchRef) -> LogprobsRef: ...

    async def memory(self) -> int: ...


class PolicyRole(Protocol):
    """All methods raise `RollBackError` where a rank is lost: the ranks are then new, and wait for `start`."""

    async def start(self, model_path: str, train: TrainConfig, algo: AlgoConfig) -> None:
        """Begin a stage: load the model with a fresh optimizer."""

    async def update(self, batch: BatchRef, reference: LogprobsRef | None) -> UpdateMetrics: ...

    async def keep(self, batch: BatchRef, reference: LogprobsRef | None, path: str) -> None:
        """Write what `update` was given to a file. Raises `CheckpointError` where it can't be written."""

    def parcels(self, receivers: Many[str]) -> AsyncIterator[ParcelRef]:
        """The weights, for engines by their names; ask for the next parcel when the last one was received."""

    async def checksums(self) -> dict[str, str]:
        """Of every weight by its name."""

    async def offload(self) -> None:
        """Give the devices' memory back until the next `update` or `parcels`."""

    async def memory(self) -> int: ...

    async def check(self) -> None:
        """Raise `RollBackError` if a rank has died."""

    async def save(self, path: str) -> None:
        """Write a Hugging Face model directory."""

    async def snapshot(self) -> PolicyStateRef:
        """The training state as it is before any later call."""

    async def restore(self, checkpoint: str) -> None:
        """Go on from the training state that a checkpoint has; after `start` with the same model.

        Raises `CheckpointError` where it is damaged, or of another model.
        """


class ArchiveRole(Protocol):
    """Moves what roles hold to a checkpoint's files and back; nobody else waits for that."""

    async def write(
        self, checkpoint: str, policy: PolicyStateRef, buffer: BufferStateRef, unfinished: Many[RolloutRef]
    ) -> tuple[FileRecord, ...]:
        """Write to the directory ``checkpoint``. Raises `CheckpointError` where something can't be written."""

    async def read(self, checkpoint: str, unfinished: Many[int]) -> tuple[BufferStateRef, dict[int, RolloutRef]]:
        """The buffer's state, and the unfinished rollouts by prompt index, of which there are ``unfinished``.

        Raises `CheckpointError` where what is there is not what was written.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Roles:
    """All that a run talks to."""

    policy: PolicyRole
    rollout: RolloutRole
    reward: RewardRole
    buffer: BufferRole
    archive: ArchiveRole
    reference: ReferenceRole | None  # only where the KL coefficient is above 0
