"""The worker: one tensor-parallel rank, in the engine's own process if it is the only one."""

import atexit
import ctypes
import gc
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from vllm import envs
from vllm.model_executor.determinism import batch_invariant
from vllm.model_executor.layers import utils as linear_dispatch
from vllm.v1.worker.cpu_worker import CPUWorker

from ring_ray.engines.vllm_cpu import kernels, moe, norm, sampler
from ring_ray.engines.vllm_worker import exit_with_parent


class Memory:
    """What some tensors take: given back and taken again under the same tensors and all views of them."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._bytes = {storage: storage.nbytes() for storage in {tensor.untyped_storage() for tensor in tensors}}

    def release(self) -> None:
        for storage in self._bytes:
            storage.resize_(0)

    def take(self) -> None:
        """The contents are undefined."""
        for storage, size in self._bytes.items():
            storage.resize_(size)


class TorchCpuWorker(CPUWorker):  # type: ignore[misc]
    """`CPUWorker` over PyTorch kernels."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        exit_with_parent()
        # Or the interpreter ends with seconds of a search for cycles, in which vLLM loses patience and kills it.
        atexit.register(gc.freeze)
        kernels.register()
        moe.register()
        norm.register()
        sampler.register()
        # On a host with AMX, vLLM would repack bfloat16 linear weights for a compiled kernel that is not there. Plain
        # weights also are what an update in place needs.
        linear_dispatch.check_cpu_sgl_kernel = lambda *_: False
        if envs.VLLM_BATCH_INVARIANT:
            batch_invariant.init_batch_invariance = lambda: None  # it replaces PyTorch's operators by Triton's
            linear_dispatch.cpu_unquantized_gemm = lambda layer, *operands: kernels.invariant_linear(*operands)
        # vLLM gathers the logits of several ranks with a function that PyTorch is about to rename.
        warnings.filterwarnings("ignore", message=r".*all_gather_into_tensor", category=FutureWarning)
        self._asleep: dict[str, Memory] = {}
        super().__init__(*args, **kwargs)

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        """As the parent. vLLM's parameters intercept every operation on them, only to let it pass."""
        with torch._C.DisableTorchFunctionSubclass():
            return super().execute_model(*args, **kwargs)

    def sleep(self, level: int = 1) -> None:
        """Give back the cache's memory and, at level 2, that of the weights. At level 1 they stay where they are."""
        self._asleep["kv_cache"] = Memory(self.model_runner.kv_caches)
        if level == 2:
            self._asleep["weights"] = Memory(self.model_runner.model.parameters())
        for memory in self._asleep.values():
            memory.release()
        # glibc keeps what was freed below its threshold, which has grown to the size of a weight.
        ctypes.CDLL(None).malloc_trim(0)

    def wake_up(self, tags: list[str] | None = None) -> None:
        """Take the memory again: weights are undefined until they are loaded, the cache is empty."""
        for tag in tags or list(self._asleep):
            if tag in self._asleep:
                self._asleep.pop(tag).take()
            if tag == "kv_cache":
                for cache in self.model_runner.kv_caches:
                    cache.zero_()
