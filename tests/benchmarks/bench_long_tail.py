"""What carry-over is worth when few responses are very long: the real engines, on this machine's cores.

    python -m tests.benchmarks.bench_long_tail [--steps 12] [--longest 512]

Response lengths follow a heavy-tailed distribution, the same for all cases, drawn by prompt and response number. Four
cases: *waiting* is GRPO as it is usually run, a step takes as many whole groups as were issued for it and so waits for
the slowest response; *carry-over* is C3PO with the budget that those groups hold on average, what is unfinished goes on
in the next step. Each *colocated*, where generation and training take turns, and *disaggregated*, where they overlap.

Printed for each: seconds a step, and of those waiting for tokens, in the update and moving weights; trained tokens per
second of wall time; the idle share of the rollout engine's slots (responses in the engine, no more than it has slots,
over time) and of the policy (1 - update seconds / seconds); and the price of carry-over: how old the trained tokens
are, in policy versions, and what share grew too old.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from collections.abc import Sequence as Many
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import ray
from transformers import AutoConfig, GenerationConfig

from ring_ray.actors.cluster import ray_session, spawned
from ring_ray.actors.rollout import RolloutWorker
from ring_ray.checkpoint.store import CheckpointStore
from ring_ray.config import (
    AlgoConfig,
    CheckpointConfig,
    ClusterConfig,
    Device,
    EvaluationConfig,
    RoleResources,
    RolloutConfig,
    RunConfig,
    TrainConfig,
)
from ring_ray.data.source import PromptSource, load_prompts
from ring_ray.data.tokenizer import load_tokenizer
from ring_ray.engines.tiny_model import make_tiny_model
from ring_ray.engines.vllm import VllmEngine
from ring_ray.launch import used_verifiers
from ring_ray.rewards.registry import FACTORIES
from ring_ray.stages import Stages
from ring_ray.types import Prompt, RolloutSample, Sequence, StepMetrics
from tests.integration.fleets import Faults

GROUP_SIZE, GROUPS, WARM_UP = 8, 8, 2
SHORTEST, SCALE, SHAPE = 8, 24, 1.2  # of the lengths: 8 + Lomax


def response_length(prompt: int, response: int, longest: int) -> int:
    tail = np.random.default_rng((prompt, response)).pareto(SHAPE)
    return int(min(longest, SHORTEST + SCALE * tail))


class LongTailWorker(RolloutWorker):
    """Ends each response at its drawn length, and adds up for how long its slots were in use."""

    def __init__(self, model_path: str, config: RunConfig, device: Device, seed: int) -> None:
        super().__init__(model_path, config, device, seed)
        self._longest, self._slots = config.rollout.max_response_tokens, config.rollout.max_sequences
        self._running, self._since, self._busy_seconds = 0, time.perf_counter(), 0.0

    async def extend(self, prompt: Prompt, response: int, sequence: Sequence) -> Sequence:
        assert isinstance(self._engine, VllmEngine)
        self._count(1)
        # Nothing runs between this line and where `generate` reads the limit.
        self._engine._limit = response_length(prompt.index, response, self._longest)
        extended = await super().extend(prompt, response, sequence)
        self._count(-1)
        return extended

    def _count(self, change: int) -> None:
        now = time.perf_counter()
        self._busy_seconds += min(self._running, self._slots) * (now - self._since)
        self._running, self._since = self._running + change, now

    @ray.method
    async def busy_seconds(self) -> float:
        """Slots times the seconds that they were in use."""
        self._count(0)
        return self._busy_seconds


class Steps(Faults):
    """A tracker that keeps the steps, and how long the engine's slots had been in use after each."""

    wandb_id = "none"

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[StepMetrics] = []
        self.busy_seconds: list[float] = []

    @property
    def steps(self) -> int:
        return len(self.rows)

    def log(self, metrics: StepMetrics) -> None:
        self.rows.append(metrics)
        self.busy_seconds.append(ray.get(ray.get_actor("rollout engine 0").busy_seconds.remote()))

    def rollouts(self, step: int, samples: Many[RolloutSample]) -> None:
        """Nothing to keep."""

    def note(self, values: Mapping[str, float]) -> None:
        """Nothing to keep."""

    def rewind(self, steps: int) -> None:
        raise AssertionError("nothing was to break")


@dataclass(frozen=True)
class Case:
    name: str
    algo: AlgoConfig
    cluster: ClusterConfig


def cases(mean_length: float) -> list[Case]:
    tokens = round(GROUPS * GROUP_SIZE * mean_length)
    shared = AlgoConfig(group_size=GROUP_SIZE, token_budget=tokens, groups_per_step=GROUPS)
    waiting = replace(shared, name="grpo", selection="groups", aggregation="response")
    by_turns = ClusterConfig(overlap=False, take_turns=True)
    apart = ClusterConfig(colocate=False)
    return [
        Case("waiting, colocated", replace(waiting, max_staleness=0), by_turns),
        Case("carry-over, colocated", replace(shared, max_staleness=16), by_turns),
        # With overlap the next step's groups are generated while this one's are trained: one version behind.
        Case("waiting, disaggregated", replace(waiting, max_staleness=1), apart),
        Case("carry-over, disaggregated", replace(shared, max_staleness=16), apart),
    ]


@dataclass(frozen=True)
class Result:
    step_seconds: float
    phase_seconds: dict[str, float]
    tokens_per_second: float
    engine_idle: float
    policy_idle: float
    staleness: float  # policy versions, mean
    evicted: float  # share of the generated tokens


def measure(case: Case, model_path: str, prompts: PromptSource, args: argparse.Namespace) -> Result:
    config = RunConfig(
        run_dir=model_path + "-run",
        algo=case.algo,
        rollout=RolloutConfig(max_response_tokens=args.longest, max_sequences=args.slots),
        train=TrainConfig(steps=WARM_UP + args.steps, learning_rate=1e-6),
        evaluation=EvaluationConfig(prompts=1),
        checkpoint=CheckpointConfig(every=0),
        cluster=replace(case.cluster, policy=RoleResources(cpus=0.5), rollout=RoleResources(cpus=0.5)),
    )
    log = Steps()

    async def go() -> None:
        store = CheckpointStore(f"{config.run_dir}/checkpoints", config.checkpoint)
        async with spawned(config, model_path, log, LongTailWorker, verifiers=used_verifiers(prompts)) as roles:
            stages = Stages(config, roles=roles, prompts=prompts, course=None, tracker=log, store=store)
            await stages.run(model_path, Path(config.run_dir))

    with ray_session(config.cluster):
        asyncio.run(go())
    timed = log.rows[WARM_UP:]
    seconds = sum(step.step_seconds for step in timed)
    busy = log.busy_seconds[-1] - log.busy_seconds[WARM_UP - 1]
    generated = timed[-1].ledger.generated - log.rows[WARM_UP - 1].ledger.generated
    evicted = timed[-1].ledger.evicted - log.rows[WARM_UP - 1].ledger.evicted
    return Result(
        step_seconds=statistics.median(step.step_seconds for step in timed),
        phase_seconds={
            phase: statistics.median(step.phase_seconds[phase] for step in timed)
            for phase in ("wait", "update", "sync")
        },
        tokens_per_second=sum(step.batch.trained_tokens for step in timed) / seconds,
        engine_idle=1 - busy / (args.slots * seconds),
        policy_idle=1 - sum(step.phase_seconds["update"] for step in timed) / seconds,
        staleness=statistics.fmean(step.batch.staleness_mean for step in timed),
        evicted=evicted / generated,
    )


def make_endless_model(path: str) -> None:
    """The quickstart's model without an end-of-sequence token, so that the drawn length is what ends a response."""
    make_tiny_model(path, seed=0)
    config = AutoConfig.from_pretrained(path)
    config.eos_token_id = None
    config.save_pretrained(path)
    GenerationConfig(do_sample=True).save_pretrained(path)


def compare(args: argparse.Namespace) -> None:
    lengths = np.array(
        [response_length(p, r, args.longest) for p in range(GROUPS * args.steps) for r in range(GROUP_SIZE)]
    )
    print(
        f"response lengths: mean {lengths.mean():.0f}, median {np.median(lengths):.0f}, "
        f"99th percentile {np.percentile(lengths, 99):.0f}, longest {lengths.max()}; "
        f"{GROUPS} groups of {GROUP_SIZE} a step, {args.slots} slots, {args.steps} steps after {WARM_UP}"
    )
    with tempfile.TemporaryDirectory() as folder:
        model_path = f"{folder}/model"
        make_endless_model(model_path)
        config = RunConfig(rollout=RolloutConfig(max_response_tokens=args.longest))
        print("case                          s/step    wait  update    sync  tokens/s", end="")
        print("  engine idle  policy idle  staleness  evicted")
        results = {}
        for case in cases(float(lengths.mean())):
            prompts = load_prompts(config, load_tokenizer(model_path, config.model), FACTORIES)
            results[case.name] = result = measure(case, model_path, prompts, args)
            print(
                f"{case.name:<28}{result.step_seconds:>8.2f}"
                + "".join(f"{seconds:>8.2f}" for seconds in result.phase_seconds.values())
                + f"{result.tokens_per_second:>10.0f}"
                f"{result.engine_idle:>13.0%}{result.policy_idle:>13.0%}{result.staleness:>11.1f}"
                f"{result.evicted:>9.1%}",
                flush=True,
            )
    speeds = {name: result.tokens_per_second for name, result in results.items()}
    for place in ("colocated", "disaggregated"):
        print(f"{place}: carry-over / waiting = {speeds[f'carry-over, {place}'] / speeds[f'waiting, {place}']:.2f}")
    for way in ("waiting", "carry-over"):
        print(f"{way}: disaggregated / colocated = {speeds[f'{way}, disaggregated'] / speeds[f'{way}, colocated']:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12, help="that are timed")
    parser.add_argument("--longest", type=int, default=512, help="response tokens")
    parser.add_argument("--slots", type=int, default=64, help="responses that the engine decodes at a time")
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
