"""vLLM's own engine on a CPU, from the wheel on the package index.

That wheel is built for CUDA: its scheduler, paged cache, sampler and models run anywhere, its compiled kernels do not.
This package is an out-of-tree platform plugin that supplies the kernels which a decoder-only model needs, in PyTorch.
What it does not cover (sliding windows, quantization, pipeline parallelism, ...) it refuses by name.
"""

import os

ENABLE_VARIABLE = "RING_RAY_VLLM_CPU"


def register() -> str | None:
    """Entry point ``vllm.platform_plugins``: the platform class, or None where it was not asked for.

    An entry point is seen by every program of the environment, so the plugin stays inert until ``RING_RAY_VLLM_CPU=1``.
    """
    if os.environ.get(ENABLE_VARIABLE) != "1":
        return None
    return "ring_ray.engines.vllm_cpu.platform.TorchCpuPlatform"
