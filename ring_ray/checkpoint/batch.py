"""A batch in a file, with all that a step was given: kept for people to look at when a run stops over it."""

from dataclasses import dataclass
from pathlib import Path

from ring_ray.checkpoint.codec import decode, encode
from ring_ray.checkpoint.store import CheckpointError, write_file
from ring_ray.types import FloatArray, TokenBatch


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedBatch:
    batch: TokenBatch
    reference: tuple[FloatArray, ...] | None  # the reference policy's log-probs of each segment [stop - start], if any


def write_batch(path: str, saved: SavedBatch) -> None:
    """Raises `CheckpointError` where it can't be written."""
    write_file(str(Path(path).parent), Path(path).name, [encode(saved)])


def read_batch(path: str) -> SavedBatch:
    """Raises `CheckpointError` where there is no such file, or it is not what `write_batch` wrote."""
    try:
        return decode(Path(path).read_bytes(), SavedBatch)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: can't be read: {error}") from error
