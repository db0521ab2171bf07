"""What a step and a run report, in numbers.

`METRICS` and `FAMILIES` are the one list of what a step reports. The names are a contract: metrics.jsonl, W&B, Ray's
gauges, the report and docs/metrics.md use them.
"""

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple, TypeAlias

from ring_ray.types import Ledger, StepMetrics

Values: TypeAlias = Mapping[str, float]
"""Numbers by name: those of `METRICS`, or, before the first step, names such as "sft/loss"."""


class Metric(NamedTuple):
    name: str
    unit: str  # "1" for pure numbers
    meaning: str
    read: Callable[[StepMetrics], float]


class Family(NamedTuple):
    """Metrics whose names are known only when the run goes on: ``<word>`` stands for a part of the name."""

    name: str
    unit: str
    meaning: str


METRICS = (
    Metric("step", "steps", "optimizer steps so far, this one included", lambda m: m.step),
    Metric("c3po/token_budget", "tokens", "Φ, response tokens that a step is to train", lambda m: m.token_budget),
    Metric(
        "c3po/trained_tokens",
        "tokens",
        "of this step's batch: trained, unless skipped",
        lambda m: m.batch.trained_tokens,
    ),
    Metric("c3po/carried_tokens", "tokens", "tail of the cut response, next in line", lambda m: m.batch.carried_tokens),
    Metric("c3po/segments", "segments", "spans of responses in the batch", lambda m: m.batch.segments),
    Metric("c3po/groups", "groups", "prompts whose responses are in the batch", lambda m: m.batch.groups),
    Metric("c3po/staleness_mean", "versions", "from sampling to training, by token", lambda m: m.batch.staleness_mean),
    Metric("c3po/staleness_max", "versions", "of the oldest trained token", lambda m: m.batch.staleness_max),
    Metric("c3po/zero_advantage_fraction", "1", "groups without signal", lambda m: m.batch.zero_advantage_fraction),
    Metric("c3po/trained_response_length_mean", "tokens", "in batch", lambda m: m.batch.trained_response_length_mean),
    Metric(
        "c3po/lost_response_length_mean",
        "tokens",
        "of responses that lost tokens to eviction or a drop since the last step; null where none did",
        lambda m: m.batch.lost_response_length_mean,
    ),
    Metric("ledger/generated", "tokens", "all response tokens sampled so far", lambda m: m.ledger.generated),
    Metric("ledger/in_flight", "tokens", "of those, in unfinished responses", lambda m: m.ledger.in_flight),
    Metric("ledger/waiting", "tokens", "finished; group incomplete or not scored", lambda m: m.ledger.waiting),
    Metric("ledger/queued", "tokens", "in the buffer, to be trained", lambda m: m.ledger.queued),
    Metric("ledger/trained", "tokens", "trained so far", lambda m: m.ledger.trained),
    Metric("ledger/filtered", "tokens", "left out so far: zero advantage", lambda m: m.ledger.filtered),
    Metric("ledger/evicted", "tokens", "left out so far: too stale", lambda m: m.ledger.evicted),
    Metric(
        "ledger/dropped",
        "tokens",
        "left out so far: not carried, verifier failed, or step skipped",
        lambda m: m.ledger.dropped,
    ),
    Metric(
        "policy/skipped",
        "1",
        "1 where loss or gradient was not finite and nothing was trained",
        lambda m: int(m.update.skipped),
    ),
    Metric("policy/loss", "1", "objective that the step minimized", lambda m: m.update.loss),
    Metric("policy/grad_norm", "1", "gradient norm before clipping", lambda m: m.update.grad_norm),
    Metric("policy/learning_rate", "1", "of this step", lambda m: m.update.learning_rate),
    Metric("policy/entropy", "nats/token", "of the policy, over the trained tokens", lambda m: m.update.entropy),
    Metric("policy/kl", "nats/token", "k3 estimate against the reference policy", lambda m: m.update.kl),
    Metric("policy/behaviour_kl", "nats/token", "k3, sampling to training policy", lambda m: m.update.behaviour_kl),
    Metric("policy/clip_fraction", "1", "clipped fraction of trained tokens", lambda m: m.update.clip_fraction),
    Metric("policy/ratio_max", "1", "largest π_train / π_rollout of a trained token", lambda m: m.update.ratio_max),
    Metric("policy/truncated_fraction", "1", "correction cut at its bound", lambda m: m.update.truncated_fraction),
    Metric("policy/masked_fraction", "1", "correction set to 0: IcePop's mask", lambda m: m.update.masked_fraction),
    Metric("moe/balance_loss", "1", "1 when experts are evenly loaded; 0 if dense", lambda m: m.update.balance_loss),
    Metric("moe/z_loss", "1", "router z-loss", lambda m: m.update.z_loss),
    Metric("reward/mean", "1", "over the groups completed since the last step", lambda m: m.batch.reward_mean),
    Metric("reward/std", "1", "standard deviation of the same rewards", lambda m: m.batch.reward_std),
    Metric("rollout/generated_tokens", "tokens", "sampled during this step", lambda m: m.generated_tokens),
    Metric("rollout/response_length_mean", "tokens", "of completed ones", lambda m: m.batch.response_length_mean),
    Metric(
        "rollout/truncated_fraction", "1", "responses cut by the length limit", lambda m: m.batch.truncated_fraction
    ),
    Metric("perf/step_seconds", "s", "wall time of the step", lambda m: m.step_seconds),
    Metric("perf/micro_batches", "micro-batches", "of one rank", lambda m: m.update.micro_batches),
    Metric("perf/trained_tokens_per_second", "tokens/s", "trained", lambda m: m.batch.trained_tokens / m.step_seconds),
    Metric("perf/generated_tokens_per_second", "tokens/s", "sampled", lambda m: m.generated_tokens / m.step_seconds),
)

FAMILIES = (
    Family("reward/<domain>/mean", "1", "the rewards of reward/mean, by their prompts' domain"),
    Family("reward/<domain>/accuracy", "1", "share of the same responses that are correct"),
    Family("reward/<domain>/failures", "verdicts", "timed out or failed since the last step: their groups are dropped"),
    Family("perf/<domain>/verdict_seconds_p50", "s", "median time of one verdict, those that failed included"),
    Family("perf/<domain>/verdict_seconds_p99", "s", "the time that 99 % of the same verdicts stay below"),
    Family("perf/<phase>_seconds", "s", "wall time of a phase: wait, reference, update, sync, checkpoint"),
    Family("memory/<phase>/<role>_gib", "GiB", "held at the end of a phase by a role, on a GPU by all; only by turns"),
    Family("fault/<kind>", "1", "faults of a kind that were made good since the last step, where there were any"),
    Family("sys/cpu_percent", "%", "of all cores of the controller's node, since the last step"),
    Family("sys/memory_used_gib", "GiB", "of the same node, by everyone"),
    Family("sys/gpu<index>_memory_used_gib", "GiB", "of each GPU of the same node, by everyone"),
)

NOTES = (
    Family("sft/step", "steps", "optimizer steps of the cold start so far"),
    Family("sft/loss", "nats/token", "of the demonstrations, over their response tokens"),
    Family("sft/entropy", "nats/token", "of the policy, over the same tokens"),
    Family("sft/accuracy", "1", "on the probe's prompts, where the step ends with a probe"),
    Family("accuracy/<stage>", "1", "on held-out prompts, after a stage: base, sft, rl"),
    Family("accuracy/<stage>/<domain>", "1", "the same by the prompts' domain, where there are several"),
)
"""What is reported outside the steps: not in metrics.jsonl."""


def gauge_name(name: str) -> str:
    """A metric's name in Ray's metrics, which has lower-case names only and serves them with "ray_" in front."""
    return "ring_ray_" + re.sub(r"[^a-z0-9]+", "_", name.lower())


def flatten(metrics: StepMetrics) -> dict[str, float]:
    """A step's numbers by name: `METRICS`, and those of `FAMILIES` that the step measured."""
    values = {metric.name: metric.read(metrics) for metric in METRICS}
    for domain, reward in metrics.batch.domains.items():
        values |= {
            f"reward/{domain}/mean": reward.mean,
            f"reward/{domain}/accuracy": reward.accuracy,
            f"reward/{domain}/failures": reward.failures,
            f"perf/{domain}/verdict_seconds_p50": reward.seconds_p50,
            f"perf/{domain}/verdict_seconds_p99": reward.seconds_p99,
        }
    values |= {f"perf/{phase}_seconds": seconds for phase, seconds in metrics.phase_seconds.items()}
    return values | {f"memory/{name}_gib": held / 2**30 for name, held in metrics.memory_bytes.items()}


def ledger_of(values: Values) -> Ledger:
    """The ledger of a step that `flatten` was given."""
    return Ledger(**{place.name: int(values[f"ledger/{place.name}"]) for place in fields(Ledger)})


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927, without continuity correction). Raises ValueError for n < 1."""
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n}: expected 0 <= successes <= n and n >= 1")
    z2 = statistics.NormalDist().inv_cdf(0.975) ** 2
    centre = (successes + z2 / 2) / (n + z2)
    half_width = math.sqrt(z2 * (successes * (n - successes) / n + z2 / 4)) / (n + z2)
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyInterval:
    """Accuracy over ``n`` prompts with its 95 % Wilson interval."""

    value: float
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, correct: int, n: int) -> "AccuracyInterval":
        low, high = wilson_interval(correct, n)
        return cls(value=correct / n, n=n, low=low, high=high)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """summary.json: a finished run in numbers. Token counts are response tokens of one step."""

    algo: str
    seed: int
    steps: int
    wall_seconds: float
    accuracy: dict[str, AccuracyInterval | None]  # "base", "sft", "rl"; None for a stage that was not evaluated
    token_budget: int
    trained_tokens_min: int
    trained_tokens_max: int
    trained_tokens_cv: float | None  # coefficient of variation over the steps; None where it is undefined
    grad_norm_cv: float | None
    ledger_balanced: bool  # at every step
    skipped_steps: int  # whose loss or gradient was not finite

    @property
    def sentence(self) -> str:
        """The result on one line."""
        accuracy = " -> ".join(f"{stage} {seen.value:.3f}" for stage, seen in self.accuracy.items() if seen)
        least, most = f"{self.trained_tokens_min:,}", f"{self.trained_tokens_max:,}"
        tokens = f"exactly {least}" if least == most else f"{least} to {most}"
        variation = ", ".join(
            f"{name} {value:.3f}"
            for name, value in (("trained tokens", self.trained_tokens_cv), ("gradient norm", self.grad_norm_cv))
            if value is not None
        )
        return f"accuracy {accuracy}\neach step trained {tokens} tokens; coefficients of variation: {variation}"


def coefficient_of_variation(values: Sequence[float]) -> float | None:
    """Population standard deviation over mean; None where the mean is 0 or a value is not finite."""
    mean = statistics.fmean(values)
    return statistics.pstdev(values, mean) / mean if math.isfinite(mean) and mean else None
