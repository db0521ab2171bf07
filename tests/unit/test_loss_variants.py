"""Each objective, correction and aggregation against the formulas of its paper, token by token in Python's floats."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ring_ray.algo.loss import StepSums, policy_loss, update_metrics
from ring_ray.algo.objectives import LossInputs
from ring_ray.algo.packing import Rows, collate, token_weights
from ring_ray.config import AlgoConfig
from ring_ray.types import Segment, TokenBatch, UpdateMetrics
from tests.unit.test_packing import make_batch, make_segment, make_sequence

PerSegment = list[list[float]]

CONF = Path(__file__).parents[2] / "conf"
ENTROPY = 0.7


def shipped(name: str) -> AlgoConfig:
    """An algorithm as conf/algo has it."""
    file = OmegaConf.load(CONF / "algo" / f"{name}.yaml")
    algo = OmegaConf.to_object(OmegaConf.merge(AlgoConfig, file, {"groups_per_step": 1, "entropy_coefficient": 0.01}))
    assert isinstance(algo, AlgoConfig)
    return algo


SHIPPED = {path.stem: shipped(path.stem) for path in sorted((CONF / "algo").glob("*.yaml"))}
CORRECTIONS = {
    "rollout": {"behaviour": "rollout"},
    "recomputed": {"behaviour": "recomputed"},
    "truncated": {"behaviour": "recomputed", "correction": "truncated", "correction_high": 1.5},
    "icepop": {"behaviour": "recomputed", "correction": "icepop", "correction_low": 0.6, "correction_high": 1.5},
}


@dataclass(frozen=True)
class Case:
    """A step with the log-probs that the policy and the reference give its trained tokens."""

    batch: TokenBatch
    new: PerSegment
    reference: PerSegment


def make_case(seed: int, segments: int) -> Case:
    """Whole and cut responses, some sampled almost by the policy that is trained, some by quite another."""
    rng = np.random.default_rng(seed)
    spans, new, reference = [], [], []
    for index in range(segments):
        response = int(rng.integers(1, 7))
        start = int(rng.integers(0, response)) if index % 2 else 0
        sequence = make_sequence(rng, prompt=2, response=response)
        spans.append(make_segment(sequence, start, response, float(rng.normal())))
        old = sequence.logprobs[start:].astype(np.float64)
        new.append((old + rng.normal(size=len(old)) * (1e-4, 0.1, 1.2)[index % 3]).tolist())
        reference.append((old + rng.normal(size=len(old)) * 0.3).astype(np.float32).tolist())
    return Case(make_batch(spans, token_budget=50), new, reference)


@dataclass
class Expected:
    loss: float = 0.0
    clipped: int = 0
    truncated: int = 0
    masked: int = 0


def bounded(value: float, low: float, high: float) -> float:
    return max(low, min(value, high))


def correction_weight(k: float, algo: AlgoConfig) -> float:
    """Yao et al. 2025: min(k, C). arXiv 2510.18855: M(k) = k inside [α, β], else 0."""
    if algo.correction == "truncated":
        return min(k, algo.correction_high)
    if algo.correction == "icepop":
        return k if algo.correction_low <= k <= algo.correction_high else 0.0
    return 1.0


def token_weight(segment: Segment, batch: TokenBatch, algo: AlgoConfig) -> float:
    responses = {id(each.sequence): each for each in batch.segments}
    tokens = sum(each.stop - each.start for each in batch.segments)
    return {
        "budget": 1 / batch.token_budget,
        "token": 1 / tokens,
        "response": 1 / len(responses) / len(segment.sequence.response_ids),
    }[algo.aggregation]


def formulas(case: Case, algo: AlgoConfig, new: PerSegment) -> Expected:
    """The loss at ``new``. What a formula holds under a stop-gradient is taken at ``case.new``."""
    low = 1 - algo.clip_range
    high = 1 + (algo.clip_range if algo.clip_range_high is None else algo.clip_range_high)
    expected = Expected()
    trained = sum(map(len, case.new))
    for segment, xs, fixed, references in zip(case.batch.segments, new, case.new, case.reference, strict=True):
        rollout = [float(value) for value in segment.sequence.logprobs[segment.start : segment.stop]]
        behaviour = rollout if algo.behaviour == "rollout" else fixed
        sequence_ratio = math.exp(sum(x - b for x, b in zip(xs, behaviour, strict=True)) / len(xs))
        for x, x0, sampled, old, reference in zip(xs, fixed, rollout, behaviour, references, strict=True):
            k = math.exp(x0 - sampled)
            weight = correction_weight(k, algo)
            expected.truncated += algo.correction == "truncated" and weight < k
            expected.masked += weight == 0
            if algo.objective == "cispo":
                unclipped, clipped = math.exp(x0 - old), bounded(math.exp(x0 - old), low, high)
                value = clipped * segment.advantage * x
                expected.clipped += clipped != unclipped
            else:
                ratio = math.exp(x - old)
                if algo.objective == "gspo" and algo.correction == "none":
                    ratio = sequence_ratio  # arXiv 2507.18071, eq. 5 and 7; a correction by token needs GSPO-token
                value = min(ratio * segment.advantage, bounded(ratio, low, high) * segment.advantage)
                expected.clipped += value < ratio * segment.advantage
            gap = reference - x
            kl = algo.kl_coefficient * (math.exp(gap) - gap - 1)
            expected.loss -= token_weight(segment, case.batch, algo) * (weight * value - kl)
            expected.loss -= algo.entropy_coefficient * ENTROPY / trained
    return expected


def central_differences(case: Case, algo: AlgoConfig, step: float = 1e-6) -> PerSegment:
    def moved(row: int, t: int, by: float) -> float:
        new = [list(values) for values in case.new]
        new[row][t] += by
        return formulas(case, algo, new).loss

    return [
        [(moved(row, t, step) - moved(row, t, -step)) / (2 * step) for t in range(len(values))]
        for row, values in enumerate(case.new)
    ]


def run(case: Case, algo: AlgoConfig, packing: tuple[Rows, ...] | None = None) -> tuple[StepSums, PerSegment]:
    """The sums of the step and the gradient of its loss by the log-prob of each token."""
    batch = case.batch
    gradients: PerSegment = [[] for _ in batch.segments]
    sums: dict[str, torch.Tensor] = {}
    ratio_max = torch.zeros((), dtype=torch.float64)
    references = tuple(np.array(values, np.float32) for values in case.reference)
    for rows in packing or (tuple(range(len(batch.segments))),):
        micro_batch = collate(batch, rows, token_weights(batch, algo.aggregation), references, torch.float64)
        new_N = torch.tensor([x for row in rows for x in case.new[row]], dtype=torch.float64, requires_grad=True)
        inputs = LossInputs(
            logprobs_N=new_N,
            entropies_N=torch.full_like(new_N, ENTROPY),
            behaviour_logprobs_N=micro_batch.behaviour_logprobs_N,
            advantages_N=micro_batch.advantages_N,
            weights_N=micro_batch.weights_N,
            rows_N=micro_batch.rows_N,
            reference_logprobs_N=micro_batch.reference_logprobs_N,
        )
        outputs = policy_loss(inputs, algo, batch.trained_tokens)
        outputs.loss.backward()
        assert new_N.grad is not None
        for row, gradient in zip(rows, new_N.grad.split([len(case.new[row]) for row in rows]), strict=True):
            gradients[row] = gradient.tolist()
        sums = {name: sums.get(name, 0) + value for name, value in outputs.sums.items()}
        ratio_max = torch.maximum(ratio_max, outputs.ratio_max)
    return StepSums(sums=sums, ratio_max=ratio_max), gradients


def metrics(sums: StepSums, case: Case, algo: AlgoConfig) -> UpdateMetrics:
    tokens = case.batch.trained_tokens
    return update_metrics(sums, algo, trained_tokens=tokens, grad_norm=0, learning_rate=0, micro_batches=1)


def flat(values: PerSegment) -> list[float]:
    return [value for row in values for value in row]


@pytest.mark.parametrize("kl_coefficient", [0.0, 0.1])
@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("name", SHIPPED)
def test_loss_gradient_and_counts_equal_the_formulas(name: str, correction: str, kl_coefficient: float) -> None:
    algo = replace(SHIPPED[name], kl_coefficient=kl_coefficient, **CORRECTIONS[correction])
    case = make_case(seed=3, segments=9)
    sums, gradients = run(case, algo)
    expected, seen = formulas(case, algo, case.new), metrics(sums, case, algo)
    assert seen.loss == pytest.approx(expected.loss, rel=1e-12)
    # Central differences lose about half of the digits.
    assert flat(gradients) == pytest.approx(flat(central_differences(case, algo)), rel=1e-6, abs=1e-9)
    tokens = len(flat(case.new))
    fractions = (seen.clip_fraction, seen.truncated_fraction, seen.masked_fraction)
    assert fractions == pytest.approx(
        (expected.clipped / tokens, expected.truncated / tokens, expected.masked / tokens)
    )
    # The case reaches what it is to test.
    assert (expected.clipped > 0) == (correction == "rollout")
    assert expected.clipped < tokens
    assert (expected.truncated > 0) == (correction == "truncated")
    assert (0 < expected.masked < tokens) == (correction == "icepop")


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("name", SHIPPED)
def test_drift_is_measured_against_the_rollout_whatever_the_behaviour(name: str, correction: str) -> None:
    case, algo = make_case(seed=4, segments=6), replace(SHIPPED[name], **CORRECTIONS[correction])
    pairs = [
        (x, float(old))
        for segment, xs in zip(case.batch.segments, case.new, strict=True)
        for x, old in zip(xs, segment.sequence.logprobs[segment.start :], strict=True)
    ]
    seen = metrics(run(case, algo)[0], case, algo)
    assert seen.ratio_max == pytest.approx(max(math.exp(x - old) for x, old in pairs))
    k3 = [math.exp(x - old) - (x - old) - 1 for x, old in pairs]
    assert seen.behaviour_kl == pytest.approx(sum(k3) / len(pairs))


@st.composite
def packings(draw: st.DrawFn, segments: int = 7) -> tuple[Rows, ...]:
    order = draw(st.permutations(range(segments)))
    cuts = sorted(draw(st.sets(st.integers(1, segments - 1))))
    return tuple(tuple(order[a:b]) for a, b in zip([0, *cuts], [*cuts, segments], strict=True))


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("name", SHIPPED)
@settings(max_examples=10, deadline=None)
@given(packing=packings(), seed=st.integers(0, 100))
def test_neither_order_nor_packing_changes_anything(
    name: str, correction: str, packing: tuple[Rows, ...], seed: int
) -> None:
    case = make_case(seed, segments=7)
    algo = replace(SHIPPED[name], kl_coefficient=0.1, **CORRECTIONS[correction])
    expected, expected_gradients = run(case, algo)
    sums, gradients = run(case, algo, packing)
    assert flat(gradients) == pytest.approx(flat(expected_gradients), rel=1e-9, abs=1e-15)
    assert {name: float(value) for name, value in sums.sums.items()} == pytest.approx(
        {name: float(value) for name, value in expected.sums.items()}, rel=1e-9, abs=1e-12
    )
    assert sums.ratio_max == expected.ratio_max
