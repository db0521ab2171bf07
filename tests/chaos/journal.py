"""What the driver asked and was answered, one event a line: evidence that does not rest on the buffer's own ledger.

A response goes by the digest of its tokens, their log-probs and versions, and a prompt by its number.
"""

import hashlib
import os
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np

from ring_ray.types import Sequence

FILE = "journal.jsonl"  # in the run's directory


class Response(msgspec.Struct, frozen=True):
    """What an engine returned, finished or not."""

    digest: str
    versions: tuple[tuple[int, int], ...]  # runs of tokens that one policy version sampled: the version, how many
    finished: bool

    @staticmethod
    def of(sequence: Sequence) -> "Response":
        versions, counts = np.unique(sequence.versions, return_counts=True)  # they never decrease
        runs = tuple(zip(versions.tolist(), counts.tolist(), strict=True))
        return Response(digest=digest(sequence, len(sequence)), versions=runs, finished=sequence.finished)

    def __len__(self) -> int:
        return sum(tokens for _, tokens in self.versions)


class Span(msgspec.Struct, frozen=True):
    """Response tokens [start, stop) that were trained."""

    prompt: int
    digest: str  # of the whole response
    start: int
    stop: int


class Begun(msgspec.Struct, frozen=True, tag=True):
    """The policy was loaded for reinforcement learning: anew, unless it is restored next."""


class PolicyRestored(msgspec.Struct, frozen=True, tag=True):
    step: int


class BufferRestored(msgspec.Struct, frozen=True, tag=True):
    step: int


class Turn(msgspec.Struct, frozen=True, tag=True):
    """An engine went on with a prompt's responses."""

    prompt: int
    begins: tuple[str, ...]  # digests of what is returned, up to where each response had been before
    responses: tuple[Response, ...]


class Added(msgspec.Struct, frozen=True, tag=True):
    """A prompt's finished responses went to the buffer."""

    prompt: int
    digests: tuple[str, ...]


class Scored(msgspec.Struct, frozen=True, tag=True):
    prompt: int
    reached: bool  # every response was judged
    equal: bool  # all earned the same


class Trained(msgspec.Struct, frozen=True, tag=True):
    """The policy took an optimizer step."""

    step: int
    spans: tuple[Span, ...]


class Settled(msgspec.Struct, frozen=True, tag=True):
    """Generation is paused and the buffer is told of the policy's new version: the ledger of ``step`` is of now."""

    step: int


class Saved(msgspec.Struct, frozen=True, tag=True):
    """The buffer's state was taken for a checkpoint."""


Event: TypeAlias = Begun | PolicyRestored | BufferRestored | Turn | Added | Scored | Trained | Settled | Saved


def digest(sequence: Sequence, tokens: int) -> str:
    """Of the first ``tokens`` of a response."""
    found = hashlib.blake2b(digest_size=8)
    for array in (sequence.response_ids, sequence.logprobs, sequence.versions):
        found.update(array[:tokens].tobytes())
    return found.hexdigest()


NOTHING = hashlib.blake2b(digest_size=8).hexdigest()  # the digest of a response without a token


class Journal:
    """Appends events to a file, each of which outlives the process at once."""

    def __init__(self, path: Path) -> None:
        """Goes on with the file after its last whole line: the process before this one may have been killed."""
        whole = path.read_bytes().rpartition(b"\n") if path.exists() else (b"", b"", b"")
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.truncate(self._file, len(whole[0] + whole[1]))

    def write(self, event: Event) -> None:
        os.write(self._file, msgspec.json.encode(event) + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read_journal(path: Path) -> list[Event]:
    """The events of all whole lines."""
    lines = path.read_bytes().splitlines(keepends=True)
    return [msgspec.json.decode(line, type=Event) for line in lines if line.endswith(b"\n")]
