"""Rollouts with vLLM's asynchronous engine, on a GPU or on a CPU."""

import asyncio
import os
import pickle
import uuid
from dataclasses import replace
from typing import Any

import numpy as np

from ring_ray.config import Device, ModelConfig, RolloutConfig
from ring_ray.engines.vllm_start import start
from ring_ray.engines.weights import Layout, Parcel
from ring_ray.types import Sequence


class VllmEngine:
    """`RolloutEngine` over vLLM's `AsyncLLM`.

    A `generate` runs under one policy version from start to end, because `receive` first waits until every one of them
    has returned: each token's version is exact.

    Attributes:
        version: policy version of the weights that are there; 0 for those of ``model_path``.

    Args:
        model_path: Hugging Face model directory or hub name.
        model: dtype and trust.
        rollout: sampling and limits; prompt and response together are the context length.
        device: "cpu" runs vLLM over this project's PyTorch kernels.
        seed: of the random numbers of sequences that are given none.
        replay_routing: fill in `Sequence.routed_experts`.
        sleeps: be able to ``interrupt(sleep=True)``.
    """

    def __init__(
        self,
        model_path: str,
        model: ModelConfig,
        rollout: RolloutConfig,
        device: Device,
        seed: int,
        *,
        replay_routing: bool = False,
        sleeps: bool = False,
    ) -> None:
        self.version = 0
        self._limit = rollout.max_response_tokens
        self._max_prompt_tokens = rollout.max_prompt_tokens
        self._keep_cache = rollout.keep_cache
        self._sleeps = sleeps
        self._asleep: set[str] = set()  # what vLLM can wake up by itself: weights, kv_cache
        self._layouts: list[Layout] = []  # of what was received in this update, or if none goes on, in the last one
        self._complete = True  # no update goes on, and the weights are there
        self._interrupted = False
        self._closed = False
        self._guarded = False
        # Held while a request is handed over or the engine's state changes, so that no request slips past a pause.
        self._gate = asyncio.Lock()
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        options = {"seed": seed, "enable_return_routed_experts": replay_routing, "enable_sleep_mode": sleeps}
        self._llm, self._sampling = start(model_path, model, rollout, device, options)

    async def generate(self, sequence: Sequence, seed: int | None = None) -> Sequence:
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
            outputs = await self._submit(sequence, remaining, seed)
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

    async def interrupt(self, *, sleep: bool = False) -> None:
        """See `RolloutEngine`. Raises RuntimeError if it is to sleep and was not started with ``sleeps``."""
        if sleep and not self._sleeps:
            raise RuntimeError("an engine that is to sleep must be started with sleeps=True")
        async with self._gate:
            await self._pause()
            if sleep and not self._asleep:
                self._complete, self._layouts = False, []
                await self._llm.sleep(level=2)
                self._asleep = {"weights", "kv_cache"}

    async def receive(self, parcel: Parcel) -> None:
        """See `RolloutEngine`. A tensor that comes for the second time begins the update anew."""
        async with self._gate:
            await self._guard()
            await self._pause()
            await self._wake("weights")
            received = {spec.name for layout in self._layouts for spec in layout}
            if self._complete or any(spec.name in received for spec in parcel.layout):
                self._layouts = []
            self._complete = False
            await self._call("receive_parcel", pickle.dumps(parcel), not self._layouts)
            self._layouts.append(parcel.layout)

    async def resume(self, version: int | None = None) -> None:
        """See `RolloutEngine`.

        Raises:
            ValueError: with ``version``, parameters of the model got no value.
            RuntimeError: without, the weights slept, or some of the new ones were received.
        """
        async with self._gate:
            if version is not None:
                await self._complete_update(version)
            elif self._asleep:
                raise RuntimeError("the weights slept: only an update brings them back")
            elif not self._complete:
                raise RuntimeError("some of the new weights were received: the rest and their version are missing")
            if self._interrupted:
                await self._llm.resume_generation()
                self._interrupted = False

    async def checksums(self) -> dict[str, str]:
        """See `RolloutEngine`. For debugging: `WeightReceiver.checksums` says what memory it takes.

        Raises RuntimeError as long as no weights were received: they brought their names, dtypes and shapes.
        """
        async with self._gate:
            if not self._layouts:
                raise RuntimeError("checksums are of weights that were received, and none were")
            found: dict[str, str] = {}
            for layout in self._layouts:
                found |= (await self._call("weight_checksums", pickle.dumps(layout)))[0]  # all ranks have the same
            return found

    async def ping(self) -> None:
        await self._guard()
        await self._call("pong")

    @property
    def dead(self) -> bool:
        """Whether it has failed for good; its processes may be there yet."""
        return bool(self._llm.errored)

    @property
    def processes(self) -> list[int]:
        """Ids of the processes without which nothing here answers any more, or ever."""
        return [process.pid for process in self._llm.engine_core.resources.engine_manager.processes]

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            # A request that is left behind would wait for its output forever.
            await self.interrupt()
        finally:
            self._llm.shutdown()

    async def _submit(self, sequence: Sequence, max_tokens: int, seed: int | None) -> Any:
        """The queue on which vLLM puts the request's one output."""
        await self._guard()
        sampling = self._sampling.clone()
        sampling.max_tokens, sampling.seed = max_tokens, seed
        if sequence.routed_experts is not None:
            sampling.routed_experts_prompt_start = len(sequence.routed_experts)
        context = np.concatenate((sequence.prompt_ids, sequence.response_ids)).tolist()
        prompt: dict[str, Any] = {"type": "token", "prompt_token_ids": context}
        if self._keep_cache:
            # Keys and values of older weights are for those who began under them, never for a new sequence.
            prompt["cache_salt"] = str(sequence.versions[0] if len(sequence) else self.version)
        return await self._llm.add_request(uuid.uuid4().hex, prompt, sampling)

    async def _complete_update(self, version: int) -> None:
        if self._complete or not self._layouts:
            raise ValueError(f"no weights were received that could be policy version {version}")
        of_ranks = await self._call("complete_update")
        if incomplete := sorted({parameter for rank in of_ranks for parameter in rank}):
            self._layouts = []
            raise ValueError(f"weights lack {len(incomplete)} parameters of the model, among them {incomplete[0]}")
        await self._wake("kv_cache")
        # A version that was there before now is other weights: what was kept for it would pass for theirs.
        keep_cache = self._keep_cache and version > self.version
        if not keep_cache and not await self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept cached keys and values of the old weights")
        self.version = version
        self._complete = True

    async def _guard(self) -> None:
        """Have the engine's processes end with this one, however that ends."""
        if not self._guarded:
            await self._call("exit_with", os.getpid())
            self._guarded = True

    async def _call(self, method: str, *args: Any) -> list[Any]:
        """What a method of `WorkerExtension` returns in each rank. Raises RuntimeError where it raised."""
        answers = await self._llm.collective_rpc("attempt", args=(method, *args))
        if errors := [error for _, error in answers if error is not None]:
            raise RuntimeError(f"{method} failed in {len(errors)} of {len(answers)} ranks of the engine: {errors[0]}")
        return [result for result, _ in answers]

    async def _wake(self, tag: str) -> None:
        if tag in self._asleep:
            await self._llm.wake_up([tag])
            self._asleep.remove(tag)

    async def _pause(self) -> None:
        """Abort what runs. Every `generate` has returned its tokens when this returns."""
        if not self._interrupted:
            self._interrupted = True
            await self._llm.pause_generation(mode="abort", clear_cache=False)
        await self._idle.wait()


def _extend(sequence: Sequence, completion: Any, version: int) -> Sequence:
    token_ids = np.asarray(completion.token_ids, np.int32)
    logprobs = np.asarray(completion.logprobs.logprobs, np.float32)
    versions = np.full(len(token_ids), version, np.int32)
    routed_experts = sequence.routed_experts
    if completion.routed_experts is not None:  # nor are there any if no token was sampled
        new_rows = completion.routed_experts.astype(np.int16)
        routed_experts = new_rows if routed_experts is None else np.concatenate((routed_experts, new_rows))
    return replace(
        sequence,
        response_ids=np.concatenate((sequence.response_ids, token_ids)),
        logprobs=np.concatenate((sequence.logprobs, logprobs)),
        versions=np.concatenate((sequence.versions, versions)),
        finish_reason="unfinished" if completion.finish_reason == "abort" else completion.finish_reason,
        routed_experts=routed_experts,
    )
