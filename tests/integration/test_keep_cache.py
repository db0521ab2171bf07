"""`VllmEngine` with ``keep_cache``: sequences resume from the keys and values of old weights, and only they do."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from ring_ray.config import ModelConfig
from ring_ray.engines.vllm import VllmEngine
from ring_ray.types import Sequence
from tests.conftest import Run
from tests.integration.policies import PAGE, ROLLOUT, Policy, generate_all, interrupt_midway, load, starts


@pytest.fixture(scope="module")
def engine(policies: tuple[Policy, Policy], run: Run) -> Iterator[VllmEngine]:
    """One that resumes from the keys and values of old weights, of which it has room for everything."""
    engine = VllmEngine(
        policies[0].path, ModelConfig(), replace(ROLLOUT, keep_cache=True, kv_cache_mib=8), "cpu", seed=0
    )
    yield engine
    run(engine.close())


def test_kept_keys_and_values_are_those_of_the_old_weights(
    engine: VllmEngine, policies: tuple[Policy, Policy], run: Run
) -> None:
    old, new = policies
    version = engine.version

    async def switch() -> tuple[list[Sequence], list[Sequence], list[Sequence]]:
        await load(engine, old.weights.items(), version + 1)
        partial = await interrupt_midway(engine, starts(8), after=40)
        await load(engine, new.weights.items(), version + 2)
        return partial, await generate_all(engine, partial), await generate_all(engine, starts(8))

    partial, resumed, fresh = run(switch())
    furthest = 0.0
    for before, after in zip(partial, resumed, strict=True):
        at = len(before)
        # All computed positions of a context are in the cache, whole pages of them stay there.
        kept = (len(before.prompt_ids) + at - 1) // PAGE * PAGE if at else 0
        np.testing.assert_allclose(after.logprobs[:at], old.logprobs(after)[:at], atol=1e-4)
        np.testing.assert_allclose(after.logprobs[at:], new.logprobs_after(old, after, kept, at), atol=1e-4)
        np.testing.assert_array_equal(after.versions, np.where(np.arange(len(after)) < at, version + 1, version + 2))
        furthest = max(furthest, np.abs(after.logprobs - new.logprobs(after))[at:].max(initial=0))
    assert furthest > 0.1, "no sequence resumed from keys and values that matter"
    for sequence in fresh:
        np.testing.assert_allclose(sequence.logprobs, new.logprobs(sequence), atol=1e-4)


def test_nothing_is_kept_under_a_version_that_was_there_before(
    engine: VllmEngine, policies: tuple[Policy, Policy], run: Run
) -> None:
    for policy in policies:
        run(load(engine, policy.weights.items(), engine.version))
        for sequence in run(generate_all(engine, starts(4))):
            np.testing.assert_allclose(sequence.logprobs, policy.logprobs(sequence), atol=1e-4)


def test_an_engine_that_is_not_made_to_sleep_says_so(engine: VllmEngine, run: Run) -> None:
    with pytest.raises(RuntimeError, match="sleeps=True"):
        run(engine.interrupt(sleep=True))
