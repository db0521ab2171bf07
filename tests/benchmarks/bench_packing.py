"""Seconds of one step's forward and backward passes, padded and varlen, for the quickstart's mixture of experts.

    python -m tests.benchmarks.bench_packing [--device cpu|cuda] [--hidden 128] [--layers 2] [--steps 15] ...

Both packings take turns in one process, on the same rows: those of the quickstart (60 tokens, give or take 8), and
heavy-tailed ones (log-normal, up to 2000). The padding share is that of the padded micro-batches; varlen has none.
"""

import argparse
import statistics
import tempfile
import time

import numpy as np
import torch

from ring_ray.algo.packing import MicroBatch, collate, pack, row_length
from ring_ray.config import ModelConfig
from ring_ray.engines.hf import CausalPolicy, load_model
from ring_ray.engines.tiny_model import make_tiny_model
from ring_ray.types import TokenBatch
from tests.unit.test_packing import make_batch, make_segment, make_sequence

PROMPT_TOKENS, VOCABULARY, LONGEST = 8, 256, 2000
PACKINGS = ("padded", "varlen")


def build_batch(lengths: list[int]) -> TokenBatch:
    rng = np.random.default_rng(0)
    sequences = [make_sequence(rng, PROMPT_TOKENS, length - PROMPT_TOKENS, VOCABULARY) for length in lengths]
    return make_batch([make_segment(one, 0, len(one)) for one in sequences])


def micro_batches(batch: TokenBatch, args: argparse.Namespace, padded: bool) -> list[MicroBatch]:
    (shares,) = pack(batch, 1, args.micro_batch_tokens, padded=padded)
    weights, device = [1.0] * len(batch.segments), torch.device(args.device)
    return [collate(batch, rows, weights, None, padded=padded).to(device) for rows in shares]


def step_seconds(policy: CausalPolicy, step: list[MicroBatch]) -> float:
    synchronize(policy)
    started = time.perf_counter()
    for micro_batch in step:
        outputs = policy(*micro_batch.inputs)
        (outputs.logprobs_N.sum() + outputs.entropies_N.sum()).backward()
    synchronize(policy)
    return time.perf_counter() - started


def synchronize(policy: CausalPolicy) -> None:
    if policy.model.device.type == "cuda":
        torch.cuda.synchronize()


def compare(args: argparse.Namespace) -> None:
    rng = np.random.default_rng(0)
    cases = {
        "quickstart": rng.integers(52, 69, args.responses),
        "heavy-tailed": np.minimum(rng.lognormal(4, 1, args.responses).astype(int) + 2 * PROMPT_TOKENS, LONGEST),
    }
    with tempfile.TemporaryDirectory() as path:
        make_tiny_model(path, seed=0, hidden_size=args.hidden, layers=args.layers)
        models = [load_model(path, ModelConfig(dtype=args.dtype)).to(args.device) for _ in PACKINGS]
    policies = [CausalPolicy(model, 1.0, packing=packing) for model, packing in zip(models, PACKINGS, strict=True)]
    print(f"{args.device}, {torch.get_num_threads()} threads, torch {torch.__version__}, {args.dtype}")
    print("lengths         rows  tokens  padding  micro-batches  padded s  varlen s  padded / varlen      (range)")
    for name, lengths in cases.items():
        batch = build_batch(lengths.tolist())
        steps = [micro_batches(batch, args, policy.padded) for policy in policies]
        turns = [[step_seconds(*pair) for pair in zip(policies, steps, strict=True)] for _ in range(args.steps + 1)]
        report(name, batch, steps, turns[1:])


def report(name: str, batch: TokenBatch, steps: list[list[MicroBatch]], turns: list[list[float]]) -> None:
    tokens = sum(map(row_length, batch.segments))
    padding = 1 - tokens / sum(micro_batch.inputs.token_ids_BT.numel() for micro_batch in steps[0])
    padded, varlen = (statistics.median(seconds) for seconds in zip(*turns, strict=True))
    ratios = [padded / varlen for padded, varlen in turns]
    counts = " / ".join(str(len(step)) for step in steps)
    print(
        f"{name:<13}{len(batch.segments):>7}{tokens:>8}{padding:>9.1%}{counts:>15}{padded:>10.3f}{varlen:>10.3f}"
        f"{statistics.median(ratios):>17.2f}{f'{min(ratios):.2f}-{max(ratios):.2f}':>13}",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--responses", type=int, default=140)
    parser.add_argument("--micro-batch-tokens", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=15, help="that are timed")
    compare(parser.parse_args())
