"""Trained tokens per second of one optimizer step of `DeepSpeedEngine`, for a mixture of experts with random weights.

    python -m tests.benchmarks.bench_train [--device cpu|cuda] [--hidden 1024] [--layers 16] [--experts 32] ...
        [--activation-checkpointing] [--offload-optimizer]

Without and with the balance loss, which costs all micro-batches of a step but one a second forward pass. The sizes fit
a laptop in seconds, or on a GPU 0.9 B parameters in bfloat16; options change them. Both cases and the matmul that
measures the peak have a process of their own, so that memory is their own; each warms up first.

MFU counts what the model needs, not what the engine spends: 6 FLOP per token and active parameter, namely for every
row token the layers (of the experts, those that a token is sent to) and for every trained token the output matrix;
no attention scores, no second forward pass, no padding. The peak is that of a large square matmul in the same dtype.
Peak memory is what torch held on the GPU at a time, or on a CPU all that was resident, the libraries included.
"""

import argparse
import multiprocessing
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from ring_ray.algo.packing import row_length
from ring_ray.config import AlgoConfig, ModelConfig, TrainConfig
from ring_ray.engines.deepspeed import DeepSpeedEngine
from ring_ray.types import TokenBatch
from tests.unit.test_packing import make_batch, make_segment, make_sequence

Result = TypeVar("Result")
HEAD_DIM = 64
SIZES = {
    "cpu": {
        "dtype": "float32",
        "vocabulary": 512,
        "hidden": 128,
        "layers": 4,
        "experts": 8,
        "top_k": 2,
        "inner": 96,
        "responses": 32,
        "prompt_tokens": 16,
        "response_tokens": 64,
        "micro_batch_tokens": 1024,
        "matmul": 1024,
    },
    "cuda": {
        "dtype": "bfloat16",
        "vocabulary": 32_768,
        "hidden": 1024,
        "layers": 16,
        "experts": 32,
        "top_k": 4,
        "inner": 512,
        "responses": 128,
        "prompt_tokens": 256,
        "response_tokens": 1024,
        "micro_batch_tokens": 16_384,
        "matmul": 8192,
    },
}


@dataclass(frozen=True)
class Active:
    """Parameters that a token is multiplied with."""

    layers: float
    output: float

    @staticmethod
    def of(model: Qwen3MoeForCausalLM) -> "Active":
        used = model.config.num_experts_per_tok / model.config.num_experts
        counts = {name: p.numel() * (used if ".experts." in name else 1) for name, p in model.named_parameters()}
        output = counts.pop("lm_head.weight")
        del counts["model.embed_tokens.weight"]  # looked up
        return Active(layers=sum(counts.values()), output=output)

    def flop(self, row_tokens: int, trained_tokens: int) -> float:
        """Of the forward pass and the backward pass, which takes twice as much."""
        return 6 * (self.layers * row_tokens + self.output * trained_tokens)


def build_model(args: argparse.Namespace) -> Qwen3MoeForCausalLM:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=args.vocabulary,
        hidden_size=args.hidden,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // HEAD_DIM,
        num_key_value_heads=max(1, args.hidden // HEAD_DIM // 4),
        head_dim=HEAD_DIM,
        moe_intermediate_size=args.inner,
        num_experts=args.experts,
        num_experts_per_tok=args.top_k,
        max_position_embeddings=args.prompt_tokens + args.response_tokens,
        tie_word_embeddings=False,
    )
    with torch.device(args.device):
        return Qwen3MoeForCausalLM(config).to(getattr(torch, args.dtype))


def build_batch(args: argparse.Namespace) -> TokenBatch:
    """Responses from half to the full length, trained as a whole."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(args.response_tokens // 2, args.response_tokens + 1, args.responses)
    sequences = [make_sequence(rng, args.prompt_tokens, int(length), args.vocabulary) for length in lengths]
    return make_batch([make_segment(one, 0, len(one), float(rng.normal())) for one in sequences])


def measure_peak(args: argparse.Namespace) -> float:
    """FLOP/s of the fastest of some large matmuls."""
    size, seconds = args.matmul, []
    left, right = (torch.randn(size, size, device=args.device, dtype=getattr(torch, args.dtype)) for _ in range(2))
    for _ in range(20):
        synchronize(args.device)
        started = time.perf_counter()
        torch.mm(left, right)
        synchronize(args.device)
        seconds.append(time.perf_counter() - started)
    return float(2 * size**3 / min(seconds))


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Measurement:
    seconds: list[float]  # of each step
    micro_batches: int
    peak_gib: float  # GPU memory that torch held at a time, or on a CPU resident memory


def measure_steps(path: str, args: argparse.Namespace, balance_coefficient: float) -> Measurement:
    batch, seconds = build_batch(args), []
    engine = DeepSpeedEngine(
        path,
        model=ModelConfig(dtype=args.dtype),
        train=TrainConfig(
            learning_rate=1e-6,
            zero_stage=args.zero_stage,
            micro_batch_tokens=args.micro_batch_tokens,
            warmup_steps=0,
            activation_checkpointing=args.activation_checkpointing,
            offload_optimizer=args.offload_optimizer,
        ),
        algo=AlgoConfig(balance_coefficient=balance_coefficient),
        temperature=1.0,
        device=args.device,
    )
    metrics = engine.update(batch, None)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(args.steps):
        synchronize(args.device)
        started = time.perf_counter()
        engine.update(batch, None)
        synchronize(args.device)
        seconds.append(time.perf_counter() - started)
    if args.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10  # Linux counts KiB
    return Measurement(seconds=seconds, micro_batches=metrics.micro_batches, peak_gib=peak / 2**30)


def in_own_process(function: Callable[[], Result]) -> Result:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function).result()


def compare(args: argparse.Namespace) -> None:
    batch, gpu = build_batch(args), args.device == "cuda"
    rows, trained = sum(map(row_length, batch.segments)), batch.trained_tokens
    machine = torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {torch.get_num_threads()} threads"
    options = [name for name in ("activation_checkpointing", "offload_optimizer") if getattr(args, name)]
    print(", ".join([machine, f"torch {torch.__version__}", args.dtype, f"ZeRO {args.zero_stage}", *options]))
    with tempfile.TemporaryDirectory() as path:
        active = save_model(args, path)
        print(f"{args.responses} rows, {rows} tokens, {trained} of them trained")
        peak = in_own_process(partial(measure_peak, args))
        print(f"peak {peak / 1e12:.3f} TFLOP/s in a matmul of {args.matmul} x {args.matmul}")
        print("MFU = 6 x (active x row tokens + output x trained tokens) / seconds / peak FLOP/s")
        print("balance loss  micro-batches  s/step        (range)  tokens/s    MFU")
        for name, coefficient in (("without", 0.0), ("with", 1e-5)):
            found = in_own_process(partial(measure_steps, path, args, coefficient))
            seconds = statistics.median(found.seconds)
            spread = f"{min(found.seconds):.3f}-{max(found.seconds):.3f}"
            mfu = active.flop(rows, trained) / seconds / peak
            print(
                f"{name:<12}{found.micro_batches:>15}{seconds:>8.3f}{spread:>15}{trained / seconds:>10.0f}{mfu:>7.1%}\n"
                f"    peak memory {found.peak_gib:.2f} GiB {'of the GPU' if gpu else 'resident'}",
                flush=True,
            )


def save_model(args: argparse.Namespace, path: str) -> Active:
    model = build_model(args)
    model.save_pretrained(path)
    active, millions = Active.of(model), model.num_parameters() / 1e6
    print(f"{millions:.1f} M parameters, active {active.layers / 1e6:.1f} M + output {active.output / 1e6:.1f} M")
    return active


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=SIZES, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=5, help="that are timed")
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--activation-checkpointing", action="store_true")
    parser.add_argument("--offload-optimizer", action="store_true")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"))
    for name in SIZES["cpu"].keys() - {"dtype"}:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    device = parser.parse_known_args()[0].device
    parser.set_defaults(**SIZES[device])
    return parser.parse_args()


if __name__ == "__main__":
    compare(parse())
