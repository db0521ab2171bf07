"""Lend a device's memory to somebody else: what was in it waits in the host's."""

import dataclasses
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

PIECE_BYTES = 2**28  # of page-locked memory, which torch rounds up to a power of two


class HostMemory:
    """Takes the memory of tensors away, and gives it back to them.

    They stay the tensors and the views of one another that they are. In between nobody may use them.
    """

    def __init__(self) -> None:
        self._taken: list[tuple[torch.UntypedStorage, list[Tensor]]] = []

    def take(self, tensors: Iterable[Tensor], device: torch.device) -> None:
        """Move what of ``tensors`` is on ``device`` and was allocated by torch."""
        if device.type == "cuda":
            torch.cuda.synchronize()  # other streams may still work on the tensors
        for storage in _storages(tensor for tensor in tensors if tensor.device.type == device.type):
            self._taken.append((storage, [_on_host(piece) for piece in _pieces(storage)]))
            storage.resize_(0)
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def give_back(self) -> None:
        """Undo `take`; without effect where nothing was taken."""
        while self._taken:
            storage, hosted = self._taken.pop()
            storage.resize_(sum(map(len, hosted)))
            for piece, content in zip(_pieces(storage), hosted, strict=True):
                piece.copy_(content)


def free(tensors: Iterable[Tensor]) -> None:
    """Take the memory of tensors away for good, whoever may still refer to them."""
    for storage in _storages(tensors):
        storage.resize_(0)


def tensors_in(value: object, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors in nested containers and dataclasses, and their gradients."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    parts: list[object] = []
    if isinstance(value, Tensor):
        yield value
        parts = [value.grad] if value.is_leaf else []
    elif isinstance(value, dict):
        parts = [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set):
        parts = [*value]
    elif dataclasses.is_dataclass(value):
        parts = [getattr(value, field.name) for field in dataclasses.fields(value)]
    for part in parts:
        yield from tensors_in(part, seen)


def _storages(tensors: Iterable[Tensor]) -> list[torch.UntypedStorage]:
    """Of each allocation one; none of what torch did not allocate, such as a mapped file."""
    storages = {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return [storage for storage in storages.values() if storage.nbytes() > 0 and storage.resizable()]


def _pieces(storage: torch.UntypedStorage) -> tuple[Tensor, ...]:
    """Views of all its bytes."""
    content = torch.empty(0, dtype=torch.uint8, device=storage.device)
    content.set_(storage)
    pieces: tuple[Tensor, ...] = content.split(PIECE_BYTES)
    return pieces


def _on_host(piece: Tensor) -> Tensor:
    return torch.empty_like(piece, device="cpu", pin_memory=piece.is_cuda).copy_(piece)
