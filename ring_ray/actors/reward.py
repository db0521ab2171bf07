"""Reward workers: pools of processes that turn responses into verdicts.

Most need a core for a moment. Those that hold a reward model need a GPU for as long as the run lasts, so they are a
role of their own, with its own place in the cluster, and get what only they can judge.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar, cast

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorProxy

from ring_ray.actors.calls import WorkerLostError, two_refs
from ring_ray.actors.fleet import Fleet
from ring_ray.actors.worker import Worker
from ring_ray.config import RunConfig
from ring_ray.data.tokenizer import decode, load_tokenizer
from ring_ray.rewards.base import Response
from ring_ray.rewards.registry import REWARD_MODEL, Verifiers
from ring_ray.roles import RolloutRef
from ring_ray.types import Reward, Rollout, RolloutSample, Verdict

Item = TypeVar("Item")
T = TypeVar("T")


class RewardWorker(Worker):
    """Scores one rollout at a time, in its process's main thread, where verifiers may use signals as time limits."""

    def __init__(self, model_path: str, config: RunConfig, verifiers: Iterable[str] = ()) -> None:
        """``verifiers`` are those that must be able to judge here; raises `ConfigError` otherwise."""
        self._tokenizer = load_tokenizer(model_path, config.model)
        self._verifiers = Verifiers(config.reward)
        self._verifiers.start(verifiers)
        self._seed = config.seed

    @ray.method(num_returns=2)
    def score(self, rollout: Rollout) -> tuple[RolloutSample, tuple[Reward, ...]]:
        """The rewards, and one of the responses for people to read."""
        texts = [decode(self._tokenizer, sequence.response_ids) for sequence in rollout.sequences]
        responses = [Response(text, len(one)) for text, one in zip(texts, rollout.sequences, strict=True)]
        rewards = self._verifiers.judge(rollout.prompt, responses)
        response = int(np.random.default_rng((self._seed, rollout.prompt.index)).integers(len(texts)))
        return rollout_sample(rollout, response, texts[response], rewards[response]), rewards

    @ray.method
    def verifier(self, rollout: Rollout) -> str:
        """The name of the one that its prompt asks for."""
        return rollout.prompt.verifier

    @ray.method
    def give_up(self, rollout: Rollout, reason: str) -> tuple[Reward, ...]:
        """The rewards of a rollout that nobody can score."""
        return (Reward(score=0.0, verdict=Verdict.FAILED, reason=reason),) * len(rollout.sequences)


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
    """`RewardRole` over a pool of workers; each takes one rollout at a time, so that its time limit is its own.

    A worker that dies or is silent is replaced, and the rollout goes to another once more.
    """

    TRIES = 2

    def __init__(
        self, fleet: Fleet[RewardWorker], *, call_seconds: float, kept: Reservoir[ObjectRef[RolloutSample]]
    ) -> None:
        """``kept`` is offered a response of each rollout; pools may share it.

        After ``call_seconds`` a worker that has not scored its rollout is taken for silent.
        """
        self._fleet, self._call_seconds = fleet, call_seconds
        self._idle = asyncio.Queue[int]()
        for rank in range(len(fleet)):
            self._idle.put_nowait(rank)
        self._abandoned = set[int]()  # ranks that may be at work all the same
        self._kept = kept  # the texts stay in Ray's store until asked for

    async def score(self, rollout: RolloutRef) -> tuple[Reward, ...]:
        group = cast("ObjectRef[Rollout]", rollout)
        reason = ""
        for _ in range(self.TRIES):
            async with self._worker() as (rank, worker):
                try:
                    await self._finish(rank, worker)
                    sample, answer = two_refs(worker.score.remote(group))
                    rewards = await self._fleet.ask(rank, answer, "score a rollout", self._call_seconds)
                except WorkerLostError as error:
                    reason = await self._replace(rank, worker, error)
                    continue
                except ray.exceptions.ObjectLostError as error:
                    raise self._fleet.recovery.rollout_lost() from error
            self._kept.offer(sample)
            self._fleet.recovery.well("reward")
            return rewards
        return await self._persist(lambda worker: worker.give_up.remote(group, reason), "give up a rollout")

    async def verifier(self, rollout: RolloutRef) -> str:
        """Who is to judge a rollout."""
        group = cast("ObjectRef[Rollout]", rollout)
        try:
            return await self._persist(lambda worker: worker.verifier.remote(group), "say who judges a rollout")
        except ray.exceptions.ObjectLostError as error:
            raise self._fleet.recovery.rollout_lost() from error

    async def samples(self) -> tuple[RolloutSample, ...]:
        """Waits for no worker: what is kept was scored before. Without those that are lost with their nodes."""
        found = await asyncio.gather(*self._kept.take(), return_exceptions=True)
        return tuple(sample for sample in found if isinstance(sample, RolloutSample))

    @asynccontextmanager
    async def _worker(self) -> AsyncIterator[tuple[int, ActorProxy[RewardWorker]]]:
        """One that has nothing to do."""
        rank = await self._idle.get()
        try:
            yield rank, self._fleet[rank]
        except asyncio.CancelledError:
            self._abandoned.add(rank)
            raise
        finally:
            self._idle.put_nowait(rank)

    async def _finish(self, rank: int, worker: ActorProxy[RewardWorker]) -> None:
        """Wait until the worker has done what nobody waits for any more: its next time limit begins then."""
        if rank in self._abandoned:
            self._abandoned.remove(rank)
            await self._fleet.ask(rank, worker.whereabouts.remote(), "finish a rollout", self._call_seconds)

    async def _persist(self, call: Callable[[ActorProxy[RewardWorker]], ObjectRef[T]], doing: str) -> T:
        """What a worker answers at once, however many must be asked."""
        while True:
            async with self._worker() as (rank, worker):
                try:
                    await self._finish(rank, worker)
                    return await self._fleet.ask(rank, call(worker), doing, self._call_seconds)
                except WorkerLostError as error:
                    await self._replace(rank, worker, error)

    async def _replace(self, rank: int, worker: ActorProxy[RewardWorker], error: WorkerLostError) -> str:
        """Returns why, once the worker's successor has started."""
        outage = await self._fleet.make_good("reward", {rank: worker}, error, lambda: self._fleet.started(rank))
        self._fleet.recovery.made_good(outage)
        return outage.what


class RewardRouter:
    """`RewardRole` where the reward model has workers of its own: they get what it judges, the others the rest."""

    def __init__(self, rules: RewardPool, model: RewardPool) -> None:
        """Pools that share what they keep."""
        self._rules, self._model = rules, model

    async def score(self, rollout: RolloutRef) -> tuple[Reward, ...]:
        by_model = await self._rules.verifier(rollout) == REWARD_MODEL
        return await (self._model if by_model else self._rules).score(rollout)

    async def samples(self) -> tuple[RolloutSample, ...]:
        return await self._rules.samples()
