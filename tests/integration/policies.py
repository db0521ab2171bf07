"""A small random policy, in a model directory for vLLM and in transformers as the reference."""

import asyncio
import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from ring_ray.config import RolloutConfig
from ring_ray.engines.transports import ObjectStore
from ring_ray.engines.vllm import VllmEngine
from ring_ray.engines.weights import NamedTensors, parcels
from ring_ray.types import ExpertArray, FloatArray, Sequence

EOS = 2
VOCABULARY = 320
CACHED_TOKENS = 1024  # what 1 MiB holds: 2 layers x 2 heads x (32 + 32) x 4 bytes a token
PAGE = 16  # tokens
BUCKET = 1 << 20  # bytes
ROLLOUT = RolloutConfig(
    max_prompt_tokens=64, max_response_tokens=120, max_sequences=24, max_batched_tokens=48, kv_cache_mib=1
)


def build_model(seed: int, **sizes: int) -> Qwen3MoeForCausalLM:
    torch.manual_seed(seed)
    defaults = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "moe_intermediate_size": 48,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "max_position_embeddings": 512,
        "eos_token_id": EOS,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
    }
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**(defaults | sizes))).eval()


class Policy:
    """A model on disk and in transformers."""

    def __init__(self, path: Path, seed: int, **sizes: int) -> None:
        self.path = str(path)
        self.model = build_model(seed, **sizes)
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
        with torch.no_grad():
            return self.model(context(sequence)).logits[0, len(sequence.prompt_ids) - 1 : -1].double()

    def logprobs(self, sequence: Sequence, temperature: float = 1.0, top_p: float = 1.0) -> FloatArray:
        logprobs = torch.log_softmax(self.logits(sequence) / temperature, dim=-1)
        ordered, order = logprobs.exp().sort(dim=-1, descending=True)
        outside = ordered.cumsum(dim=-1) - ordered > top_p
        nucleus = logprobs.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), -torch.inf)
        drawn = torch.from_numpy(sequence.response_ids).long()[:, None]
        return nucleus.log_softmax(dim=-1).gather(1, drawn)[:, 0].float().numpy()

    def logprobs_after(self, old: "Policy", sequence: Sequence, kept: int, start: int) -> FloatArray:
        """Of the response from ``start``, where the keys and values of the first ``kept`` positions are ``old``'s."""
        ids = context(sequence)
        with torch.no_grad():
            cache = old.model(ids[:, :kept], use_cache=True).past_key_values if kept else None
            logits = self.model(ids[:, kept:], past_key_values=cache).logits[0, :-1].double()
        logprobs = logits.log_softmax(dim=-1).gather(1, ids[0, kept + 1 :, None])[:, 0].float().numpy()
        return logprobs[len(logprobs) - len(sequence) + start :]

    def routed_experts(self, sequence: Sequence) -> ExpertArray:
        """[P + T - 1, layers, k], in ascending order."""
        with torch.no_grad():
            layers = self.model(context(sequence)[:, :-1], output_router_logits=True).router_logits
        chosen = torch.stack([logits.topk(self.model.config.num_experts_per_tok).indices for logits in layers], dim=1)
        return chosen.sort(dim=-1).values.to(torch.int16).numpy()


def context(sequence: Sequence) -> torch.Tensor:
    """[1, P + T]"""
    return torch.from_numpy(np.concatenate((sequence.prompt_ids, sequence.response_ids))).long()[None]


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


def almost_full(left: int) -> Sequence:
    """A sequence that can take ``left`` tokens more."""
    tokens = np.arange(3, 3 + ROLLOUT.max_response_tokens - left, dtype=np.int32)
    return replace(
        starts(1)[0], response_ids=tokens, logprobs=np.zeros(len(tokens), np.float32), versions=np.zeros_like(tokens)
    )


async def generate_all(engine: VllmEngine, sequences: list[Sequence]) -> list[Sequence]:
    return await asyncio.gather(*(engine.generate(sequence) for sequence in sequences))


async def load(engine: VllmEngine, weights: NamedTensors, version: int) -> None:
    """Through the object store, and have the engine go on."""
    for parcel in parcels(weights, ObjectStore(), "object_store", BUCKET):
        await engine.receive(parcel)
    await engine.resume(version)


async def interrupt_midway(engine: VllmEngine, sequences: list[Sequence], after: int = 5) -> list[Sequence]:
    """Interrupt once a companion that is decoded in the same batches has sampled ``after`` tokens or ended."""
    running = asyncio.gather(*(engine.generate(sequence) for sequence in sequences))
    await engine.generate(almost_full(left=after))
    await engine.interrupt()
    return await running
