"""What routing replay is for: a rollout in bfloat16 and training agree on log-probs where routers are near ties."""

import asyncio

import pytest
import torch

from ring_ray.algo.packing import collate
from ring_ray.config import ModelConfig
from ring_ray.engines.hf import CausalPolicy, load_model
from ring_ray.engines.vllm import VllmEngine
from ring_ray.types import Segment, Sequence, TokenBatch
from tests.integration.policies import ROLLOUT, Policy, generate_all, starts


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    """Of many experts few are chosen: the last one in and the first one out are near, and weigh a lot."""
    sizes = {"num_experts": 64, "num_experts_per_tok": 2, "num_hidden_layers": 3, "moe_intermediate_size": 64}
    return Policy(tmp_path_factory.mktemp("policy"), seed=0, **sizes)


@pytest.fixture(scope="module")
def sequences(policy: Policy) -> list[Sequence]:
    async def sample() -> list[Sequence]:
        engine = VllmEngine(policy.path, ModelConfig(dtype="bfloat16"), ROLLOUT, "cpu", seed=0, replay_routing=True)
        try:
            return await generate_all(engine, starts(48))
        finally:
            await engine.close()

    return asyncio.run(sample())


def rollout_train_kl(policy: Policy, sequences: list[Sequence], dtype: str, *, replay_routing: bool) -> float:
    """Of the training policy from the one that sampled, nats per token (k3: non-negative, unbiased)."""
    segments = [
        Segment(sequence=sequence, start=0, stop=len(sequence), advantage=1.0, prompt_index=index)
        for index, sequence in enumerate(sequences)
    ]
    batch = TokenBatch(segments=tuple(segments), token_budget=sum(map(len, segments)), version=0)
    model = CausalPolicy(load_model(policy.path, ModelConfig(dtype=dtype)), 1.0, replay_routing=replay_routing)
    rows, weights = tuple(range(len(segments))), [0.0] * len(segments)
    micro_batch = collate(batch, rows, weights, None, padded=model.padded, with_routing=replay_routing)
    with torch.no_grad():
        log_ratio_N = model(*micro_batch.inputs).logprobs_N.double() - micro_batch.behaviour_logprobs_N.double()
    return float((log_ratio_N.exp() - 1 - log_ratio_N).mean())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_routing_replay_closes_the_gap_between_rollout_and_training(
    policy: Policy, sequences: list[Sequence], dtype: str
) -> None:
    without = rollout_train_kl(policy, sequences, dtype, replay_routing=False)
    replayed = rollout_train_kl(policy, sequences, dtype, replay_routing=True)
    assert without > 0.01
    assert replayed < without / 10
