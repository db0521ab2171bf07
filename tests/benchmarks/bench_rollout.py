"""Tokens per second of `VllmEngine` against transformers' generate, in the same run.

    python -m tests.benchmarks.bench_rollout [--size tiny|20m] [--rounds 7] [--tensor-parallel 1] [--device cpu|cuda]

The two take turns, because a machine's speed drifts. On a CPU in float32, each process of a model with one thread; on a
GPU in bfloat16.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from dataclasses import dataclass

import numpy as np
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from ring_ray.config import Device, ModelConfig, RolloutConfig
from ring_ray.engines.vllm import VllmEngine
from ring_ray.types import Sequence

BATCH, PROMPT_TOKENS, RESPONSE_TOKENS, VOCABULARY = 64, 20, 64, 320


@dataclass(frozen=True)
class Size:
    hidden: int
    layers: int
    inner: int


SIZES = {"tiny": Size(hidden=128, layers=4, inner=96), "20m": Size(hidden=384, layers=8, inner=256)}


def build_model(size: Size) -> Qwen3MoeForCausalLM:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=VOCABULARY,
        hidden_size=size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 32,
        num_key_value_heads=size.hidden // 64,
        head_dim=32,
        moe_intermediate_size=size.inner,
        num_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=256,
        eos_token_id=None,  # every response has the same length
        tie_word_embeddings=False,
    )
    return Qwen3MoeForCausalLM(config).eval()


def with_transformers(model: Qwen3MoeForCausalLM, prompts_BP: np.ndarray) -> int:
    """Tokens generated."""
    ids_BP = torch.from_numpy(prompts_BP).to(model.device)
    with torch.inference_mode():
        out = model.generate(
            ids_BP, attention_mask=torch.ones_like(ids_BP), do_sample=True, top_k=0, max_new_tokens=RESPONSE_TOKENS
        )
    return int(out.numel() - ids_BP.numel())


async def with_vllm(engine: VllmEngine, prompts_BP: np.ndarray) -> int:
    """Tokens generated."""
    starts = [Sequence.start(prompt.astype(np.int32)) for prompt in prompts_BP]
    return sum(map(len, await asyncio.gather(*(engine.generate(start) for start in starts))))


async def compare(size: Size, rounds: int, tensor_parallel: int, device: Device) -> None:
    dtype = "bfloat16" if device == "cuda" else "float32"
    model = build_model(size).to(device, getattr(torch, dtype))
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {BATCH} x {RESPONSE_TOKENS} tokens")
    rng = np.random.default_rng(0)
    speeds: dict[str, list[float]] = {"vllm": [], "transformers": []}
    with tempfile.TemporaryDirectory() as path:
        model.save_pretrained(path)
        rollout = RolloutConfig(
            max_prompt_tokens=PROMPT_TOKENS, max_response_tokens=RESPONSE_TOKENS, tensor_parallel=tensor_parallel
        )
        engine = VllmEngine(path, ModelConfig(dtype=dtype), rollout, device, seed=0)
        try:
            for _ in range(rounds + 1):
                prompts_BP = rng.integers(3, VOCABULARY, (BATCH, PROMPT_TOKENS))
                started = time.perf_counter()
                tokens = await with_vllm(engine, prompts_BP)
                between = time.perf_counter()
                speeds["vllm"].append(tokens / (between - started))
                tokens = with_transformers(model, prompts_BP)
                speeds["transformers"].append(tokens / (time.perf_counter() - between))
        finally:
            await engine.close()
    # The first round compiles and warms up.
    vllm, transformers = (statistics.median(values[1:]) for values in speeds.values())
    print(f"vllm {vllm:.0f} tokens/s, transformers {transformers:.0f} tokens/s, ratio {vllm / transformers:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    asyncio.run(compare(SIZES[arguments.size], arguments.rounds, arguments.tensor_parallel, arguments.device))


if __name__ == "__main__":
    main()
