"""The executor of several tensor-parallel ranks, each a process of its own."""

import atexit
import gc

from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from ring_ray.engines.vllm_worker import exit_with_parent


class TorchCpuExecutor(MultiprocExecutor):  # type: ignore[misc]
    """`MultiprocExecutor` in a process that ends with its parent, as its ranks end with it."""

    def _init_executor(self) -> None:
        exit_with_parent()
        atexit.register(gc.freeze)
        super()._init_executor()
