"""The file of a checkpoint that holds every response: in the buffer, and unfinished."""

from collections.abc import Sequence as Many
from dataclasses import dataclass

from ring_ray.buffer import BufferState
from ring_ray.checkpoint.codec import decode, encode
from ring_ray.checkpoint.store import CheckpointError, FileRecord, read_file, read_manifest, write_file
from ring_ray.types import Rollout

NAME = "rollouts.msgpack"


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedRollouts:
    buffer: BufferState
    unfinished: tuple[Rollout, ...]  # in the order of the stream's state


def write_rollouts(checkpoint: str, buffer: BufferState, unfinished: Many[Rollout]) -> FileRecord:
    """Raises `CheckpointError` where it can't be written."""
    return write_file(checkpoint, NAME, [encode(SavedRollouts(buffer=buffer, unfinished=tuple(unfinished)))])


def read_rollouts(checkpoint: str) -> SavedRollouts:
    """Raises `CheckpointError` where the checkpoint is not complete, or this is not what was written."""
    data = read_file(checkpoint, read_manifest(checkpoint).record(NAME))
    try:
        return decode(data, SavedRollouts)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint}/{NAME}: {error}") from error
