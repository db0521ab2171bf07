"""The ways in which a bucket of weights travels from the policy to the rollout engines: `weights.Transport` by name."""

import mmap
import os
import pickle
from collections.abc import Callable, Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from ring_ray.engines.broadcast import Broadcast
from ring_ray.engines.weights import Layout, NamedTensors, Transport, unpack


class ObjectStore:
    """The parcel is the bucket: Ray's object store takes it to any node, and into each engine's process a copy."""

    def open(self, receivers: Sequence[str]) -> None:
        """There is nothing to forget."""

    def send(self, bucket: Tensor, layout: Layout) -> npt.NDArray[np.uint8]:
        return bucket.cpu().numpy()

    def receive(self, payload: npt.NDArray[np.uint8], layout: Layout, device: torch.device) -> NamedTensors:
        return unpack(torch.from_numpy(payload), layout)

    def flush(self) -> None:
        """The object store has its own copy."""


class SharedMemory:
    """The parcel is a handle to the bucket in the sender's memory: CUDA IPC on a GPU, an unnamed file on a CPU.

    For processes of one GPU or, on CPUs, of one host and user.
    """

    def __init__(self) -> None:
        self._file: int | None = None

    def open(self, receivers: Sequence[str]) -> None:
        self.flush()

    def send(self, bucket: Tensor, layout: Layout) -> bytes | str:
        if bucket.is_cuda:
            torch.cuda.synchronize()  # a reader has no part in this process's stream
            return bytes(ForkingPickler.dumps(bucket))
        self._file = os.memfd_create("weights")
        with os.fdopen(os.dup(self._file), "wb") as file:
            file.write(bucket.numpy().data)
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def receive(self, payload: bytes | str, layout: Layout, device: torch.device) -> NamedTensors:
        if isinstance(payload, bytes):
            yield from unpack(pickle.loads(payload), layout)
            return
        with open(payload, "r+b") as file:
            memory = mmap.mmap(file.fileno(), 0)  # the tensors hold it
        yield from unpack(torch.frombuffer(memory, dtype=torch.uint8), layout)

    def flush(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


class Disk:
    """The parcel names a safetensors file in a directory that every node sees; it is deleted when all have read it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._file: Path | None = None

    def open(self, receivers: Sequence[str]) -> None:
        self.flush()

    def send(self, bucket: Tensor, layout: Layout) -> str:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._file = self._directory / f"bucket-{os.getpid()}.safetensors"
        safetensors.torch.save_file(dict(unpack(bucket, layout)), self._file)
        return str(self._file)

    def receive(self, payload: str, layout: Layout, device: torch.device) -> NamedTensors:
        return safetensors.torch.load_file(payload).items()

    def flush(self) -> None:
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            self._file = None


def make_transport(name: str, *, address: str = "", processes: int = 1, directory: Path = Path()) -> Transport:
    """By its name in `SyncConfig.transport`; a receiver needs no more than that."""
    makers: dict[str, Callable[[], Transport]] = {
        "object_store": ObjectStore,
        "ipc": SharedMemory,
        "broadcast": lambda: Broadcast(address, processes),
        "disk": lambda: Disk(directory),
    }
    return makers[name]()
