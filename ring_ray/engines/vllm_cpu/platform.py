"""The platform: which worker and which attention vLLM uses, and what it must refuse before it starts."""

import logging
import os
from typing import Any

import torch
from vllm.platforms.cpu import CpuPlatform

PACKAGE = "ring_ray.engines.vllm_cpu"
# On import this module reports as an error that Triton, which only a GPU needs, is not installed.
logging.getLogger("vllm.model_executor.layers.fused_moe.config").setLevel(logging.CRITICAL)


class TorchCpuPlatform(CpuPlatform):  # type: ignore[misc]
    """`CpuPlatform` with the kernels of this package in place of the compiled ones."""

    @property
    def supported_dtypes(self) -> list[torch.dtype]:
        return [torch.float32, torch.bfloat16]

    @classmethod
    def import_kernels(cls) -> None:
        """Leave the CUDA libraries alone: `worker` registers the PyTorch kernels in each process that runs them."""

    def is_sleep_mode_available(self) -> bool:
        return True

    @classmethod
    def opaque_attention_op(cls) -> bool:
        # Only a compiler needs attention as one operator of PyTorch's.
        return False

    @classmethod
    def get_attn_backend_cls(
        cls, selected_backend: Any, attn_selector_config: Any, num_heads: int | None = None
    ) -> str:
        """Path of the attention backend.

        Raises:
            NotImplementedError: the model needs an attention that is not there, by name.
        """
        from ring_ray.engines.vllm_cpu.attention import TorchAttentionBackend

        c = attn_selector_config
        reasons = TorchAttentionBackend.validate_configuration(
            head_size=c.head_size,
            dtype=c.dtype,
            kv_cache_dtype=c.kv_cache_dtype,
            block_size=c.block_size,
            use_mla=c.use_mla,
            has_sink=c.has_sink,
            use_sparse=c.use_sparse,
            use_mm_prefix=c.use_mm_prefix,
            use_per_head_quant_scales=c.use_per_head_quant_scales,
            device_capability=None,
            attn_type=c.attn_type,
            has_sliding_window=c.has_sliding_window,
            use_non_causal=c.use_non_causal,
            use_batch_invariant=c.use_batch_invariant,
        )
        if reasons:
            raise NotImplementedError(f"attention in PyTorch on a CPU: {'; '.join(reasons)}")
        return f"{PACKAGE}.attention.TorchAttentionBackend"

    @classmethod
    def check_and_update_config(cls, vllm_config: Any) -> None:
        """Choose this package's worker in the engine's own process, and refuse what it can't run.

        Raises:
            NotImplementedError: the configuration asks for something that is not there, by name.
        """
        parallel, model = vllm_config.parallel_config, vllm_config.model_config
        unsupported = {
            f"pipeline_parallel_size={parallel.pipeline_parallel_size}": parallel.pipeline_parallel_size > 1,
            f"data_parallel_size={parallel.data_parallel_size}": parallel.data_parallel_size > 1,
            f"nnodes={parallel.nnodes}": parallel.nnodes > 1,
            "expert parallelism": parallel.enable_expert_parallel,
            "context parallelism": parallel.prefill_context_parallel_size * parallel.decode_context_parallel_size > 1,
            f"quantization={model.quantization}": model.quantization is not None,
            "a LoRA adapter": vllm_config.lora_config is not None,
            "speculative decoding": vllm_config.speculative_config is not None,
            "compilation (pass enforce_eager=True)": not model.enforce_eager,
        }
        if asked := [name for name, is_asked in unsupported.items() if is_asked]:
            raise NotImplementedError(f"vLLM in PyTorch on a CPU does not support {', '.join(asked)}")

        preload = os.environ.get("LD_PRELOAD")
        super().check_and_update_config(vllm_config)
        # The base class adds a worker process, so that it can bind OpenMP threads, and preloads allocators into it and
        # into every other child of this process. Sequential ranks need neither, nor a NUMA node each.
        one_rank = parallel.tensor_parallel_size == 1
        parallel.distributed_executor_backend = "uni" if one_rank else f"{PACKAGE}.executor.TorchCpuExecutor"
        parallel.worker_cls = f"{PACKAGE}.worker.TorchCpuWorker"
        vllm_config.scheduler_config.scheduler_cls = f"{PACKAGE}.scheduler.ResponseScheduler"
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if preload is None:
            os.environ.pop("LD_PRELOAD", None)
        else:
            os.environ["LD_PRELOAD"] = preload
