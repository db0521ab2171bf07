"""A small random policy, in a model directory for vLLM and in transformers as the reference."""

import asyncio
import copy
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from ring_ray.config import RolloutConfig
from ring_ray.engines.vllm import VllmEngine
from ring_ray.types import FloatArray, Sequence

EOS = 2
VOCABULARY = 320
CACHED_TOKENS = 1024  # what 1 MiB holds: 2 layers x 2 heads x (32 + 32) x 4 bytes a token
ROLLOUT = RolloutConfig(
    max_prompt_tokens=64, max_response_tokens=120, max_sequences=24, max_batched_tokens=48, kv_cache_mib=1
)


def build_model(seed: int) -> Qwen3MoeForCausalLM:
    torch.manual_seed(seed)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        moe_intermediate_size=48,
        num_experts=8,
        num_experts_per_tok=2,
        norm_topk_prob=True,
        max_position_embeddings=512,
        eos_token_id=EOS,
        initializer_range=0.3,
        tie_word_embeddings=False,
    )
    return Qwen3MoeForCausalLM(config).eval()


class Policy:
    """A model on disk and in transformers."""

    def __init__(self, path: Path, seed: int) -> None:
        self.path = str(path)
        self.model = build_model(seed)
        self.model.save_pretrained(path)
        self.weights = load_file(path / "model.safetensors")

    def rounded(self) -> "Policy":
        """With every weight as bfloat16 has it."""
        policy = copy.copy(self)
        policy.model = copy.deepcopy(self.model)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.copy_(parameter.bfloat16())
        return policy

    def logits(self, sequence: Sequence) -> torch.Tensor:
        """[T, vocabulary] from which each response token was drawn."""
        ids = torch.from_numpy(np.concatenate((sequence.prompt_ids, sequence.response_ids))).long()
        with torch.no_grad():
            return self.model(ids[None]).logits[0, len(sequence.prompt_ids) - 1 : -1].double()

    def logprobs(self, sequence: Sequence, temperature: float = 1.0, top_p: float = 1.0) -> FloatArray:
        logprobs = torch.log_softmax(self.logits(sequence) / temperature, dim=-1)
        ordered, order = logprobs.exp().sort(dim=-1, descending=True)
        outside = ordered.cumsum(dim=-1) - ordered > top_p
        nucleus = logprobs.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
        drawn = torch.from_numpy(sequence.response_ids).long()[:, None]
        return nucleus.log_softmax(dim=-1).gather(1, drawn)[:, 0].float().numpy()


def starts(count: int, seed: int = 0) -> list[Sequence]:
    """Prompts of mixed lengths, half of which share more than a page of tokens."""
    rng = np.random.default_rng(seed)
    prefix = rng.integers(3, VOCABULARY, 40)
    lengths = rng.integers(1, 24, count)
    prompts = [rng.integers(3, VOCABULARY, length) for length in lengths]
    return [
        Sequence.start(np.concatenate((prefix[: 40 * (i % 2)], prompt)).astype(np.int32))
        for i, prompt in enumerate(prompts)
    ]


async def generate_all(engine: VllmEngine, sequences: list[Sequence]) -> list[Sequence]:
    return await asyncio.gather(*(engine.generate(sequence) for sequence in sequences))
