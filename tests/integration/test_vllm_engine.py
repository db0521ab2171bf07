"""`VllmEngine` on a CPU against transformers' forward of the same weights, in float32."""

import asyncio
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from ring_ray.config import ModelConfig
from ring_ray.engines.vllm import VllmEngine
from ring_ray.types import Sequence
from tests.conftest import Run
from tests.integration.policies import (
    CACHED_TOKENS,
    EOS,
    PAGE,
    ROLLOUT,
    Policy,
    almost_full,
    generate_all,
    interrupt_midway,
    load,
    starts,
)


@pytest.fixture(scope="module")
def shared_engine(policies: tuple[Policy, Policy], run: Run) -> Iterator[VllmEngine]:
    engine = VllmEngine(policies[0].path, ModelConfig(), ROLLOUT, "cpu", seed=0, replay_routing=True, sleeps=True)
    yield engine
    run(engine.close())


@pytest.fixture
def engine(shared_engine: VllmEngine, policies: tuple[Policy, Policy], run: Run) -> VllmEngine:
    """The engine with the old weights at version 0, whatever the test before left."""
    run(load(shared_engine, policies[0].weights.items(), version=0))
    return shared_engine


def assert_well_formed(sequence: Sequence) -> None:
    assert len(sequence.response_ids) == len(sequence.logprobs) == len(sequence.versions)
    assert len(sequence) <= ROLLOUT.max_response_tokens
    assert EOS not in sequence.response_ids[:-1]
    at_end = len(sequence) > 0 and sequence.response_ids[-1] == EOS
    assert (sequence.finish_reason == "stop") == at_end
    if not at_end:
        assert (sequence.finish_reason == "length") == (len(sequence) == ROLLOUT.max_response_tokens)


def test_logprobs_with_prefix_caching_chunked_prefill_and_preemption(
    engine: VllmEngine, policies: tuple[Policy, Policy], run: Run
) -> None:
    sequences = run(generate_all(engine, starts(24)))
    # All 24 run at a time and hold more than the cache can: some must be preempted.
    assert sum(len(s) + len(s.prompt_ids) for s in sequences) > 2 * CACHED_TOKENS
    assert {s.finish_reason for s in sequences} == {"stop", "length"}
    for sequence in sequences:
        assert_well_formed(sequence)
        np.testing.assert_allclose(sequence.logprobs, policies[0].logprobs(sequence), atol=1e-4)
        assert set(sequence.versions) == {0}


def test_new_weights_take_effect_in_place(engine: VllmEngine, policies: tuple[Policy, Policy], run: Run) -> None:
    old, new = policies
    run(generate_all(engine, starts(4)))  # so that the same prompts have stale keys and values in the prefix cache
    run(load(engine, new.weights.items(), version=3))
    for sequence in run(generate_all(engine, starts(4))):
        np.testing.assert_allclose(sequence.logprobs, new.logprobs(sequence), atol=1e-4)
        assert np.abs(sequence.logprobs - old.logprobs(sequence)).max() > 0.1
        assert set(sequence.versions) == {3}


def test_weights_in_bfloat16_are_loaded_as_such(engine: VllmEngine, policies: tuple[Policy, Policy], run: Run) -> None:
    new = policies[1]
    run(load(engine, ((name, tensor.bfloat16()) for name, tensor in new.weights.items()), version=1))
    for sequence in run(generate_all(engine, starts(2))):
        np.testing.assert_allclose(sequence.logprobs, new.rounded().logprobs(sequence), atol=1e-4)


def test_an_engine_that_slept_goes_on_with_new_weights(
    engine: VllmEngine, policies: tuple[Policy, Policy], run: Run
) -> None:
    old, new = policies

    async def sleep() -> tuple[list[Sequence], list[Sequence]]:
        partial = await interrupt_midway(engine, starts(6))
        await engine.interrupt(sleep=True)
        await engine.interrupt(sleep=True)
        with pytest.raises(RuntimeError, match="the weights slept"):
            await engine.resume()
        with pytest.raises(ValueError, match="no weights were received"):
            await engine.resume(version=1)
        with pytest.raises(RuntimeError, match="none were"):
            await engine.checksums()
        assert await engine.generate(partial[0]) is partial[0]
        await load(engine, new.weights.items(), version=1)
        return partial, await generate_all(engine, partial)

    partial, resumed = run(sleep())
    assert any(len(s) > 0 and not s.finished for s in partial)
    for before, after in zip(partial, resumed, strict=True):
        at = len(before)
        np.testing.assert_allclose(after.logprobs[:at], old.logprobs(after)[:at], atol=1e-4)
        np.testing.assert_allclose(after.logprobs[at:], new.logprobs(after)[at:], atol=1e-4)


def test_interrupted_sequences_resume_under_new_weights(
    engine: VllmEngine, policies: tuple[Policy, Policy], run: Run
) -> None:
    old, new = policies

    async def switch() -> tuple[list[Sequence], list[Sequence]]:
        partial = await interrupt_midway(engine, starts(12))
        await load(engine, new.weights.items(), version=1)
        return partial, await generate_all(engine, partial)

    partial, resumed = run(switch())
    assert any(len(s) > 0 and not s.finished for s in partial)
    for before, after in zip(partial, resumed, strict=True):
        assert_well_formed(before)
        assert_well_formed(after)
        assert after.finished
        at = len(before)
        np.testing.assert_array_equal(after.response_ids[:at], before.response_ids)
        np.testing.assert_array_equal(after.versions, np.arange(len(after)) >= at)
        np.testing.assert_allclose(after.logprobs[:at], old.logprobs(after)[:at], atol=1e-4)
        np.testing.assert_allclose(after.logprobs[at:], new.logprobs(after)[at:], atol=1e-4)
        # What was sampled before the switch keeps the experts that it was sampled with.
        sampled = len(after.prompt_ids) + at - 1 if at else 0
        assert after.routed_experts is not None
        found = np.sort(after.routed_experts, axis=-1)
        np.testing.assert_array_equal(found[:sampled], old.routed_experts(after)[:sampled])
        np.testing.assert_array_equal(found[sampled:], new.routed_experts(after)[sampled:])


def test_routed_experts_are_those_of_every_position(
    engine: VllmEngine, policies: tuple[Policy, Policy], run: Run
) -> None:
    """Also where they come from the prefix cache, as for responses to one prompt, and after preemption."""
    group = run(generate_all(engine, [starts(2)[1]] * 4))
    for sequence in [*group, *run(generate_all(engine, starts(24)))]:
        assert sequence.routed_experts is not None
        assert sequence.routed_experts.dtype == np.int16
        np.testing.assert_array_equal(np.sort(sequence.routed_experts, axis=-1), policies[0].routed_experts(sequence))


def test_several_interruptions_lose_no_token(engine: VllmEngine, policies: tuple[Policy, Policy], run: Run) -> None:
    async def stutter() -> list[list[Sequence]]:
        history = [starts(6)]
        for _ in range(4):
            history.append(await interrupt_midway(engine, history[-1]))
            await engine.resume()
        return [*history, await generate_all(engine, history[-1])]

    history = run(stutter())
    assert len({sum(map(len, state)) for state in history}) == len(history), "an interruption came before any token"
    for steps in zip(*history, strict=True):
        for before, after in itertools.pairwise(steps):
            assert len(after) >= len(before)
            np.testing.assert_array_equal(after.response_ids[: len(before)], before.response_ids)
        assert_well_formed(steps[-1])
        assert steps[-1].finished
        np.testing.assert_allclose(steps[-1].logprobs, policies[0].logprobs(steps[-1]), atol=1e-4)
        assert steps[-1].routed_experts is not None
        np.testing.assert_array_equal(np.sort(steps[-1].routed_experts, axis=-1), policies[0].routed_experts(steps[-1]))


def test_interruption_returns_what_preempted_sequences_had(
    engine: VllmEngine, policies: tuple[Policy, Policy], run: Run
) -> None:
    partial = run(interrupt_midway(engine, starts(24), after=60))
    begun = [s for s in partial if not s.finished and len(s) > 0]
    pages_shared = (len(begun) // 2) * 2 * PAGE  # half of the prompts begin with the same two pages
    assert sum(len(s) + len(s.prompt_ids) for s in begun) - pages_shared > CACHED_TOKENS, "all of it fits the cache"
    for sequence in partial:
        np.testing.assert_allclose(sequence.logprobs, policies[0].logprobs(sequence), atol=1e-4)


def test_interruption_with_nothing_running(engine: VllmEngine, run: Run) -> None:
    async def idle() -> tuple[Sequence, Sequence, Sequence]:
        await engine.interrupt()
        await engine.interrupt()
        sequence = starts(1)[0]
        during = await engine.generate(sequence)
        await engine.resume()
        await engine.resume()
        return sequence, during, await engine.generate(sequence)

    sequence, during, after = run(idle())
    assert during is sequence
    assert after.finished


def test_interruption_at_the_moment_of_submission(engine: VllmEngine, run: Run) -> None:
    async def race() -> list[list[Sequence]]:
        states = []
        for yields in range(8):
            running = asyncio.gather(*(engine.generate(sequence) for sequence in starts(4)))
            for _ in range(yields):
                await asyncio.sleep(0)  # lets each `generate` take one more step of its submission
            await engine.interrupt()
            states.append(await running)
            await engine.resume()
        return states

    for state in run(race()):
        for sequence in state:
            assert_well_formed(sequence)


def test_sequence_at_its_limit_is_finished(engine: VllmEngine, run: Run) -> None:
    full = run(engine.generate(almost_full(left=0)))
    assert (full.finish_reason, len(full)) == ("length", ROLLOUT.max_response_tokens)
    one_more = run(engine.generate(almost_full(left=1)))
    assert one_more.finished
    assert len(one_more) == ROLLOUT.max_response_tokens


def test_cancelled_generate_frees_the_engine(engine: VllmEngine, run: Run) -> None:
    async def cancel() -> Sequence:
        task = asyncio.create_task(engine.generate(starts(1)[0]))
        await engine.generate(almost_full(left=2))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.interrupt()
        await engine.resume()
        return await engine.generate(starts(1)[0])

    assert run(cancel()).finished


def test_too_long_a_prompt_and_a_wrong_directory_are_named(engine: VllmEngine, tmp_path: Path, run: Run) -> None:
    prompt = np.full(ROLLOUT.max_prompt_tokens + 1, 5, np.int32)
    with pytest.raises(ValueError, match=r"65 tokens: rollout\.max_prompt_tokens=64"):
        run(engine.generate(Sequence.start(prompt)))
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        VllmEngine(str(tmp_path), ModelConfig(), ROLLOUT, "cpu", seed=0)


def test_temperature_top_p_and_close(policies: tuple[Policy, Policy]) -> None:
    async def use(engine: VllmEngine) -> list[Sequence]:
        sequences = await generate_all(engine, starts(6))
        await engine.close()
        await engine.close()
        return sequences

    others = multiprocessing.active_children()
    engine = VllmEngine(policies[0].path, ModelConfig(), replace(ROLLOUT, temperature=0.7, top_p=0.9), "cpu", seed=0)
    started = [process for process in multiprocessing.active_children() if process not in others]
    assert started
    for sequence in asyncio.run(use(engine)):
        np.testing.assert_allclose(
            sequence.logprobs, policies[0].logprobs(sequence, temperature=0.7, top_p=0.9), atol=1e-4
        )
    assert not any(process.is_alive() for process in started)


KILLED = """
import asyncio, multiprocessing, os, sys
from ring_ray.config import ModelConfig
from ring_ray.engines.vllm import VllmEngine
from tests.integration.policies import ROLLOUT, starts

async def main():
    engine = VllmEngine(sys.argv[1], ModelConfig(), ROLLOUT, "cpu", seed=0)
    await engine.generate(starts(1)[0])
    print(multiprocessing.active_children()[0].pid, flush=True)
    os.kill(os.getpid(), 9)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_engine_process_ends_with_a_killed_parent(policies: tuple[Policy, Policy], tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run(
        [sys.executable, str(script), policies[0].path], stdout=subprocess.PIPE, text=True, env=environment, check=False
    )
    assert result.returncode == -signal.SIGKILL
    pid = int(result.stdout.splitlines()[-1])
    if psutil.pid_exists(pid):
        psutil.Process(pid).wait(timeout=60)
