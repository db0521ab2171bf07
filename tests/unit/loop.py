"""A controller on in-process fakes, from the first step to the last."""

import asyncio
from collections import Counter

from ring_ray.config import AlgoConfig, ClusterConfig, GuardConfig, RunConfig, TrainConfig
from ring_ray.controller import Controller, MemoryMeter
from ring_ray.stream import RolloutStream
from ring_ray.sync import WeightSync
from ring_ray.types import StepMetrics, TokenBatch
from tests.unit.fakes import (
    FakeCheckpoints,
    FakePolicy,
    FakePrompts,
    FakeReference,
    FakeReward,
    FakeRollout,
    LocalBuffer,
    StepList,
)


def run(
    algo: AlgoConfig,
    *,
    steps: int = 5,
    overlap: bool = True,
    rollout: FakeRollout | None = None,
    reward: FakeReward | None = None,
    prompts: FakePrompts | None = None,
    reference: FakeReference | None = None,
    policy: FakePolicy | None = None,
    verify: bool = False,
    take_turns: bool = False,
    log: StepList | None = None,
    checkpoints: FakeCheckpoints | None = None,
    guard: GuardConfig | None = None,
) -> tuple[list[StepMetrics], FakePolicy, LocalBuffer]:
    policy, log = policy or FakePolicy(), log or StepList()
    buffer = LocalBuffer(algo)

    async def go() -> None:
        engines, rewards = rollout or FakeRollout(), reward or FakeReward()
        stream = RolloutStream(
            prompts=prompts or FakePrompts(),
            rollout=engines,
            sync=WeightSync(policy, engines, verify=verify, take_turns=take_turns),
            reward=rewards,
            buffer=buffer,
            algo=algo,
            overlap=overlap,
            max_in_flight=4 * algo.group_size,
            max_response_tokens=1000,
        )
        config = RunConfig(
            algo=algo,
            train=TrainConfig(steps=steps),
            cluster=ClusterConfig(overlap=overlap),
            guard=guard or GuardConfig(),
        )
        meters: dict[str, MemoryMeter] = {"policy": policy, "rollout": engines} if take_turns else {}
        controller = Controller(
            config,
            stream=stream,
            policy=policy,
            reference=reference,
            reward=rewards,
            meters=meters,
            checkpoints=checkpoints or FakeCheckpoints(),
            tracker=log,
        )
        await asyncio.wait_for(controller.run(), timeout=60)

    asyncio.run(go())
    return log.steps, policy, buffer


def trained_tokens(batches: list[TokenBatch]) -> Counter[tuple[int, int, int]]:
    """How often each (prompt, response, position) was trained."""
    return Counter(
        (segment.prompt_index, -int(segment.sequence.logprobs[0]), position)
        for batch in batches
        for segment in batch.segments
        for position in range(segment.start, segment.stop)
    )
