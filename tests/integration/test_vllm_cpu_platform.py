"""vLLM's engine on a CPU beyond one rank that is always awake: tensor parallelism, and memory given back."""

import asyncio
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
from transformers import Qwen3Config, Qwen3ForCausalLM

from ring_ray.config import ModelConfig
from ring_ray.engines.transports import ObjectStore
from ring_ray.engines.vllm import VllmEngine
from ring_ray.engines.weights import parcels
from ring_ray.types import Sequence
from tests.conftest import Run
from tests.integration.policies import BUCKET, CACHED_TOKENS, EOS, ROLLOUT, VOCABULARY, Policy, generate_all, starts

MIB = 1 << 20
TWO_RANKS = replace(ROLLOUT, tensor_parallel=2)


@pytest.fixture
def run() -> Iterator[Run]:
    """As for all modules, but with a loop for each test: engines are killed here."""
    with asyncio.Runner() as runner:
        yield runner.run


class DensePolicy(Policy):
    """Dense, and with fewer key/value heads than there are ranks."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        config = Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=512,
            eos_token_id=EOS,
            initializer_range=0.3,
        )
        self.model = Qwen3ForCausalLM(config).eval()
        self.model.save_pretrained(path)


def engine_processes() -> list[psutil.Process]:
    """The engine core and its ranks."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.name().startswith("VLLM::")]


def assert_ended(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert not alive


def test_mixture_of_experts_on_two_ranks(tmp_path: Path, run: Run) -> None:
    policy = Policy(tmp_path, seed=0)
    engine = VllmEngine(policy.path, ModelConfig(), TWO_RANKS, "cpu", seed=0, replay_routing=True)
    processes = engine_processes()
    assert len(processes) == 3
    sequences = run(generate_all(engine, starts(24)))
    # Each rank caches one of the two key/value heads, so twice as many tokens.
    assert sum(len(s) + len(s.prompt_ids) for s in sequences) > 2 * CACHED_TOKENS, "none was preempted"
    for sequence in sequences:
        np.testing.assert_allclose(sequence.logprobs, policy.logprobs(sequence), atol=1e-4)
        assert sequence.routed_experts is not None
        np.testing.assert_array_equal(np.sort(sequence.routed_experts, axis=-1), policy.routed_experts(sequence))
    run(engine.close())
    assert_ended(processes)


def test_replicated_heads_and_a_killed_rank(tmp_path: Path, run: Run) -> None:
    policy = DensePolicy(tmp_path)
    engine = VllmEngine(policy.path, ModelConfig(), TWO_RANKS, "cpu", seed=0)
    for sequence in run(generate_all(engine, starts(6))):
        np.testing.assert_allclose(sequence.logprobs, policy.logprobs(sequence), atol=1e-4)
    processes = engine_processes()
    rank = next(process for process in processes if "TP1" in process.name())
    rank.kill()
    assert_ended(processes)
    with pytest.raises(Exception, match="EngineCore"):
        run(generate_all(engine, starts(1)))


KILLED = """
import asyncio, os, sys
from dataclasses import replace
from ring_ray.config import ModelConfig
from ring_ray.engines.vllm import VllmEngine
from tests.integration.policies import generate_all, starts
from tests.integration.test_vllm_cpu_platform import TWO_RANKS, engine_processes

async def main():
    engine = VllmEngine(sys.argv[1], ModelConfig(), TWO_RANKS, "cpu", seed=0)
    await engine.generate(starts(1)[0])
    print(*(process.pid for process in engine_processes()), flush=True)
    os.kill(os.getpid(), 9)

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_ranks_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    policy = Policy(tmp_path / "policy", seed=0)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script), policy.path]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=False)
    assert result.returncode == -signal.SIGKILL
    pids = [int(pid) for pid in result.stdout.splitlines()[-1].split()]
    assert len(pids) == 3
    assert_ended([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)])


def test_memory_is_given_back_and_taken_again(tmp_path: Path, run: Run) -> None:
    large = {"hidden_size": 256, "num_hidden_layers": 4, "moe_intermediate_size": 512, "initializer_range": 0.1}
    old, new = Policy(tmp_path / "old", seed=0, **large), Policy(tmp_path / "new", seed=1, **large)
    weights_mib = sum(parameter.nbytes for parameter in old.model.parameters()) / MIB
    cache_mib = 48
    assert weights_mib > 48
    engine = VllmEngine(old.path, ModelConfig(), replace(ROLLOUT, kv_cache_mib=cache_mib), "cpu", seed=0, sleeps=True)
    (process,) = engine_processes()

    def assert_right(sequences: list[Sequence], policy: Policy) -> None:
        for sequence in sequences:
            np.testing.assert_allclose(sequence.logprobs, policy.logprobs(sequence), atol=1e-4)

    async def freed_mib(level: int) -> float:
        awake = process.memory_info().rss
        await engine._llm.sleep(level=level)
        return (awake - process.memory_info().rss) / MIB

    async def use() -> None:
        # The first cache takes no memory before it is used, all others are there in full.
        await freed_mib(level=1)
        await engine._llm.wake_up(["kv_cache"])
        await engine._llm.wake_up(["weights"])
        assert_right(await generate_all(engine, starts(4)), old)

        assert 0.9 * cache_mib < await freed_mib(level=1) < cache_mib + 0.1 * weights_mib
        await engine._llm.wake_up()
        assert_right(await generate_all(engine, starts(4)), old)

        assert await freed_mib(level=2) > 0.9 * (weights_mib + cache_mib)
        await engine._llm.wake_up(["weights"])
        for parcel in parcels(new.weights.items(), ObjectStore(), "object_store", BUCKET):
            await engine.receive(parcel)
        await engine._llm.wake_up(["kv_cache"])
        await engine.resume(version=1)
        assert_right(await generate_all(engine, starts(4)), new)

    run(use())
    run(engine.close())
