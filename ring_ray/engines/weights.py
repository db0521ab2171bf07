"""How weights travel from the policy to the rollout engines: a bucket at a time, four ways.

::

    policy rank: (name, tensor), ... --> bucket, one buffer --send--> Parcel --Ray--> receive --> (name, tensor), ...

The next bucket is filled when the last one has arrived everywhere, so a transfer holds one bucket, and one parameter
that is about to go into it, on top of the weights. Tensors travel bit by bit, whatever their dtype.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes: any dtype can be read where a tensor of a bucket starts

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
