"""Trained response tokens per second of whole runs: `jobs/train.py` against GRPOTrainer of TRL, on this machine's CPUs.

    python -m tests.benchmarks.bench_trl [--rounds 3] [--steps 8] [--hidden 128] [--layers 2] [--case even]

The first call installs TRL into a virtual environment of its own, `.benchmarks/trl` (1.5 GB). Both sides train the same
Qwen3-MoE model on the same prompts with the same verifier, in fp32 with AdamW: one optimizer step a batch, K responses
a prompt, temperature 1, no reference policy, no load-balance loss. They take turns, because a machine's speed drifts;
the first steps of a run are not counted. TRL runs in several settings, of which the fastest counts. TRL's batch is
`PROMPTS` whole groups and on-policy; ring_ray's token budget is the mean of what such a batch holds, and it samples
while it trains.

Left out of TRL's settings, each slower by far on a CPU: ``experts_implementation="batched_mm"``, which copies an
expert's weights for every token, and continuous batching. vLLM's modes need a GPU.

Lengths are a property of the model, so both sides must draw them alike. Tokens are of two kinds, short and long, and a
token is followed by one of its kind, or ends the response with probability 1/mean of that kind: a mixture of two
geometric distributions, cut at the limit. The learning rate is too small to change it.
"""

import argparse
import asyncio
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence as Many
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from ring_ray.config import DataConfig, ModelConfig, RolloutConfig
from ring_ray.data.sums import generate_sums
from ring_ray.data.tokenizer import load_tokenizer, render
from ring_ray.engines.tiny_model import make_tiny_model
from ring_ray.types import Sequence
from tests.benchmarks.trl_run import REQUIREMENTS, Settings, Setup, call, train
from tests.peers import environment

PROMPTS, GROUP_SIZE = 32, 8  # of one step of TRL
LEARNING_RATE, ENTROPY_COEFFICIENT, MAX_GRAD_NORM = 1e-8, 5e-4, 1.0
WARM_UP = 2  # steps at the start that are not counted
KIND_TOKENS = 128  # of each kind, together the 256 bytes of the vocabulary
NEVER = -30.0  # a logit
START, SHORT, LONG = range(3)  # dimensions of the residual stream


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    name: str
    short_mean: float  # tokens; inf for responses that end at the limit only
    long_mean: float
    long_share: float
    max_response_tokens: int
    max_staleness: int
    max_sequences: int  # that ring_ray decodes at a time; TRL decodes a whole batch

    @property
    def mean_length(self) -> float:
        """Of a geometric length with end probability 1/mean, cut at n: mean x (1 - (1 - 1/mean)^n)."""

        def cut(mean: float) -> float:
            n = self.max_response_tokens
            return n if math.isinf(mean) else mean * (1 - (1 - 1 / mean) ** n)

        return (1 - self.long_share) * cut(self.short_mean) + self.long_share * cut(self.long_mean)

    @property
    def token_budget(self) -> int:
        return round(PROMPTS * GROUP_SIZE * self.mean_length)


CASES = (
    Case(
        name="even",
        short_mean=math.inf,
        long_mean=math.inf,
        long_share=0.05,
        max_response_tokens=48,
        max_staleness=1,
        max_sequences=PROMPTS * GROUP_SIZE,
    ),
    # The longest responses are sampled for several steps: more staleness than that, or they would be evicted. Decoding
    # fewer at a time makes each of them faster.
    Case(
        name="heavy-tailed",
        short_mean=24,
        long_mean=400,
        long_share=0.05,
        max_response_tokens=384,
        max_staleness=4,
        max_sequences=64,
    ),
)
SETUPS = (
    Setup(processes=1, threads=2, micro_batches=2, experts="eager"),
    Setup(processes=1, threads=2, micro_batches=2, experts="grouped_mm"),
    Setup(processes=1, threads=1, micro_batches=2, experts="grouped_mm"),
    Setup(processes=2, threads=1, micro_batches=1, experts="eager"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    tokens_per_second: float
    note: str  # where the time went
    lengths: Many[int] = ()


def shape_lengths(model: PreTrainedModel, case: Case) -> None:
    """Give responses the lengths of ``case``.

    Three dimensions of the residual stream hold the kind of a token, with length 1 against about 0.2 of all others, and
    no layer reads or writes them. The last norm keeps that length, so that the head's columns are logits by kind.
    """
    short, long = slice(0, KIND_TOKENS), slice(KIND_TOKENS, 2 * KIND_TOKENS)
    special = slice(2 * KIND_TOKENS, None)
    embedding_VD, head_VD = model.model.embed_tokens.weight, model.lm_head.weight
    with torch.no_grad():
        embedding_VD[:, :3], head_VD[:, :3] = 0, 0
        head_VD[special, :3] = NEVER
        embedding_VD[special, START] = 1
        head_VD[long, START] = math.log(case.long_share / (1 - case.long_share))
        for kind, own, other, mean in ((SHORT, short, long, case.short_mean), (LONG, long, short, case.long_mean)):
            embedding_VD[own, kind] = 1
            head_VD[other, kind] = NEVER
            if math.isfinite(mean):
                head_VD[model.config.eos_token_id, kind] = math.log(KIND_TOKENS / (mean - 1))
        for layer in model.model.layers:
            layer.input_layernorm.weight[:3] = 0
            layer.post_attention_layernorm.weight[:3] = 0
            layer.self_attn.o_proj.weight[:3] = 0
            layer.mlp.experts.down_proj[:, :3] = 0
        model.model.norm.weight[:3] = 1 / math.sqrt(model.config.hidden_size)


def make_model(path: str, case: Case, args: argparse.Namespace) -> None:
    make_tiny_model(path, 0, hidden_size=args.hidden, layers=args.layers)
    model = AutoModelForCausalLM.from_pretrained(path)
    shape_lengths(model, case)
    model.save_pretrained(path)


def write_prompts(path: str) -> None:
    rows = (
        {"prompt": row.text, "answer": row.answer, "verifier": row.verifier} for row in generate_sums(DataConfig(), 0)
    )
    Path(path).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def run_ring_ray(case: Case, inputs: Path, output: Path, steps: int) -> Run:
    overrides = {
        "data": "jsonl",
        "data.path": inputs / "sums.jsonl",
        "model.path": inputs / case.name,
        "sft.enabled": "never",
        "evaluation.prompts": GROUP_SIZE,
        "tracking.wandb": "disabled",
        "algo.token_budget": case.token_budget,
        "algo.group_size": GROUP_SIZE,
        "algo.max_staleness": case.max_staleness,
        "algo.entropy_coefficient": ENTROPY_COEFFICIENT,
        "algo.kl_coefficient": 0,
        "algo.balance_coefficient": 0,
        "algo.z_coefficient": 0,
        "rollout.max_response_tokens": case.max_response_tokens,
        "rollout.max_sequences": case.max_sequences,
        "rollout.kv_cache_mib": 256,
        "train.steps": steps,
        "train.learning_rate": LEARNING_RATE,
        "train.warmup_steps": 0,
        "train.max_grad_norm": MAX_GRAD_NORM,
        "train.micro_batch_tokens": 8192,
        "hydra.run.dir": output,
    }
    arguments = [f"{key}={value}" for key, value in overrides.items()]
    call([sys.executable, "jobs/train.py", *arguments], output / "log.txt", threads=1)
    return ring_ray_result(output / "metrics.jsonl")


def ring_ray_result(path: Path) -> Run:
    """Phases are means of a step; eviction and generation are shares of what was trained in the same steps."""
    steps = [json.loads(line) for line in path.read_text().splitlines()]
    before, counted = steps[WARM_UP - 1], steps[WARM_UP:]

    def total(name: str) -> float:
        return sum(step[name] for step in counted)

    trained, seconds = total("c3po/trained_tokens"), total("perf/step_seconds")
    means = {name: total(f"perf/{name}_seconds") / len(counted) for name in ("wait", "update", "sync")}
    evicted = (counted[-1]["ledger/evicted"] - before["ledger/evicted"]) / trained
    notes = (
        *(f"{name} {seconds:.2f} s" for name, seconds in means.items()),
        f"generated {total('rollout/generated_tokens') / trained:.2f}, evicted {evicted:.2f} of trained",
        f"staleness {total('c3po/staleness_mean') / len(counted):.2f}",
        f"mean length {total('rollout/response_length_mean') / len(counted):.1f}",
    )
    return Run(tokens_per_second=trained / seconds, note=", ".join(notes))


def run_trl(case: Case, setup: Setup, inputs: Path, output: Path, steps: int) -> Run:
    settings = Settings(
        model=str(inputs / case.name),
        data=str(inputs / "sums.jsonl"),
        output=str(output),
        steps=steps,
        prompts=PROMPTS,
        group_size=GROUP_SIZE,
        max_response_tokens=case.max_response_tokens,
        learning_rate=LEARNING_RATE,
        entropy_coefficient=ENTROPY_COEFFICIENT,
        max_grad_norm=MAX_GRAD_NORM,
        setup=setup,
    )
    record = train(settings)
    seconds = record.ends[-1] - record.ends[WARM_UP - 1]
    return Run(
        tokens_per_second=sum(map(sum, record.lengths[WARM_UP:])) / seconds,
        note=f"{seconds / (steps - WARM_UP):.2f} s a step",
        lengths=[length for step in record.lengths for length in step],
    )


def sample_lengths(model_path: str, case: Case, responses: int) -> list[int]:
    """What ring_ray's engine draws for prompts of the same data: its runs report means only."""
    from ring_ray.engines.vllm import VllmEngine  # it must not be imported in the process that starts others

    rollout = RolloutConfig(max_response_tokens=case.max_response_tokens, kv_cache_mib=256)
    tokenizer = load_tokenizer(model_path, ModelConfig())
    prompts = [render(row, tokenizer, rollout.max_prompt_tokens) for row in generate_sums(DataConfig(), 0)[:responses]]

    async def sample() -> list[int]:
        engine = VllmEngine(model_path, ModelConfig(), rollout, "cpu", seed=0)
        try:
            return [len(s) for s in await asyncio.gather(*(engine.generate(Sequence.start(ids)) for ids in prompts))]
        finally:
            await engine.close()

    return asyncio.run(sample())


def describe(lengths: Many[int]) -> str:
    p50, p99 = np.percentile(lengths, (50, 99))
    return f"mean {np.mean(lengths):.1f}, p50 {p50:.0f}, p99 {p99:.0f}, max {max(lengths)} of {len(lengths)}"


def compare(case: Case, inputs: Path, args: argparse.Namespace) -> None:
    make_model(str(inputs / case.name), case, args)
    print(
        f"{case.name}: {PROMPTS} x {GROUP_SIZE} responses, limit {case.max_response_tokens}, budget {case.token_budget}"
    )
    runs: dict[str, list[Run]] = {"ring_ray": []} | {setup.name: [] for setup in SETUPS}
    for round_ in range(args.rounds):
        for name, setup in (("ring_ray", None), *((setup.name, setup) for setup in SETUPS)):
            output = Path(tempfile.mkdtemp(dir=inputs))
            if setup is None:
                run = run_ring_ray(case, inputs, output, args.steps)
            else:
                run = run_trl(case, setup, inputs, output, args.steps)
            runs[name].append(run)
            load = os.getloadavg()[0]
            print(
                f"  round {round_ + 1}, load {load:.1f}: {name:<50}{run.tokens_per_second:>7.0f}  {run.note}",
                flush=True,
            )
    report(case, inputs, runs)


def report(case: Case, inputs: Path, runs: dict[str, list[Run]]) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        sampled = pool.submit(sample_lengths, str(inputs / case.name), case, 1024).result()
    print(f"  lengths, ring_ray: {describe(sampled)}")
    print(f"  lengths, TRL:      {describe([n for found in runs.values() for run in found for n in run.lengths])}")
    medians = {name: statistics.median(run.tokens_per_second for run in found) for name, found in runs.items()}
    print(f"  {'trained tokens/s':<50} median          range  ring_ray : it")
    for name, found in runs.items():
        speeds = [run.tokens_per_second for run in found]
        spread = f"{min(speeds):.0f}-{max(speeds):.0f}"
        print(f"  {name:<50}{medians[name]:>7.0f}{spread:>15}{medians['ring_ray'] / medians[name]:>15.2f}")
    fastest = max((name for name in runs if name != "ring_ray"), key=medians.__getitem__)
    print(f"  ring_ray : the fastest ({fastest}) = {medians['ring_ray'] / medians[fastest]:.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8, help=f"of a run, the first {WARM_UP} of them not counted")
    parser.add_argument("--hidden", type=int, default=128, help="width of the model, a multiple of 32")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--case", choices=[case.name for case in CASES], help="only this one")
    args = parser.parse_args()
    environment(REQUIREMENTS)
    with tempfile.TemporaryDirectory() as path:
        write_prompts(f"{path}/sums.jsonl")
        for case in CASES:
            if args.case in (None, case.name):
                compare(case, Path(path), args)


if __name__ == "__main__":
    main()
