"""Rollouts with vLLM's asynchronous engine, on a GPU or on a CPU.

vLLM reads its environment when it is imported, so nothing here imports it before an engine sets that environment.
"""

import asyncio
import multiprocessing
import multiprocessing.connection
import os
import threading
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch

from ring_ray.config import Device, ModelConfig, RolloutConfig
from ring_ray.engines.vllm_cpu import ENABLE_VARIABLE
from ring_ray.types import Sequence, Weights


def exit_with_parent() -> None:
    """End this child process when its parent ends, however that ends: an engine core would wait for work forever."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("exit_with_parent is for child processes")

    def wait() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=wait, name="exit-with-parent", daemon=True).start()


class WorkerExtension:
    """Mixed into vLLM's worker, in the engine's process: what `VllmEngine` calls there."""

    model_runner: Any

    def exit_with_parent(self) -> None:
        exit_with_parent()

    def load_safetensors(self, blob: bytes) -> None:
        """Copy tensors into the parameters that are there.

        Raises:
            ValueError: a parameter got no value.
        """
        model = self.model_runner.model
        tensors = safetensors.torch.load(blob)
        loaded = model.load_weights(
            (name, tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor)
            for name, tensor in tensors.items()
        )
        # vLLM reports what it loaded into experts without the module that holds them.
        parameters = {name.replace(".routed_experts.", ".") for name, _ in model.named_parameters()}
        if missing := parameters - loaded:
            raise ValueError(f"weights lack {len(missing)} parameters of the model, among them {min(missing)}")


class VllmEngine:
    """`RolloutEngine` over vLLM's `AsyncLLM`.

    A `generate` runs under one policy version from start to end, because `load` first waits until every one of them has
    returned: each token's version is exact.

    Attributes:
        version: policy version of the weights that are there; 0 for those of ``model_path``.

    Args:
        model_path: Hugging Face model directory or hub name.
        model: dtype and trust.
        rollout: sampling and limits; prompt and response together are the context length.
        device: "cpu" runs vLLM over this project's PyTorch kernels.
        seed: of the sampler.
    """

    def __init__(self, model_path: str, model: ModelConfig, rollout: RolloutConfig, device: Device, seed: int) -> None:
        self.version = 0
        self._limit = rollout.max_response_tokens
        self._max_prompt_tokens = rollout.max_prompt_tokens
        self._interrupted = False
        self._closed = False
        self._guarded = False
        # Held while a request is handed over or the engine's state changes, so that no request slips past a pause.
        self._gate = asyncio.Lock()
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._llm, self._sampling = _start(model_path, model, rollout, device, seed)

    async def generate(self, sequence: Sequence) -> Sequence:
        remaining = self._limit - len(sequence)
        if len(sequence.prompt_ids) > self._max_prompt_tokens:
            raise ValueError(
                f"a prompt of {len(sequence.prompt_ids)} tokens: rollout.max_prompt_tokens={self._max_prompt_tokens}"
            )
        if sequence.finished:
            return sequence
        if remaining <= 0:
            return replace(sequence, finish_reason="length")
        async with self._gate:
            if self._interrupted:
                return sequence
            outputs = await self._submit(sequence, remaining)
            version = self.version
            self._running += 1
            self._idle.clear()
        try:
            completion = (await outputs.get()).outputs[0]
        except asyncio.CancelledError:
            await self._llm.abort(outputs.request_id, internal=True)
            raise
        finally:
            self._running -= 1
            if self._running == 0:
                self._idle.set()
        return _extend(sequence, completion, version)

    async def interrupt(self) -> None:
        async with self._gate:
            await self._pause()

    async def load(self, weights: Weights, version: int) -> None:
        # Bytes cross to the engine's process as they are; arrays would arrive as lists.
        blob = safetensors.numpy.save(weights)
        async with self._gate:
            await self._pause()
            await self._llm.collective_rpc("load_safetensors", args=(blob,))
            if not await self._llm.reset_prefix_cache():
                raise RuntimeError("vLLM kept cached keys and values of the old weights")
            self.version = version
            await self._unpause()

    async def resume(self) -> None:
        async with self._gate:
            await self._unpause()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            # A request that is left behind would wait for its output forever.
            await self.interrupt()
        finally:
            self._llm.shutdown()

    async def _submit(self, sequence: Sequence, max_tokens: int) -> Any:
        """The queue on which vLLM puts the request's one output."""
        if not self._guarded:
            await self._llm.collective_rpc("exit_with_parent")
            self._guarded = True
        sampling = self._sampling.clone()
        sampling.max_tokens = max_tokens
        context = np.concatenate((sequence.prompt_ids, sequence.response_ids)).tolist()
        return await self._llm.add_request(uuid.uuid4().hex, {"type": "token", "prompt_token_ids": context}, sampling)

    async def _pause(self) -> None:
        """Abort what runs. Every `generate` has returned its tokens when this returns."""
        if not self._interrupted:
            self._interrupted = True
            await self._llm.pause_generation(mode="abort", clear_cache=False)
        await self._idle.wait()

    async def _unpause(self) -> None:
        if self._interrupted:
            await self._llm.resume_generation()
            self._interrupted = False


def _extend(sequence: Sequence, completion: Any, version: int) -> Sequence:
    token_ids = np.asarray(completion.token_ids, np.int32)
    logprobs = np.asarray(completion.logprobs.logprobs, np.float32)
    versions = np.full(len(token_ids), version, np.int32)
    return replace(
        sequence,
        response_ids=np.concatenate((sequence.response_ids, token_ids)),
        logprobs=np.concatenate((sequence.logprobs, logprobs)),
        versions=np.concatenate((sequence.versions, versions)),
        finish_reason="unfinished" if completion.finish_reason == "abort" else completion.finish_reason,
    )


def _start(model_path: str, model: ModelConfig, rollout: RolloutConfig, device: Device, seed: int) -> tuple[Any, Any]:
    """The running engine and its sampling parameters."""
    path = Path(model_path)
    if (path.is_absolute() or path.exists()) and not (path / "config.json").is_file():
        raise FileNotFoundError(f"{model_path} is no Hugging Face model directory: it has no config.json")
    _set_environment(device)
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    if current_platform.device_type != device:
        raise RuntimeError(
            f"this process imported vLLM for {current_platform.device_type or 'no device'} before an engine on "
            f"{device} was asked for: give each engine its own process"
        )
    on_device: dict[str, Any] = {"gpu_memory_utilization": rollout.gpu_memory_fraction}
    if device == "cpu":
        on_device = {"enforce_eager": True, "kv_cache_memory_bytes": rollout.kv_cache_mib << 20, "block_size": 16}
    arguments = AsyncEngineArgs(
        model=model_path,
        skip_tokenizer_init=True,
        trust_remote_code=model.trust_remote_code,
        dtype=model.dtype,
        seed=seed,
        max_model_len=rollout.max_prompt_tokens + rollout.max_response_tokens,
        max_num_seqs=rollout.max_sequences,
        max_num_batched_tokens=rollout.max_batched_tokens,
        # After temperature and top-p: the distribution that the token was drawn from.
        logprobs_mode="processed_logprobs",
        worker_extension_cls=f"{__name__}.{WorkerExtension.__name__}",
        disable_log_stats=True,
        use_tqdm_on_load=False,
        **on_device,
    )
    sampling = SamplingParams(
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    return AsyncLLM.from_engine_args(arguments), sampling


def _set_environment(device: Device) -> None:
    """For this process, before it imports vLLM, and for the engine's, which inherits it."""
    os.environ.update({"VLLM_NO_USAGE_STATS": "1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"})
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if device == "cpu":
        os.environ[ENABLE_VARIABLE] = "1"
        # The sampler compiles two small functions even under enforce_eager, for which there may be no C++ compiler.
        os.environ["TORCH_COMPILE_DISABLE"] = "1"
        # Engines and trainers share the cores: more threads than cores cost a factor of ten.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
