"""Weights on their way: every transport delivers every bit, in buckets that stay within their size."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Queue

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ring_ray.engines.transports import make_transport
from ring_ray.engines.weights import ALIGNMENT, Parcel, checksum, parcels

DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
CPU = torch.device("cpu")


def make_weights(sizes: list[tuple[int, int, int]]) -> dict[str, Tensor]:
    """A tensor for each (rows, columns, dtype), with random bits, NaN among them."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for index, (rows, columns, dtype) in enumerate(sizes):
        kind = DTYPES[dtype]
        if kind == torch.bool:
            weights[f"w{index}"] = torch.randint(0, 2, (rows, columns), generator=generator).bool()
            continue
        width = torch.empty((), dtype=kind).element_size()
        bits = torch.randint(0, 256, (rows * columns * width,), dtype=torch.uint8, generator=generator)
        weights[f"w{index}"] = bits.view(kind).view(rows, columns)
    return weights


def bits_equal(one: Tensor, other: Tensor) -> bool:
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return bytes(one.contiguous().untyped_storage()) == bytes(other.contiguous().untyped_storage())


WEIGHTS = make_weights([(3, 5, 0), (100, 10, 1), (1, 1, 0), (7, 1, 2), (40, 40, 0), (9, 1, 4), (30, 3, 3)])


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, len(DTYPES) - 1)), min_size=1, max_size=12
    ),
    bucket_bytes=st.integers(1, 2000),
)
def test_every_tensor_is_in_one_bucket_and_no_bucket_is_too_large(
    sizes: list[tuple[int, int, int]], bucket_bytes: int
) -> None:
    weights, transport = make_weights(sizes), make_transport("object_store")
    received: dict[str, Tensor] = {}
    for parcel in parcels(weights.items(), transport, "object_store", bucket_bytes):
        assert parcel.layout[-1].stop <= bucket_bytes or len(parcel.layout) == 1
        assert all(spec.start % ALIGNMENT == 0 for spec in parcel.layout)
        for name, tensor in transport.receive(parcel.payload, parcel.layout, CPU):
            assert name not in received
            received[name] = tensor.clone()
    assert list(received) == list(weights)
    assert all(bits_equal(received[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("bucket_bytes", [64, 4096, 1 << 20])
@pytest.mark.parametrize("name", ["object_store", "ipc", "broadcast", "disk"])
def test_two_receivers_get_the_same_bits_twice_over(name: str, bucket_bytes: int, tmp_path: Path) -> None:
    """Two receivers in threads, two syncs one after the other over the same transport."""
    sender = make_transport(name, address="127.0.0.1", directory=tmp_path / "weights")
    inboxes: list[Queue[Parcel | None]] = [Queue(), Queue()]
    done: Queue[int] = Queue()
    received: list[dict[str, Tensor]] = [{}, {}]

    def receive(index: int) -> None:
        transport = make_transport(name)
        while (parcel := inboxes[index].get()) is not None:
            for key, tensor in transport.receive(parcel.payload, parcel.layout, CPU):
                received[index][key] = tensor.clone()
            done.put(index)

    threads = [threading.Thread(target=receive, args=(index,), daemon=True) for index in range(2)]
    for thread in threads:
        thread.start()
    sender.open(["one", "other"])
    for weights in (WEIGHTS, {key: tensor.flip(0) for key, tensor in WEIGHTS.items()}):
        for parcel in parcels(weights.items(), sender, name, bucket_bytes):
            for inbox in inboxes:
                inbox.put(parcel)
            assert {done.get(timeout=60), done.get(timeout=60)} == {0, 1}
        for index in range(2):
            assert received[index].keys() == weights.keys()
            assert all(bits_equal(received[index][key], tensor) for key, tensor in weights.items())
    for inbox in inboxes:
        inbox.put(None)
    for thread in threads:
        thread.join(timeout=60)
        assert not thread.is_alive()
    assert not [*tmp_path.rglob("*.safetensors")]


def test_shared_memory_is_given_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for parcel in parcels(WEIGHTS.items(), make_transport("ipc"), "ipc", 1000):
        assert os.path.exists(parcel.payload)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_bucket_is_filled_when_the_last_has_arrived() -> None:
    """A tensor is asked for only when the bucket before it was given away, so that one gathered tensor is held."""
    asked: list[str] = []

    def weights() -> Iterator[tuple[str, Tensor]]:
        for index in range(6):
            asked.append(f"w{index}")
            yield asked[-1], torch.zeros(4)

    stream = parcels(weights(), make_transport("object_store"), "object_store", 2 * ALIGNMENT)
    next(stream)
    assert asked == ["w0", "w1", "w2"]
    next(stream)
    assert asked == ["w0", "w1", "w2", "w3", "w4"]


def test_a_rank_that_sends_nothing_goes_through_as_many_buckets() -> None:
    silent = list(parcels(WEIGHTS.items(), None, "broadcast", 1000))
    sending = list(parcels(WEIGHTS.items(), make_transport("object_store"), "object_store", 1000))
    assert len(silent) == len(sending) > 2
    assert all(parcel.layout == () for parcel in silent)


def test_a_checksum_sees_a_bit_a_dtype_and_a_shape() -> None:
    tensor = torch.arange(12, dtype=torch.float32).view(3, 4)
    flipped = tensor.clone()
    flipped.view(torch.int32)[2, 3] ^= 1
    others = [flipped, tensor.view(4, 3), tensor.view(torch.int32), tensor.bfloat16()]
    assert checksum(tensor) == checksum(tensor.clone())
    assert checksum(tensor) == checksum(tensor.t().contiguous().t())  # where it lies does not matter
    assert len({checksum(one) for one in (tensor, *others)}) == 5
