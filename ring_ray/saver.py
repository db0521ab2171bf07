"""Checkpoints of a run, taken and written while it goes on."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import msgspec

from ring_ray.checkpoint.store import STATE, CheckpointError, CheckpointStore, write_file
from ring_ray.config import RunConfig
from ring_ray.evaluation import Accuracy
from ring_ray.roles import ArchiveRole, PolicyRole, PolicyStateRef
from ring_ray.stream import StreamSnapshot, StreamState


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOrigin:
    """What came before the steps of a run."""

    model_path: str  # what reinforcement learning began from: the reference, and every config and tokenizer
    accuracy: dict[str, Accuracy]  # by stage, of those before it
    wandb_id: str  # of the run in W&B
    branched_from: str | None = None  # the URL of the checkpoint that the run was told to go on from, if any


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """state.json: all of a checkpoint but tokens and tensors."""

    step: int  # optimizer steps taken; also the policy's version
    origin: RunOrigin
    stream: StreamState
    config: RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """The state after a step."""

    step: int
    policy: PolicyStateRef
    stream: StreamSnapshot
    score: float


class Saver:
    """Saves a run every ``checkpoint.every`` steps: its state is taken at once, and written while the run goes on."""

    def __init__(
        self,
        config: RunConfig,
        *,
        store: CheckpointStore,
        archive: ArchiveRole,
        policy: PolicyRole,
        origin: RunOrigin,
        say: Callable[[str], None],
    ) -> None:
        self.failures = 0
        self._config, self._store, self._archive, self._policy = config, store, archive, policy
        self._origin, self._say = origin, say
        self._taken: Taken | None = None
        self._writing: asyncio.Task[None] | None = None

    def due(self, step: int) -> bool:
        """Whether the state after ``step`` is to be saved: 0 is before the first, and the last is saved as well."""
        every = self._config.checkpoint.every
        return every > 0 and (step % every == 0 or step == self._config.train.steps)

    async def take(self, step: int, stream: StreamSnapshot, score: float) -> None:
        """Take the policy's state along with ``stream``, for `write`. Waits for the last checkpoint to be written."""
        await self.finish()
        self._taken = Taken(step=step, policy=await self._policy.snapshot(), stream=stream, score=score)

    def write(self) -> None:
        """Begin to write what was taken, if anything, in the background.

        What can't be written, as on a full disk, is counted and told, and the run goes on.
        """
        if self._taken is not None:
            self._writing = asyncio.create_task(self._write(self._taken))
            self._taken = None

    async def finish(self) -> None:
        """Wait until what was to be written is."""
        if self._writing is not None:
            await self._writing

    async def _write(self, taken: Taken) -> None:
        step, stream = taken.step, taken.stream
        start = time.perf_counter()
        try:
            checkpoint = await asyncio.to_thread(self._store.begin, step)
            records = await self._archive.write(
                checkpoint, taken.policy, stream.buffer, list(stream.unfinished.values())
            )
            state = RunState(step=step, origin=self._origin, stream=stream.state, config=self._config)
            encoded = msgspec.json.format(msgspec.json.encode(state))
            record = await asyncio.to_thread(write_file, checkpoint, STATE, [encoded])
            await asyncio.to_thread(self._store.commit, step, (*records, record), taken.score)
        except CheckpointError as error:
            self.failures += 1
            self._say(f"checkpoint: step {step} could not be saved: {error}")
            with suppress(CheckpointError):  # the disk may be gone
                await asyncio.to_thread(self._store.abandon, step)
            return
        size = sum(file.bytes for file in (*records, record))
        self._say(f"checkpoint: step {step}, {size / 2**20:,.1f} MiB in {time.perf_counter() - start:.1f} s")
