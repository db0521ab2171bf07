"""Tensors in the files of a checkpoint, a bounded number of bytes in memory at a time."""

from collections.abc import Iterator, Mapping

import safetensors.torch
from torch import Tensor

from ring_ray.checkpoint.store import FileRecord, Manifest, read_file, write_file

POLICY = "policy"  # what the names of the policy's files begin with
FILE_BYTES = 1 << 30  # of one file, and so of memory on top of the tensors; a larger tensor has a file to itself


def write_tensors(checkpoint: str, prefix: str, tensors: Mapping[str, Tensor]) -> list[FileRecord]:
    """Write tensors on the host to files ``prefix``-00000.safetensors and so on; for errors see `write_file`."""
    return [
        write_file(checkpoint, f"{prefix}-{index:05d}.safetensors", [safetensors.torch.save(part)])
        for index, part in enumerate(_parts(tensors))
    ]


def read_tensors(checkpoint: str, manifest: Manifest, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors of the files whose names begin with ``prefix``, to every reader in the same order.

    For errors see `read_file`.
    """
    for record in manifest.files:
        if record.name.startswith(f"{prefix}-"):
            tensors = safetensors.torch.load(read_file(checkpoint, record))  # in another order each time
            yield from sorted(tensors.items())


def _parts(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    part, held = dict[str, Tensor](), 0
    for name, tensor in tensors.items():
        if part and held + tensor.nbytes > FILE_BYTES:
            yield part
            part, held = {}, 0
        part[name] = tensor
        held += tensor.nbytes
    if part:
        yield part
