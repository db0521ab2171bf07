"""Reward workers: a pool of processes that turn responses into verdicts."""

from typing import cast

import ray
from ray import ObjectRef
from ray.actor import ActorProxy

from ring_ray.actors.calls import LeastLoaded
from ring_ray.config import RunConfig
from ring_ray.data.tokenizer import load_tokenizer
from ring_ray.rewards.registry import Verifiers
from ring_ray.roles import RolloutRef
from ring_ray.types import Reward, Rollout


class RewardWorker:
    """Scores one rollout at a time, in its process's main thread, where verifiers may use signals as time limits."""

    def __init__(self, model_path: str, config: RunConfig) -> None:
        self._tokenizer = load_tokenizer(model_path, config.model)
        self._verifiers = Verifiers(config.reward)

    @ray.method
    def score(self, rollout: Rollout) -> tuple[Reward, ...]:
        verifier = self._verifiers.get(rollout.prompt.verifier)
        texts = self._tokenizer.batch_decode(
            [sequence.response_ids for sequence in rollout.sequences], skip_special_tokens=True
        )
        return tuple(verifier.verify(rollout.prompt, text) for text in texts)


class RewardPool:
    """`RewardRole` over a pool of workers; each rollout goes to the least loaded one."""

    def __init__(self, workers: list[ActorProxy[RewardWorker]]) -> None:
        self._least_loaded = LeastLoaded(workers)

    async def score(self, rollout: RolloutRef) -> tuple[Reward, ...]:
        with self._least_loaded.worker() as worker:
            return await worker.score.remote(cast("ObjectRef[Rollout]", rollout))
