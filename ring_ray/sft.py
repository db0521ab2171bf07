"""The cold start: supervised steps on demonstrations until reinforcement learning has a signal.

RL learns from groups in which some responses are right and some are wrong. A model that is never right gives none, and
a model trained on demonstrations for too long has little entropy left to explore with, so the cold start stops at the
first probe that reaches the target accuracy.
"""

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice

import numpy as np

from ring_ray.config import AlgoConfig, SftConfig, TrainConfig
from ring_ray.evaluation import Accuracy
from ring_ray.health import SkippedSteps
from ring_ray.roles import BatchRef, PolicyRole
from ring_ray.types import IntArray, Prompt, Segment, Sequence, TokenBatch

Demonstration = tuple[Prompt, IntArray]  # a prompt and the response [T] to imitate, end-of-sequence token included


def likelihood_objective(algo: AlgoConfig) -> AlgoConfig:
    """The same training step with log-likelihood in place of the clipped policy gradient."""
    return AlgoConfig(
        name="sft",
        objective="likelihood",
        balance_coefficient=algo.balance_coefficient,
        z_coefficient=algo.z_coefficient,
        entropy_coefficient=0.0,
    )


def as_batch(demonstrations: list[Demonstration]) -> TokenBatch:
    """Demonstrations as whole segments; the budget is their total length, so the loss is a mean over tokens."""

    def segment(index: int, prompt: Prompt, response_ids: IntArray) -> Segment:
        length = len(response_ids)
        sequence = Sequence(
            prompt_ids=prompt.token_ids,
            response_ids=response_ids,
            logprobs=np.zeros(length, np.float32),
            versions=np.zeros(length, np.int32),
            finish_reason="stop",
        )
        return Segment(sequence=sequence, start=0, stop=length, advantage=1.0, prompt_index=index)

    segments = tuple(segment(index, *demonstration) for index, demonstration in enumerate(demonstrations))
    return TokenBatch(segments=segments, token_budget=sum(map(len, segments)), version=0)


async def cold_start(
    model_path: str,
    *,
    sft: SftConfig,
    train: TrainConfig,
    algo: AlgoConfig,
    demonstrations: Iterator[Demonstration],
    policy: PolicyRole,
    skipped: SkippedSteps,
    probe: Callable[[], Awaitable[Accuracy]],
    note: Callable[[Mapping[str, float]], None],
) -> int | None:
    """Train until ``probe``, the accuracy of the current weights, reaches ``sft.target_accuracy``.

    Returns the steps taken, or None where ``sft.max_steps`` were not enough. ``note`` is told of every step.
    """
    schedule = replace(train, learning_rate=sft.learning_rate, steps=sft.max_steps)
    await policy.start(model_path, schedule, likelihood_objective(algo))
    for step in range(1, sft.max_steps + 1):
        batch = BatchRef(as_batch(list(islice(demonstrations, sft.batch_size))))
        update = await policy.update(batch, None)
        await skipped.observe(step, update, batch, None)
        numbers = {"sft/step": step, "sft/loss": update.loss, "sft/entropy": update.entropy}
        if step >= sft.probe_after and step % sft.probe_every == 0:
            accuracy = await probe()
            note(numbers | {"sft/accuracy": accuracy.value})
            if accuracy.value >= sft.target_accuracy:
                return step
        else:
            note(numbers)
    return None
