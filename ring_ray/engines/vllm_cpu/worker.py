"""The worker: importing it registers the kernels, in the engine process and before the model is built."""

from vllm.model_executor.layers import utils as linear_dispatch
from vllm.v1.worker.cpu_worker import CPUWorker

from ring_ray.engines.vllm import exit_with_parent
from ring_ray.engines.vllm_cpu import kernels, moe


class TorchCpuWorker(CPUWorker):  # type: ignore[misc]
    """`CPUWorker` over PyTorch kernels."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        exit_with_parent()
        kernels.register()
        moe.register()
        # On a host with AMX, vLLM would repack bfloat16 linear weights for a compiled kernel that is not there. Plain
        # weights also are what an update in place needs.
        linear_dispatch.check_cpu_sgl_kernel = lambda *_: False
        super().__init__(*args, **kwargs)
