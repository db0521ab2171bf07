"""Weights that go to all rollout engines at once, through a process group that is made for it."""

import socket
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore

from ring_ray.engines.weights import Layout, NamedTensors, unpack

TIMEOUT = timedelta(minutes=5)  # for the engines to join a broadcast, and for one bucket to arrive


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
