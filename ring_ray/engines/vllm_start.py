"""How vLLM is started: its environment, its arguments, how it samples.

vLLM reads its environment when it is imported, so nothing here imports it before that is set.
"""

import os
from pathlib import Path
from typing import Any

from ring_ray.config import Device, ModelConfig, RolloutConfig
from ring_ray.engines.vllm_cpu import ENABLE_VARIABLE
from ring_ray.engines.vllm_worker import WorkerExtension


def start(
    model_path: str, model: ModelConfig, rollout: RolloutConfig, device: Device, options: dict[str, Any]
) -> tuple[Any, Any]:
    """A running `AsyncLLM` and its sampling parameters.

    Args:
        options: further engine arguments, by vLLM's names.

    Raises:
        FileNotFoundError: ``model_path`` is a directory without a model.
        RuntimeError: this process uses vLLM on another device.
    """
    _check_directory(model_path)
    _set_environment(device, rollout.deterministic)
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM

    if current_platform.device_type != device:
        raise RuntimeError(
            f"this process imported vLLM for {current_platform.device_type or 'no device'} before an engine on "
            f"{device} was asked for: give each engine its own process"
        )
    arguments = AsyncEngineArgs(
        model=model_path,
        skip_tokenizer_init=True,
        trust_remote_code=model.trust_remote_code,
        dtype=model.dtype,
        max_model_len=rollout.max_prompt_tokens + rollout.max_response_tokens,
        max_num_seqs=rollout.max_sequences,
        max_num_batched_tokens=rollout.max_batched_tokens,
        tensor_parallel_size=rollout.tensor_parallel,
        # After temperature and top-p: the distribution that the token was drawn from.
        logprobs_mode="processed_logprobs",
        worker_extension_cls=f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}",
        disable_log_stats=True,
        use_tqdm_on_load=False,
        **options,
        **_device_options(rollout, device),
    )
    return AsyncLLM.from_engine_args(arguments), _sampling(rollout)


def _sampling(rollout: RolloutConfig) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _check_directory(model_path: str) -> None:
    path = Path(model_path)
    if (path.is_absolute() or path.exists()) and not (path / "config.json").is_file():
        raise FileNotFoundError(f"{model_path} is no Hugging Face model directory: it has no config.json")


def _device_options(rollout: RolloutConfig, device: Device) -> dict[str, Any]:
    if device == "cpu":
        return {"enforce_eager": True, "kv_cache_memory_bytes": rollout.kv_cache_mib << 20, "block_size": 16}
    return {
        "gpu_memory_utilization": rollout.gpu_memory_fraction,
        # In a Ray actor vLLM would ask Ray for the ranks.
        "distributed_executor_backend": "mp" if rollout.tensor_parallel > 1 else "uni",
        # FlashInfer's kernels take the experts' weights in another order or shape than they are loaded in, so that an
        # update in place would not arrive.
        "moe_backend": "triton",
    }


def _set_environment(device: Device, deterministic: bool) -> None:
    """For this process, before it imports vLLM, and for the engine's, which inherits it."""
    os.environ.update({"VLLM_NO_USAGE_STATS": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"})
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    # Kernels that calculate a sequence in the same way whatever else is in the batch.
    os.environ["VLLM_BATCH_INVARIANT"] = str(int(deterministic))
    if device == "cpu":
        os.environ[ENABLE_VARIABLE] = "1"
        # The sampler compiles two small functions even under enforce_eager, for which there may be no C++ compiler.
        os.environ["TORCH_COMPILE_DISABLE"] = "1"
        # Engines and trainers share the cores: more threads than cores cost a factor of ten.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
