"""Run directories as a run leaves them, for the tests of what reads them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from ring_ray.config import AlgoConfig, RunConfig
from ring_ray.metrics import AccuracyInterval
from ring_ray.tracking import Tracker
from ring_ray.types import Ledger, StepMetrics
from tests.unit.test_tracking import balanced_metrics, run_config

SWEEP = {
    "c3po": AlgoConfig(token_budget=6144),
    "grpo": AlgoConfig(
        name="grpo", token_budget=6144, selection="groups", groups_per_step=30, aggregation="response", group_size=8
    ),
}


def write_run(run_dir: Path, *, steps: int = 12, trained_tokens: int = 1000, finished: bool = True) -> Path:
    """A run that stands still, without its config.yaml."""
    with Tracker(run_config(run_dir)) as tracker:
        for step in range(1, steps + 1):
            tracker.log(balanced_metrics(step, trained_tokens=trained_tokens))
        if finished:
            tracker.summary({"base": AccuracyInterval.of(2, 512), "rl": AccuracyInterval.of(480, 512)})
    return run_dir


def write_sweep(directory: Path, *, seeds: int = 3, steps: int = 12) -> Path:
    """What `-m algo=c3po,grpo seed=0,1,2` leaves: runs that learn, each in its own way."""
    for name, algo in SWEEP.items():
        for seed in range(seeds):
            run_dir = directory / f"algo={name},seed={seed}"
            write_learning_run(run_dir, replace(run_config(run_dir), algo=algo, seed=seed), steps=steps)
    return directory


def write_learning_run(run_dir: Path, config: RunConfig, *, steps: int) -> Path:
    random = np.random.default_rng([config.seed, *config.algo.name.encode()])
    limit = random.normal(0.7, 0.02)
    trained = 0
    with Tracker(config) as tracker:
        for step in range(1, steps + 1):
            metrics = learning_metrics(step, random, config.algo, limit=limit, trained_before=trained)
            trained = metrics.ledger.trained
            tracker.log(metrics)
        correct = {"base": 2, "sft": random.binomial(512, 0.35), "rl": random.binomial(512, limit)}
        tracker.summary({stage: AccuracyInterval.of(int(count), 512) for stage, count in correct.items()})
    OmegaConf.save(OmegaConf.structured(config), run_dir / "config.yaml")
    return run_dir


def learning_metrics(
    step: int, random: np.random.Generator, algo: AlgoConfig, *, limit: float, trained_before: int
) -> StepMetrics:
    """Step ``step`` of a run whose reward climbs towards ``limit``."""
    exact = algo.selection == "tokens"
    trained_tokens = algo.token_budget if exact else round(random.normal(algo.token_budget, 110))
    trained, queued = trained_before + trained_tokens, round(random.uniform(200, 900))
    phases = {"wait": random.gamma(8, 0.08), "update": random.gamma(80, 0.015), "sync": random.gamma(20, 0.005)}
    metrics = balanced_metrics(step)
    length = random.normal(25, 0.5)
    return replace(
        metrics,
        batch=replace(
            metrics.batch,
            trained_tokens=trained_tokens,
            reward_mean=limit - 0.35 * np.exp(-step / 40) + random.normal(0, 0.04),
            response_length_mean=length,
            trained_response_length_mean=length + random.normal(0, 0.1),
        ),
        update=replace(
            metrics.update,
            grad_norm=random.gamma(12, 0.04),
            entropy=0.06 + 0.07 * np.exp(-step / 50) + random.normal(0, 0.005),
            behaviour_kl=random.gamma(4, 2e-4),
            clip_fraction=random.gamma(4, 1e-3),
            balance_loss=random.normal(1.05, 0.01),
        ),
        ledger=Ledger(generated=trained + queued, trained=trained, queued=queued),
        token_budget=algo.token_budget,
        step_seconds=sum(phases.values()),
        phase_seconds=phases,
        generated_tokens=trained_tokens + round(random.normal(0, 300)),
    )
