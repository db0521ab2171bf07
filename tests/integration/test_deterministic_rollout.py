"""`rollout.deterministic`: bit by bit the same response in whatever company, process and order it is sampled."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from ring_ray.actors.rollout import RolloutWorker
from ring_ray.config import ClusterConfig, ConfigError, RolloutConfig, RunConfig
from ring_ray.types import Prompt, Rollout, Sequence
from tests.conftest import Run
from tests.integration.policies import CACHED_TOKENS, ROLLOUT, Policy, almost_full, starts

GROUP_SIZE, PROMPTS = 4, 4
Workers = tuple[RolloutWorker, RolloutWorker]


@pytest.fixture(scope="module")
def workers(policies: tuple[Policy, Policy], run: Run) -> Iterator[Workers]:
    """Two engines: in one, prompts come in chunks and responses are preempted; the other decodes three at a time."""
    crowded = replace(ROLLOUT, deterministic=True)
    roomy = replace(crowded, max_sequences=3, max_batched_tokens=2048, kv_cache_mib=8)
    both = tuple(
        RolloutWorker(policies[0].path, RunConfig(rollout=rollout, cluster=ClusterConfig(overlap=False)), "cpu", seed)
        for seed, rollout in enumerate((crowded, roomy))
    )
    yield both
    for worker in both:
        run(worker.close())


@pytest.fixture(scope="module")
def reference(workers: Workers, run: Run) -> list[Rollout]:
    """All at a time, in the crowded engine."""
    return run(generate(workers[0], [begin(index, start) for index, start in enumerate(starts(PROMPTS))]))


def begin(index: int, start: Sequence) -> Rollout:
    prompt = Prompt(
        index=index, id=str(index), domain="d", text="?", token_ids=start.prompt_ids, verifier="v", answer="a"
    )
    return Rollout(prompt=prompt, sequences=(start,) * GROUP_SIZE)


def started_again(rollouts: list[Rollout]) -> list[Rollout]:
    return [begin(rollout.prompt.index, Sequence.start(rollout.prompt.token_ids)) for rollout in rollouts]


async def generate(worker: RolloutWorker, rollouts: list[Rollout]) -> list[Rollout]:
    return [rollout for rollout, _ in await asyncio.gather(*(worker.generate(rollout) for rollout in rollouts))]


def assert_same(actual: list[Rollout], expected: list[Rollout]) -> None:
    for one, other in zip(actual, expected, strict=True):
        for sequence, twin in zip(one.sequences, other.sequences, strict=True):
            np.testing.assert_array_equal(sequence.response_ids, twin.response_ids)
            np.testing.assert_array_equal(sequence.logprobs.view(np.int32), twin.logprobs.view(np.int32))


def test_order_and_prefix_cache(workers: Workers, reference: list[Rollout], run: Run) -> None:
    held = sum(len(s) + len(s.prompt_ids) for rollout in reference for s in rollout.sequences)
    assert held > CACHED_TOKENS, "none was preempted"

    async def one_by_one_backwards() -> list[Rollout]:
        return [(await generate(workers[0], [rollout]))[0] for rollout in reversed(started_again(reference))]

    assert_same(run(one_by_one_backwards())[::-1], reference)


def test_another_engine_with_other_batches(workers: Workers, reference: list[Rollout], run: Run) -> None:
    assert_same(run(generate(workers[1], started_again(reference))), reference)


def test_a_resumed_response_depends_on_where_it_was_cut(workers: Workers, reference: list[Rollout], run: Run) -> None:
    crowded, roomy = workers

    async def interrupt_midway() -> list[Rollout]:
        running = asyncio.create_task(generate(crowded, started_again(reference)))
        await crowded._engine.generate(almost_full(left=20))
        await crowded.interrupt(sleep=False)
        partial = await running
        await crowded.resume(None)
        return partial

    partial = run(interrupt_midway())
    cut = [len(s) for rollout in partial for s in rollout.sequences if len(s) > 0 and not s.finished]
    assert cut, "none was cut"
    resumed = run(generate(crowded, partial))
    assert_same(run(generate(roomy, partial[::-1]))[::-1], resumed)
    for before, after in zip(partial, resumed, strict=True):
        for start, whole in zip(before.sequences, after.sequences, strict=True):
            np.testing.assert_array_equal(whole.response_ids[: len(start)], start.response_ids)


def test_every_response_has_random_numbers_of_its_own(workers: Workers, reference: list[Rollout], run: Run) -> None:
    twin = begin(PROMPTS, Sequence.start(reference[0].prompt.token_ids))
    (other,) = run(generate(workers[1], [twin]))
    responses = [tuple(s.response_ids.tolist()) for rollout in (reference[0], other) for s in rollout.sequences]
    assert len(set(responses)) == 2 * GROUP_SIZE


def test_kept_keys_and_values_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.keep_cache=false"):
        RolloutConfig(deterministic=True, keep_cache=True)
