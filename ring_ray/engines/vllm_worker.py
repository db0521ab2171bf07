"""What runs inside vLLM's worker processes: new weights come in there, and the proof that they did goes out.

Imports vLLM only where it is used: see `ring_ray.engines.vllm_start`.
"""

import math
import multiprocessing
import os
import pickle
import select
import threading
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ring_ray.engines.transports import make_transport
from ring_ray.engines.weights import Layout, Parcel, TensorSpec, Transport, checksum


def exit_with(pid: int, unless: threading.Event | None = None) -> None:
    """End this process when process ``pid`` ends, however that ends: an engine would wait for work forever.

    Not if that ends once ``unless`` is set.
    """
    ended = os.pidfd_open(pid)

    def wait() -> None:
        select.select([ended], [], [])
        if unless is None or not unless.is_set():
            os._exit(1)
        os.close(ended)

    threading.Thread(target=wait, name="exit-with", daemon=True).start()


def exit_with_parent() -> None:
    """`exit_with` the parent of this child process."""
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        raise RuntimeError("exit_with_parent is for child processes")
    exit_with(parent.pid)


class Writes(TorchDispatchMode):
    """Counts the elements that are written while it is entered, by the storage that they lie in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.elements: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func.overloadpacket in (aten.copy_, aten.fill_, aten.zero_):
            self.elements[storage_of(args[0])] += args[0].numel()
        return func(*args, **(kwargs or {}))


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class WeightReceiver:
    """The receiving end of one rank.

    Args:
        model: a vLLM model; its ``load_weights`` knows which part of which checkpoint tensor goes where.
        device: that its parameters are on.
        group: of the ranks that share the model's tensors, over gloo.
    """

    def __init__(self, model: Any, device: torch.device, group: dist.ProcessGroup) -> None:
        model.requires_grad_(False)  # so that integers can take the place of its parameters
        self._model, self._device, self._group = model, device, group
        self._transports: dict[str, Transport] = {}
        self._writes = Writes()

    def receive(self, parcel: Parcel, first: bool) -> None:
        """Copy a bucket into the parameters that are there; ``first`` of an update."""
        if first:
            self._writes.elements.clear()
        if parcel.transport not in self._transports:
            self._transports[parcel.transport] = make_transport(parcel.transport)
        transport = self._transports[parcel.transport]
        # Not vLLM's layerwise reload: until a layer is complete that keeps references to what it was given, which a
        # bucket doesn't outlive, and then a second copy of the layer. The engine chooses kernels that take the
        # parameters as they were loaded, so that there is nothing to convert.
        with self._writes:
            self._model.load_weights(transport.receive(parcel.payload, parcel.layout, self._device))
        if self._device.type == "cuda":
            torch.cuda.synchronize()  # the sender may overwrite the bucket from here on

    def incomplete(self) -> list[str]:
        """Parameters of the model that did not get all of their elements since the update began, and how many."""
        written = [
            (name, p.numel(), self._writes.elements[storage_of(p)]) for name, p in self._model.named_parameters()
        ]
        return [f"{name} ({found} of {size} elements)" for name, size, found in written if found < size]

    def checksums(self, layout: Layout) -> dict[str, str]:
        """Of the tensors of a bucket, put together again from what the parameters and buffers of all ranks hold.

        Which element lies where is asked of the model's own loader. A tensor that is not there in full, or of which
        ranks hold different copies, gets a sentence in place of its checksum. Takes 8 bytes of host memory for each
        element of the bucket and of the parameters it goes into, as much again for the largest, and twice the bucket.

        Raises:
            RuntimeError: the loader calculates with the weights, as that of BailingMoE does under ``norm_head``.
        """
        found: dict[str, str] = {}
        for dtype in dict.fromkeys(spec.dtype for spec in layout):  # in the same order on all ranks
            specs = [spec for spec in layout if spec.dtype == dtype]
            bytes_2NB = self._held_bytes(specs, dtype)
            dist.all_reduce(bytes_2NB, dist.ReduceOp.MAX, self._group)
            whole_N = (bytes_2NB[0] == ~bytes_2NB[1]).all(dim=-1)
            for spec, span in zip(specs, spans(specs), strict=True):
                tensor = bytes_2NB[0, span].flatten().view(dtype).view(spec.shape)
                wrong = int((~whole_N[span]).sum())
                found[spec.name] = f"{wrong} elements missing or ambiguous" if wrong else checksum(tensor)
        return found

    def _held_bytes(self, specs: list[TensorSpec], dtype: torch.dtype) -> Tensor:
        """The bytes of every element of the tensors in a row and their complement, [2, elements, bytes of one].

        Both are 0 where this rank does not hold the element. Under the maximum over copies they remain each other's
        complement only if there is a copy and all are alike.
        """
        positions = [
            (spec.name, torch.arange(span.start + 1, span.stop + 1).view(spec.shape))
            for spec, span in zip(specs, spans(specs), strict=True)
        ]
        tensors = list(dict.fromkeys([*self._model.parameters(), *self._model.buffers()]))
        with standing_in(tensors) as stand_ins, Writes() as writes:
            self._model.load_weights(iter(positions))
        held = torch.zeros(2, sum(math.prod(spec.shape) for spec in specs), dtype.itemsize, dtype=torch.uint8)
        for tensor, stand_in in zip(tensors, stand_ins, strict=True):
            if storage_of(stand_in) not in writes.elements:
                continue
            indices = stand_in.flatten().nonzero().squeeze(1)
            elements = stand_in.flatten()[indices] - 1
            values = tensor.detach().flatten()[indices.to(tensor.device)].cpu().to(dtype)
            copies_NB = values.view(torch.uint8).view(-1, dtype.itemsize)
            held[0, elements] = held[0, elements].maximum(copies_NB)
            held[1, elements] = held[1, elements].maximum(~copies_NB)
        return held


def spans(specs: list[TensorSpec]) -> list[slice]:
    """Where the elements of each tensor are if all lie in a row."""
    stops = accumulate((math.prod(spec.shape) for spec in specs), initial=0)
    return [slice(start, stop) for start, stop in pairwise(stops)]


@contextmanager
def standing_in(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Have int64 zeros on the host take the place of the tensors' data; memory is taken where they are written."""
    originals = [tensor.data for tensor in tensors]
    stand_ins = [torch.zeros(tensor.shape, dtype=torch.int64) for tensor in tensors]
    try:
        for tensor, stand_in in zip(tensors, stand_ins, strict=True):
            tensor.data = stand_in
        yield stand_ins
    finally:
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.data = original


class WorkerExtension:
    """Mixed into vLLM's worker: what `VllmEngine` calls there."""

    model_runner: Any
    model_config: Any
    vllm_config: Any
    device: torch.device

    @cached_property
    def weight_receiver(self) -> WeightReceiver:
        from vllm.distributed import get_tp_group

        return WeightReceiver(self.model_runner.get_model(), self.device, get_tp_group().cpu_group)

    def attempt(self, method: str, *args: Any) -> tuple[Any, str | None]:
        """The result of another method, or what it raised.

        vLLM stops at the first rank that raises, and takes what the others answer for answers to the next call.
        """
        try:
            return getattr(self, method)(*args), None
        except Exception:  # noqa: BLE001 - it is raised where the call came from
            return None, traceback.format_exc()

    def exit_with(self, pid: int) -> None:
        exit_with(pid)

    def pong(self) -> None:
        """An answer."""

    def receive_parcel(self, parcel: bytes, first: bool) -> None:
        """See `WeightReceiver.receive`; ``parcel`` is pickled, since vLLM takes arrays apart into lists."""
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self.vllm_config):
            self.weight_receiver.receive(pickle.loads(parcel), first)

    def complete_update(self) -> list[str]:
        """Derive what vLLM keeps beside the weights, if all of them came; else see `WeightReceiver.incomplete`."""
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.utils import process_weights_after_loading

        incomplete = self.weight_receiver.incomplete()
        if not incomplete:
            with set_current_vllm_config(self.vllm_config):
                process_weights_after_loading(self.model_runner.get_model(), self.model_config, self.device)
        return incomplete

    def weight_checksums(self, layout: bytes) -> dict[str, str]:
        """See `WeightReceiver.checksums`; ``layout`` is pickled."""
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self.vllm_config):
            return self.weight_receiver.checksums(pickle.loads(layout))
