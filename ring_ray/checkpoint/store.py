"""Checkpoints in a directory of any file system that fsspec knows: complete or not there, checked, kept by policy.

    CHECKPOINTS/step-00000040/
        policy-*.safetensors  rollouts.msgpack  state.json    written by many processes, in any order
        manifest.json                                         written last: every file with its size and hash

A directory with a manifest is a complete checkpoint; one without is what a crash left, and the next `begin` removes it.
Between processes a checkpoint goes by its URL.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import msgspec
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ring_ray.config import CheckpointConfig, ConfigError

MANIFEST, STATE = "manifest.json", "state.json"
DIRECTORY = re.compile(r"step-(\d{8})")

T = TypeVar("T")

_blake2b = partial(hashlib.blake2b, digest_size=32)


class CheckpointError(RuntimeError):
    """What can't be written, or can't be trusted; the message names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    name: str  # within the checkpoint's directory
    bytes: int
    blake2b: str  # of the content, 32 bytes in hexadecimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    step: int
    score: float | None  # the higher, the better; None where it was not finite
    files: tuple[FileRecord, ...]

    def record(self, name: str) -> FileRecord:
        """Raises `CheckpointError` where the checkpoint has no such file."""
        for record in self.files:
            if record.name == name:
                return record
        raise CheckpointError(f"{MANIFEST} of step {self.step} lists no {name}")


class CheckpointStore:
    """The checkpoints of one run. Only one is being written at a time.

    Every method raises `CheckpointError` where the file system fails.
    """

    def __init__(self, url: str, config: CheckpointConfig) -> None:
        """Raises `ConfigError` for a ``url`` that fsspec can't open. Nothing is written before `begin`."""
        try:
            self._files, self._root = _file_system(url)
        except CheckpointError as error:
            raise ConfigError(f"checkpoint.directory={url!r}: {error}") from error
        self._config = config

    def begin(self, step: int) -> str:
        """The URL of an empty directory to write ``step``'s files to, once leftovers without a manifest are removed."""
        complete = self.steps()
        for found in self._directories():
            if found == step or found not in complete:
                self._remove(found)
        with _trouble_as(self._url(step), "can't be made"):
            self._files.makedirs(self._path(step), exist_ok=True)
        return self._url(step)

    def commit(self, step: int, records: Iterable[FileRecord], score: float) -> None:
        """Make the checkpoint complete, then remove those that the config does not keep.

        Raises:
            CheckpointError: a file is not where the driver sees it, or the manifest can't be written.
        """
        path, records = self._path(step), tuple(records)
        for record in records:
            if not self._exists(f"{path}/{record.name}"):
                raise CheckpointError(
                    f"{self._url(step)}/{record.name}: was written, but the driver does not see it: "
                    "checkpoint.directory must be one that every node sees"
                )
        manifest = msgspec.json.encode(Manifest(step=step, score=score, files=records))
        written = write_file(self._url(step), f"{MANIFEST}.partial", [msgspec.json.format(manifest)]).name
        with _trouble_as(f"{self._url(step)}/{MANIFEST}", "can't be written"):
            self._files.mv(f"{path}/{written}", f"{path}/{MANIFEST}")
        scores = {step: self._score(step) for step in self.steps()}
        for dispensable in scores.keys() - kept(scores, self._config):
            self._remove(dispensable)

    def steps(self) -> list[int]:
        """Of the complete checkpoints, in ascending order."""
        return [step for step in self._directories() if self._exists(f"{self._path(step)}/{MANIFEST}")]

    def latest(self, before: int | None = None) -> str | None:
        """The URL of the newest complete checkpoint, of a step up to ``before`` if that is given."""
        steps = [step for step in self.steps() if before is None or step <= before]
        return self._url(steps[-1]) if steps else None

    def abandon(self, step: int) -> None:
        """Remove what was written of a checkpoint that can't be completed: it may be what fills the disk."""
        if step not in self.steps():
            self._remove(step)

    def holds(self, checkpoint: str) -> bool:
        """Whether a checkpoint, by its URL, is one of these."""
        files, path = _file_system(checkpoint)
        return type(files) is type(self._files) and path.rstrip("/").rpartition("/")[0] == self._root

    def discard(self, after: int) -> None:
        """Remove every checkpoint, complete or not, of a step later than ``after``: the run goes on from there."""
        for step in self._directories():
            if step > after:
                self._remove(step)

    def _directories(self) -> list[int]:
        """Steps of all checkpoints, complete or not, in ascending order."""
        try:
            with _trouble_as(self._files.unstrip_protocol(self._root), "can't be listed", FileNotFoundError):
                paths = self._files.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        names = (path.rstrip("/").rpartition("/")[2] for path in paths)
        return sorted(int(match[1]) for match in map(DIRECTORY.fullmatch, names) if match)

    def _score(self, step: int) -> float | None:
        """None where the manifest is damaged: such a checkpoint is no better than any other."""
        try:
            return read_manifest(self._url(step)).score
        except CheckpointError:
            return None

    def _remove(self, step: int) -> None:
        manifest = f"{self._path(step)}/{MANIFEST}"
        with _trouble_as(self._url(step), "can't be removed"):
            if self._exists(manifest):
                self._files.rm_file(manifest)  # first, so that what is half removed is not complete
            if self._exists(self._path(step)):  # an object store has no empty directories
                self._files.rm(self._path(step), recursive=True)

    def _exists(self, path: str) -> bool:
        """Unlike fsspec's own answer, not a no where the file system does not answer: what is not there is removed."""
        try:
            with _trouble_as(self._files.unstrip_protocol(path), "can't be looked for", FileNotFoundError):
                self._files.info(path)
        except FileNotFoundError:
            return False
        return True

    def _path(self, step: int) -> str:
        return f"{self._root}/step-{step:08d}"

    def _url(self, step: int) -> str:
        url: str = self._files.unstrip_protocol(self._path(step))
        return url


def kept(scores: dict[int, float | None], config: CheckpointConfig) -> set[int]:
    """Steps whose checkpoints stay, of those with ``scores``. Of two that are equally good the later one is better."""
    ranked = sorted(((score, step) for step, score in scores.items() if score is not None), reverse=True)
    last = sorted(scores)[-config.keep_last :]
    best = [step for _, step in ranked[: config.keep_best]]
    milestones = [step for step in scores if config.keep_every and step % config.keep_every == 0]
    return {*last, *best, *milestones}


def write_file(checkpoint: str, name: str, chunks: Iterable[bytes]) -> FileRecord:
    """Write ``chunks`` one after the other, to last, and say what was written.

    Raises `CheckpointError` where there is no room for it, or no permission.
    """
    files, path = _file_system(checkpoint)
    digest, size = _blake2b(), 0
    with _trouble_as(f"{checkpoint}/{name}", "can't be written"), files.open(f"{path}/{name}", "wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        with suppress(io.UnsupportedOperation):  # an object store takes nothing that it does not keep
            os.fsync(file.fileno())
    return FileRecord(name=name, bytes=size, blake2b=digest.hexdigest())


def read_file(checkpoint: str, record: FileRecord) -> bytes:
    """A file's content. Raises `CheckpointError` unless it is what was written."""
    data = _read(checkpoint, record.name)
    if len(data) != record.bytes:
        raise CheckpointError(
            f"{checkpoint}/{record.name}: has {len(data)} bytes, not the {record.bytes} of {MANIFEST}"
        )
    if _blake2b(data).hexdigest() != record.blake2b:
        raise CheckpointError(f"{checkpoint}/{record.name}: its content is not what was written: the hash differs")
    return data


def read_manifest(checkpoint: str) -> Manifest:
    """What a complete checkpoint consists of. Raises `CheckpointError` where it is damaged, or not complete."""
    return _parsed(checkpoint, MANIFEST, _read(checkpoint, MANIFEST), Manifest)


def read_json(checkpoint: str, name: str, type: type[T]) -> T:
    """A file of a complete checkpoint as a ``type``. Raises `CheckpointError` where it is none, or damaged."""
    return _parsed(checkpoint, name, read_file(checkpoint, read_manifest(checkpoint).record(name)), type)


def _parsed(checkpoint: str, name: str, data: bytes, type: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=type)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{checkpoint}/{name}: can't be understood: {error}") from error


def _read(checkpoint: str, name: str) -> bytes:
    files, path = _file_system(checkpoint)
    with _trouble_as(f"{checkpoint}/{name}", "can't be read"):
        data: bytes = files.cat_file(f"{path}/{name}")
    return data


@contextmanager
def _trouble_as(place: str, fault: str, *passed: type[Exception]) -> Iterator[None]:
    """Raise `CheckpointError` for whatever goes wrong but ``passed``: few file systems keep to OSError."""
    try:
        yield
    except passed:
        raise
    except Exception as error:
        raise CheckpointError(f"{place}: {fault}: {error}") from error


def url_of(path: str) -> str:
    """The absolute URL of a path or URL: actors work in other directories."""
    files, absolute = _file_system(path)
    url: str = files.unstrip_protocol(absolute)
    return url


def _file_system(url: str) -> tuple[AbstractFileSystem, str]:
    """That of ``url``, and its path in there. Listings are not cached: other processes write."""
    with _trouble_as(url, "no such file system"):
        files, path = url_to_fs(url, use_listings_cache=False)
    if isinstance(files, LocalFileSystem):
        path = os.path.realpath(path)  # a directory has one name only, however it is spelled
    return files, path
