"""Reward workers: a pool of processes that turn responses into verdicts."""

import asyncio
import random
from typing import Generic, TypeVar, cast

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorProxy

from ring_ray.actors.calls import LeastLoaded, two_refs
from ring_ray.actors.names import Named
from ring_ray.config import RunConfig
from ring_ray.data.tokenizer import load_tokenizer
from ring_ray.rewards.registry import Verifiers
from ring_ray.roles import RolloutRef
from ring_ray.types import Reward, Rollout, RolloutSample

Item = TypeVar("Item")


class RewardWorker(Named):
    """Scores one rollout at a time, in its process's main thread, where verifiers may use signals as time limits."""

    def __init__(self, model_path: str, config: RunConfig) -> None:
        self._tokenizer = load_tokenizer(model_path, config.model)
        self._verifiers = Verifiers(config.reward)
        self._seed = config.seed

    @ray.method(num_returns=2)
    def score(self, rollout: Rollout) -> tuple[RolloutSample, tuple[Reward, ...]]:
        """The rewards, and one of the responses for people to read."""
        verifier = self._verifiers.get(rollout.prompt.verifier)
        texts = self._tokenizer.batch_decode(
            [sequence.response_ids for sequence in rollout.sequences], skip_special_tokens=True
        )
        rewards = tuple(verifier.verify(rollout.prompt, text) for text in texts)
        response = int(np.random.default_rng((self._seed, rollout.prompt.index)).integers(len(texts)))
        return rollout_sample(rollout, response, texts[response], rewards[response]), rewards


def rollout_sample(rollout: Rollout, response: int, text: str, reward: Reward) -> RolloutSample:
    """Response number ``response``, which decodes to ``text``."""
    sequence = rollout.sequences[response]
    return RolloutSample(
        prompt_index=rollout.prompt.index,
        domain=rollout.prompt.domain,
        prompt=rollout.prompt.text,
        response=text,
        reward=reward,
        tokens=len(sequence),
        first_version=int(sequence.versions[0]),
        last_version=int(sequence.versions[-1]),
        truncated=sequence.finish_reason == "length",
    )


class Reservoir(Generic[Item]):
    """Keeps ``size`` of the items that it is offered, each as likely as any other (Vitter's algorithm R)."""

    def __init__(self, size: int, seed: int) -> None:
        self._size, self._random = size, random.Random(seed)
        self._items, self._offered = list[Item](), 0

    def offer(self, item: Item) -> None:
        self._offered += 1
        if len(self._items) < self._size:
            self._items.append(item)
        elif (place := self._random.randrange(self._offered)) < self._size:
            self._items[place] = item

    def take(self) -> list[Item]:
        """What was kept since the last call."""
        items, self._items, self._offered = self._items, [], 0
        return items


class RewardPool:
    """`RewardRole` over a pool of workers; each rollout goes to the least loaded one."""

    def __init__(self, workers: list[ActorProxy[RewardWorker]], *, samples: int, seed: int) -> None:
        """``samples`` is how many responses `samples` returns at most, each to another prompt; ``seed`` decides."""
        self._least_loaded = LeastLoaded(workers)
        self._kept = Reservoir[ObjectRef[RolloutSample]](samples, seed)  # the texts stay in Ray's store until asked for

    async def score(self, rollout: RolloutRef) -> tuple[Reward, ...]:
        with self._least_loaded.worker() as worker:
            sample, answer = two_refs(worker.score.remote(cast("ObjectRef[Rollout]", rollout)))
            rewards = await answer
        self._kept.offer(sample)
        return rewards

    async def samples(self) -> tuple[RolloutSample, ...]:
        """Waits for no worker: what is kept was scored before."""
        return tuple(await asyncio.gather(*self._kept.take()))
