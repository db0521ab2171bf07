"""What the tests of checkpoints share: an archive that writes real files, in this process."""

from collections.abc import Sequence as Many
from typing import cast

from ring_ray.buffer import BufferState
from ring_ray.checkpoint.rollouts import read_rollouts, write_rollouts
from ring_ray.checkpoint.store import CheckpointError, FileRecord, write_file
from ring_ray.roles import BufferStateRef, PolicyStateRef, RolloutRef
from ring_ray.types import Rollout


class LocalArchive:
    """The real files, written in process; the fake policy's state is text. Fails at the steps in ``full_at``."""

    def __init__(self, full_at: Many[int] = ()) -> None:
        self._full_at = {f"step-{step:08d}" for step in full_at}

    async def write(
        self, checkpoint: str, policy: PolicyStateRef, buffer: BufferStateRef, unfinished: Many[RolloutRef]
    ) -> tuple[FileRecord, ...]:
        if checkpoint.rpartition("/")[2] in self._full_at:
            raise CheckpointError(f"{checkpoint}/policy: can't be written: no space left on device")
        rollouts = cast("Many[Rollout]", unfinished)
        return (
            write_file(checkpoint, "policy", [str(policy).encode()]),
            write_rollouts(checkpoint, cast("BufferState", buffer), rollouts),
        )

    async def read(self, checkpoint: str, unfinished: Many[int]) -> tuple[BufferStateRef, dict[int, RolloutRef]]:
        saved = read_rollouts(checkpoint)
        return BufferStateRef(saved.buffer), dict(zip(unfinished, map(RolloutRef, saved.unfinished), strict=True))
