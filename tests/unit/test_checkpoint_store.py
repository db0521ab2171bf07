"""Checkpoints are complete or not there, whatever happens while they are written, and damage is refused by name."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from errno import ENOSPC
from itertools import count, product
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st

from ring_ray.checkpoint import tensors as tensor_files
from ring_ray.checkpoint.store import (
    MANIFEST,
    CheckpointError,
    CheckpointStore,
    FileRecord,
    Manifest,
    read_file,
    read_manifest,
    write_file,
)
from ring_ray.checkpoint.tensors import read_tensors, write_tensors
from ring_ray.config import CheckpointConfig, ConfigError

CONTENT = {"policy-00000.safetensors": [b"weights", b"", b" and moments"], "state.json": [b"{}"]}
CONFIG = CheckpointConfig(every=1)


@pytest.fixture(params=["memory", "disk"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Of checkpoints, none so far."""
    yield "memory://checkpoints" if request.param == "memory" else str(tmp_path / "checkpoints")
    forget_memory()


def forget_memory() -> None:
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]


def save(store: CheckpointStore, step: int, score: float = 0.0) -> str:
    checkpoint = store.begin(step)
    records = [write_file(checkpoint, name, chunks) for name, chunks in CONTENT.items()]
    store.commit(step, records, score)
    return checkpoint


def read(checkpoint: str) -> dict[str, bytes]:
    return {record.name: read_file(checkpoint, record) for record in read_manifest(checkpoint).files}


def listed(url: str) -> list[str]:
    files, path = fsspec.url_to_fs(url)
    return sorted(found.removeprefix(path).strip("/") for found in files.find(path))


def test_a_checkpoint_is_read_as_it_was_written(url: str) -> None:
    store = CheckpointStore(url, CONFIG)
    assert (store.latest(), store.steps()) == (None, [])
    checkpoint = save(store, 40, score=0.5)
    manifest = read_manifest(checkpoint)
    assert (manifest.step, manifest.score) == (40, 0.5)
    assert read(checkpoint) == {name: b"".join(chunks) for name, chunks in CONTENT.items()}
    assert listed(url) == sorted(f"step-00000040/{name}" for name in (*CONTENT, MANIFEST))
    again = CheckpointStore(url, CONFIG)
    assert (again.latest(), again.steps()) == (checkpoint, [40])


def test_a_relative_directory_is_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint = CheckpointStore("checkpoints", CONFIG).begin(1)
    monkeypatch.chdir("/")
    record = write_file(checkpoint, "state.json", [b"{}"])
    assert read_file(checkpoint, record) == (tmp_path / "checkpoints/step-00000001/state.json").read_bytes() == b"{}"


def test_begin_clears_what_is_half_written_and_nothing_else(url: str) -> None:
    store = CheckpointStore(url, replace(CONFIG, keep_last=9))
    kept = [save(store, step) for step in (1, 2)]
    for step in (3, 4):
        write_file(store.begin(step), "state.json", [b"old"])
    assert store.latest() == kept[-1]
    write_file(store.begin(4), "rollouts.msgpack", [b"new"])
    whole = [f"step-0000000{step}/{name}" for step in (1, 2) for name in (*CONTENT, MANIFEST)]
    assert listed(url) == sorted([*whole, "step-00000004/rollouts.msgpack"])


def test_an_abandoned_course_is_discarded(url: str) -> None:
    store = CheckpointStore(url, replace(CONFIG, keep_last=9))
    first, *_ = (save(store, step) for step in (1, 2, 3))
    store.begin(4)
    store.discard(after=1)
    assert {name.partition("/")[0] for name in listed(url)} == {"step-00000001"}
    assert store.latest() == first
    store.discard(after=-1)
    assert listed(url) == []


def test_a_file_that_the_driver_does_not_see_is_named(url: str) -> None:
    store = CheckpointStore(url, CONFIG)
    store.begin(1)
    elsewhere = FileRecord(name="policy-00001.safetensors", bytes=1, blake2b="00")
    with pytest.raises(CheckpointError, match=r"step-00000001/policy-00001\.safetensors.*every node sees"):
        store.commit(1, [elsewhere], 0.0)
    assert store.latest() is None


@pytest.mark.parametrize("url", ["nosuch://bucket/checkpoints", "hdfs3://"])
def test_a_file_system_that_is_not_there_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigError, match=f"checkpoint.directory='{url}'"):
        CheckpointStore(url, CONFIG)


# Retention


def expected(scores: dict[int, float], config: CheckpointConfig) -> list[int]:
    """Said of each step alone."""

    def stays(step: int) -> bool:
        newer = [other for other in scores if other > step]
        better = [other for other in scores if (scores[other], other) > (scores[step], step)]
        is_best = not math.isnan(scores[step]) and len(better) < config.keep_best
        return len(newer) < config.keep_last or is_best or (config.keep_every > 0 and step % config.keep_every == 0)

    return [step for step in scores if stays(step)]


@pytest.mark.parametrize(("last", "best", "every"), [*product((1, 2, 3), (0, 1, 3), (0, 2, 3))])
@settings(max_examples=30)
@given(scores=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 1.0, math.nan]), min_size=1, max_size=7))
def test_retention(last: int, best: int, every: int, scores: list[float]) -> None:
    forget_memory()
    config = CheckpointConfig(every=1, keep_last=last, keep_best=best, keep_every=every)
    store = CheckpointStore("memory://retention", config)
    so_far: dict[int, float] = {}
    for step, score in enumerate(scores, start=1):
        so_far[step] = score
        save(store, step, score)
        assert store.steps() == expected(so_far, config)
    assert len(listed("memory://retention")) == len(store.steps()) * (len(CONTENT) + 1)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("checkpoint.keep_last", {"keep_last": 0}),
        ("checkpoint.every", {"every": -1}),
        ("checkpoint.keep_best", {"keep_best": -1}),
        ("checkpoint.keep_every", {"every": 20, "keep_every": 50}),
    ],
)
def test_a_policy_that_can_not_be_is_refused(key: str, values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=key):
        CheckpointConfig(**values)


# Crashes


class KilledError(BaseException):
    """Nothing in the store can catch it, as nothing can catch a kill."""


class Fuse:
    """Lets ``left`` bytes and operations pass, then none at all."""

    def __init__(self, left: int, failure: BaseException) -> None:
        self.left, self.failure = left, failure

    def guard(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for owner, names in ((MemoryFileSystem, ("makedirs", "cp_file", "rm_file")), (MemoryFile, ("write",))):
            for name in names:
                monkeypatch.setattr(owner, name, self.guarded(getattr(owner, name)))

    def guarded(self, operation: Callable[..., object]) -> Callable[..., object]:
        def call(subject: object, *args: object, **options: object) -> object:
            data = args[0] if isinstance(subject, MemoryFile) else b"1"
            assert isinstance(data, bytes)
            allowed, self.left = min(len(data), self.left), max(0, self.left - len(data))
            if allowed == len(data):
                return operation(subject, *args, **options)
            if isinstance(subject, MemoryFile):
                operation(subject, data[:allowed])
            raise self.failure

        return call


@pytest.mark.parametrize("step", [30, 20], ids=["a new step", "a step again"])
def test_a_kill_at_any_byte_leaves_a_whole_checkpoint(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(CONFIG, keep_last=1, keep_best=0)
    before, after = {30: ([10, 20], [30]), 20: ([10, 20], [20])}[step]
    for survived in count():
        forget_memory()
        store = CheckpointStore("memory://crash", replace(config, keep_last=9))
        for whole in before:
            save(store, whole)
        write_file(store.begin(25), "state.json", [b"left over"])
        store = CheckpointStore("memory://crash", config)
        with monkeypatch.context() as patch:
            Fuse(survived, KilledError()).guard(patch)
            try:
                save(store, step)
                break
            except KilledError:
                pass
        resumed = CheckpointStore("memory://crash", config)
        latest = resumed.latest()
        assert latest is not None
        assert read_manifest(latest).step in {10, 20, step}
        assert step == 20 or read_manifest(latest).step >= 20
        assert read(latest).keys() == CONTENT.keys()
        save(resumed, step)
        assert resumed.steps() == after
        assert {name.partition("/")[0] for name in listed("memory://crash")} == {f"step-{step:08d}"}
    assert survived > 300  # bytes of the manifest alone: the loop did not end at once
    forget_memory()


def test_a_full_disk_is_an_error_that_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"/dev/full: can't be written: .*No space left on device"):
        write_file("/dev", "full", [b"weights"])
    store = CheckpointStore("memory://full", CONFIG)
    checkpoint = save(store, 1)
    with monkeypatch.context() as patch:
        Fuse(10, OSError(ENOSPC, "No space left on device")).guard(patch)
        with pytest.raises(CheckpointError, match=r"step-00000002/policy-00000\.safetensors: can't be written"):
            save(store, 2)
    assert store.latest() == checkpoint
    forget_memory()


def test_what_is_written_has_reached_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    assert synced == [write_file(str(tmp_path), "state.json", [b"{", b"}"]).bytes] == [2]


# Damage


@given(st.data())
def test_a_changed_bit_or_another_length_is_refused_by_name(data: st.DataObject) -> None:
    forget_memory()
    checkpoint = save(CheckpointStore("memory://damage", CONFIG), 1)
    record = data.draw(st.sampled_from(read_manifest(checkpoint).files))
    file = MemoryFileSystem.store[f"/damage/step-00000001/{record.name}"]
    content = bytearray(file.getvalue())
    if data.draw(st.booleans(), label="flip"):
        fault = "the hash differs"
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        content = (
            content[: data.draw(st.integers(0, len(content) - 1))] if data.draw(st.booleans()) else content + b"\0"
        )
        fault = f"has {len(content)} bytes, not the {record.bytes}"
    fsspec.filesystem("memory").pipe_file(file.path, bytes(content))
    with pytest.raises(CheckpointError, match=rf"step-00000001/{record.name}: .*{fault}"):
        read_file(checkpoint, record)


def test_a_manifest_that_is_cut_anywhere_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint = save(CheckpointStore(str(tmp_path), CONFIG), 1)
    manifest = tmp_path / "step-00000001" / MANIFEST
    content = manifest.read_bytes()
    for length in range(len(content)):
        manifest.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match=rf"step-00000001/{MANIFEST}: can't be understood"):
            read_manifest(checkpoint)


def test_what_is_not_there_is_named(url: str) -> None:
    store = CheckpointStore(url, CONFIG)
    with pytest.raises(CheckpointError, match=rf"step-00000001/{MANIFEST}: can't be read"):
        read_manifest(store.begin(1))
    checkpoint = save(store, 1)
    with pytest.raises(CheckpointError, match=r"step 1 lists no rollouts\.msgpack"):
        read_manifest(checkpoint).record("rollouts.msgpack")
    with pytest.raises(CheckpointError, match=r"step-00000001/gone: can't be read"):
        read_file(checkpoint, FileRecord(name="gone", bytes=0, blake2b=""))


class RemoteError(Exception):
    """As libraries of object stores raise it: no OSError."""


@pytest.mark.parametrize("operation", ["ls", "info", "makedirs", "rm", "rm_file", "mv", "cat_file", "_open"])
def test_trouble_of_any_kind_is_an_error_that_names_the_place_and_loses_nothing(
    operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RemoteError("no such bucket")

    forget_memory()
    store = CheckpointStore("memory://remote", replace(CONFIG, keep_last=9))
    whole = save(store, 1)
    store.begin(2)
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, operation, fail)
        with pytest.raises(CheckpointError, match=r"memory://.*remote.*: can't be .*: no such bucket"):
            read(save(store, 3))
    assert read(whole).keys() == CONTENT.keys()
    assert 1 in store.steps()
    forget_memory()


@given(st.data())
def test_a_manifest_that_is_damaged_anywhere_is_read_or_refused_by_name(data: st.DataObject) -> None:
    forget_memory()
    checkpoint = save(CheckpointStore("memory://damage", CONFIG), 1)
    file = MemoryFileSystem.store[f"/damage/step-00000001/{MANIFEST}"]
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content) - 1))
        content[start : start + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=3))
    fsspec.filesystem("memory").pipe_file(file.path, bytes(content))
    try:
        found = read(checkpoint)
    except CheckpointError as error:
        refusal = str(error)
    else:
        assert {*found.items()} <= {(name, b"".join(chunks)) for name, chunks in CONTENT.items()}
        return
    assert "/damage/step-00000001/" in refusal


@pytest.mark.parametrize(
    "content", [b"[" * 10**5, b'{"step":' * 10**5, b"\xff", b'{"step": "\xff"}', b"", b"null", b"1e999"]
)
def test_what_is_no_manifest_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{tmp_path}/{MANIFEST}: can't be understood"):
        read_manifest(str(tmp_path))


# Tensors


def test_tensors_are_split_over_files_and_read_as_they_were(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_files, "FILE_BYTES", 40)
    written = {
        "a": torch.randn(2, 3),
        "a#exp_avg": torch.full((2, 3), math.nan),
        "b": torch.randn(4, 5),  # alone larger than a file is to be
        "c": torch.randn(3, dtype=torch.bfloat16),
        "step": torch.tensor(7),
    }
    store = CheckpointStore(url, CONFIG)
    checkpoint = store.begin(1)
    records = write_tensors(checkpoint, "policy-00000", written)
    assert [record.name for record in records] == [f"policy-00000-{index:05d}.safetensors" for index in range(4)]
    assert write_tensors(checkpoint, "policy-00001", {}) == []
    other = write_tensors(checkpoint, "policy-00002", {"d": torch.ones(1)})
    store.commit(1, [*records, *other, write_file(checkpoint, "state.json", [b"{}"])], 0.0)
    manifest = read_manifest(checkpoint)
    for prefix, tensors in (("policy-00000", written), ("policy", written | {"d": torch.ones(1)})):
        found = dict(read_tensors(checkpoint, manifest, prefix))
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True)


def test_tensors_come_in_an_order_that_all_ranks_share(tmp_path: Path) -> None:
    names = [f"layers.{layer}" for layer in range(10)]
    written = {name: torch.zeros(1) for name in reversed(names)}
    manifest = Manifest(step=1, score=None, files=tuple(write_tensors(str(tmp_path), "policy", written)))
    assert [name for name, _ in read_tensors(str(tmp_path), manifest, "policy")] == names


def test_a_damaged_file_of_tensors_yields_none_of_them(tmp_path: Path) -> None:
    record = write_tensors(str(tmp_path), "policy", {"a": torch.zeros(3)})[0]
    (tmp_path / record.name).write_bytes((tmp_path / record.name).read_bytes()[:-1] + b"\1")
    manifest = Manifest(step=1, score=None, files=(record,))
    with pytest.raises(CheckpointError, match=record.name):
        next(read_tensors(str(tmp_path), manifest, "policy"))
