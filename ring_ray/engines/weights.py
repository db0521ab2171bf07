"""How weights travel from the policy to the rollout engines: a bucket at a time, four ways.

::

    policy rank: (name, tensor), ... --> bucket, one buffer --send--> Parcel --Ray--> receive --> (name, tensor), ...

The next bucket is filled when the last one has arrived everywhere, so a transfer holds one bucket, and one parameter
that is about to go into it, on top of the weights. Tensors travel bit by bit, whatever their dtype.
"""

import hashlib
import mmap
import os
import pickle
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor
from torch._C._distributed_c10d import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore

ALIGNMENT = 16  # bytes: any dtype can be read where a tensor of a bucket starts
TIMEOUT = timedelta(minutes=5)  # for the engines to join a broadcast, and for one bucket to arrive

NamedTensors: TypeAlias = Iterable[tuple[str, Tensor]]


class TensorSpec(NamedTuple):
    """Where a tensor lies in its bucket."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # byte
    stop: int


Layout: TypeAlias = tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One bucket, or what it takes to get at it: small for all transports but the object store."""

    transport: str
    layout: Layout
    payload: Any  # the transport's own


class Transport(Protocol):
    """One of the ways. A rank of the policy sends; every process of every rollout engine receives."""

    def open(self, receivers: Sequence[str]) -> None:
        """Sender: forget what is left of an update that was given up; the next is for ``receivers``, by their names."""

    def send(self, bucket: Tensor, layout: Layout) -> Any:
        """Send the bytes [nbytes] of a bucket and return what the receivers need to get them.

        The bucket stays as it is until the next `send` or `flush`.
        """

    def receive(self, payload: Any, layout: Layout, device: torch.device) -> NamedTensors:
        """The tensors of a bucket, which may be gone once the sender is told that they arrived.

        Where they are on a GPU, synchronize before that. Not all are on ``device``.
        """

    def flush(self) -> None:
        """Sender: return when the last bucket has left, and keep nothing of it."""


def parcels(weights: NamedTensors, transport: Transport | None, name: str, bucket_bytes: int) -> Iterator[Parcel]:
    """Send ``weights``. Ask for the next parcel when the last one has been received everywhere.

    A tensor that is larger than ``bucket_bytes`` goes alone. Without a ``transport``, for a rank that helps to gather
    the weights but sends none, the parcels are empty and equally many.
    """
    layout: list[TensorSpec] = []
    buffer: Tensor | None = None

    def parcel() -> Parcel:
        if transport is None or buffer is None:
            return Parcel(transport=name, layout=(), payload=None)
        payload = transport.send(buffer[: layout[-1].stop], tuple(layout))
        return Parcel(transport=name, layout=tuple(layout), payload=payload)

    for tensor_name, tensor in weights:
        start = -(-layout[-1].stop // ALIGNMENT) * ALIGNMENT if layout else 0
        if layout and start + tensor.nbytes > bucket_bytes:
            yield parcel()
            start, layout = 0, []
            if transport is not None:
                transport.flush()  # the buffer is about to be written again
        layout.append(TensorSpec(tensor_name, tensor.dtype, tuple(tensor.shape), start, start + tensor.nbytes))
        if transport is None:
            continue
        if buffer is None or layout[-1].stop > len(buffer):
            buffer = None  # before the larger one is made
            buffer = torch.empty(max(bucket_bytes, layout[-1].stop), dtype=torch.uint8, device=tensor.device)
        buffer[start : layout[-1].stop].copy_(as_bytes(tensor))
    yield parcel()
    if transport is not None:
        transport.flush()


def unpack(bucket: Tensor, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Views of the tensors in a bucket [nbytes]."""
    for spec in layout:
        yield spec.name, bucket[spec.start : spec.stop].view(spec.dtype).view(spec.shape)


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes [nbytes] of a tensor in row-major order; a view where they lie like that."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def checksum(tensor: Tensor) -> str:
    """Of dtype, shape and every bit."""
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}".encode(), digest_size=8)
    digest.update(as_bytes(tensor).cpu().numpy().data)
    return digest.hexdigest()


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


class BroadcastGroup:
    """Processes that broadcast, joined at the first bucket; outside of the registry of torch.distributed."""

    def __init__(self, store: TCPStore, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._group: Any = None  # torch's stub of a process group lacks its collectives

    def broadcast(self, bucket: Tensor) -> None:
        """From rank 0, into ``bucket`` of the others."""
        if self._group is None:
            self._group = self._join(bucket.device)
        options = BroadcastOptions()
        options.rootRank = 0
        self._group.broadcast([bucket], options).wait()
        if bucket.is_cuda:
            torch.cuda.synchronize()

    def _join(self, device: torch.device) -> Any:
        store = PrefixStore("weights", self._store)
        if device.type == "cpu":
            return ProcessGroupGloo(store, self._rank, self._world_size, TIMEOUT)
        from torch._C._distributed_c10d import ProcessGroupNCCL  # which a build for CPUs lacks

        nccl: Any = ProcessGroupNCCL  # torch's stub knows only one of its constructors
        return nccl(store, self._rank, self._world_size, TIMEOUT)


class Broadcast:
    """The parcel is empty; the bucket goes from the sender to all receivers at once, by NCCL or between CPUs by gloo.

    They meet at a port that the sender's host gives out, and anew where the receivers are others.
    """

    def __init__(self, address: str, processes: int) -> None:
        """``address`` of this host; each receiver has as many ``processes``."""
        self._address, self._processes = address, processes
        self._receivers: tuple[str, ...] = ()  # sender: those of the group
        self._meeting: tuple[str, int, int] | None = None  # address, port and size of the group
        self._group: BroadcastGroup | None = None
        # Joining and sending block until every receiver takes part, and none does before it has the parcel.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="broadcast")
        self._sent: Future[None] | None = None

    def open(self, receivers: Sequence[str]) -> None:
        if self._group is not None and self._receivers == tuple(receivers) and self._sent is None:
            return
        # It may wait for a receiver that is gone, until the group's time limit.
        self._thread.shutdown(wait=False)
        self._thread, self._sent = ThreadPoolExecutor(1, thread_name_prefix="broadcast"), None
        store, world_size = listening_store(self._address), 1 + len(receivers) * self._processes
        self._receivers, self._group = tuple(receivers), BroadcastGroup(store, 0, world_size)
        self._meeting = self._address, store.port, world_size

    def send(self, bucket: Tensor, layout: Layout) -> tuple[str, int, int]:
        assert self._group is not None  # it is open
        assert self._meeting is not None
        if bucket.is_cuda:
            torch.cuda.synchronize()  # the thread has a stream of its own
        self._sent = self._thread.submit(self._group.broadcast, bucket)
        return self._meeting

    def receive(self, payload: tuple[str, int, int], layout: Layout, device: torch.device) -> NamedTensors:
        bucket = torch.empty(layout[-1].stop, dtype=torch.uint8, device=device)
        if self._group is None or payload != self._meeting:  # the first bucket, or the first of another group
            self._meeting = payload
            address, port, world_size = payload
            store = TCPStore(address, port, is_master=False, timeout=TIMEOUT)
            self._group = BroadcastGroup(store, store.add("receivers", 1), world_size)
        self._group.broadcast(bucket)
        return unpack(bucket, layout)

    def flush(self) -> None:
        if self._sent is not None:
            self._sent.result()
            self._sent = None


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


def listening_store(address: str, port: int = 0, world_size: int | None = None) -> TCPStore:
    """A store that others connect to at ``address``, at a free port for 0; torch's own listens on every interface."""
    listener = socket.create_server((address, port))
    port = listener.getsockname()[1]
    return TCPStore(
        address,
        port,
        world_size,
        is_master=True,
        wait_for_workers=False,
        timeout=TIMEOUT,
        master_listen_fd=listener.detach(),
    )


def make_transport(name: str, *, address: str = "", processes: int = 1, directory: Path = Path()) -> Transport:
    """By its name in `SyncConfig.transport`; a receiver needs no more than that."""
    makers: dict[str, Callable[[], Transport]] = {
        "object_store": ObjectStore,
        "ipc": SharedMemory,
        "broadcast": lambda: Broadcast(address, processes),
        "disk": lambda: Disk(directory),
    }
    return makers[name]()
