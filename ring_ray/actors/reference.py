"""The reference policy: frozen, spawned only where the KL coefficient is above 0."""

from typing import cast

import ray
from ray import ObjectRef
from ray.actor import ActorProxy

from ring_ray.actors.calls import two_refs
from ring_ray.config import Device, RunConfig
from ring_ray.engines.hf import ReferenceModel
from ring_ray.roles import BatchRef, LogprobsRef
from ring_ray.types import FloatArray, TokenBatch


class ReferenceWorker:
    def __init__(self, config: RunConfig, device: Device) -> None:
        self._config, self._device = config, device
        self._model: ReferenceModel | None = None

    @ray.method
    def start(self, model_path: str) -> None:
        config = self._config
        self._model = ReferenceModel(
            model_path,
            config.model,
            temperature=config.rollout.temperature,
            micro_batch_tokens=config.train.micro_batch_tokens,
            device=self._device,
        )

    @ray.method(num_returns=2)
    def logprobs(self, batch: TokenBatch) -> tuple[tuple[FloatArray, ...], None]:
        """The log-probs, and a second value that is there when they are."""
        if self._model is None:
            raise RuntimeError("the reference was asked to work before start()")
        return self._model.logprobs(batch), None


class ReferenceHandle:
    """`ReferenceRole` over one actor."""

    def __init__(self, worker: ActorProxy[ReferenceWorker]) -> None:
        self._worker = worker

    async def start(self, model_path: str) -> None:
        await self._worker.start.remote(model_path)

    async def logprobs(self, batch: BatchRef) -> LogprobsRef:
        logprobs, done = two_refs(self._worker.logprobs.remote(cast("ObjectRef[TokenBatch]", batch)))
        await done
        return LogprobsRef(logprobs)
