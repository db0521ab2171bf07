"""How sure the report is of a mean over seeds."""

import numpy as np
import pytest

from ring_ray.metrics import AccuracyInterval
from ring_ray.report.estimates import accuracy, gain, mean_margin, student_t
from ring_ray.report.runs import Run


def finished_run(**accuracies: float | None) -> Run:
    seen = {
        stage: None if value is None else {"value": value, "n": 512, "low": value - 0.04, "high": value + 0.04}
        for stage, value in accuracies.items()
    }
    return Run(name="run", rows=[], summary={"accuracy": seen, "wall_seconds": 1.0}, config=None, settings={})


# NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2: upper critical values for 0.975 and 0.995
@pytest.mark.parametrize(
    ("degrees_of_freedom", "at_95", "at_99"),
    [
        (1, 12.706, 63.657),
        (2, 4.303, 9.925),
        (3, 3.182, 5.841),
        (4, 2.776, 4.604),
        (29, 2.045, 2.756),
        (100, 1.984, 2.626),
    ],
)
def test_student_t_matches_the_tables(degrees_of_freedom, at_95, at_99):
    assert student_t(degrees_of_freedom) == pytest.approx(at_95, abs=6e-4)
    assert student_t(degrees_of_freedom, coverage=0.99) == pytest.approx(at_99, abs=6e-4)


def test_the_interval_of_a_mean_over_seeds_holds_the_truth_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(5.0, 2.0, size=(3, 20_000))  # three seeds, many times over
    held = np.abs(samples.mean(axis=0) - 5.0) <= mean_margin(samples)
    assert held.mean() == pytest.approx(0.95, abs=0.005)


def test_accuracy_of_several_runs_has_the_t_interval_of_their_mean():
    estimate = accuracy([finished_run(rl=value) for value in (0.6, 0.7, 0.8)], "rl")
    assert estimate.value == pytest.approx(0.7)
    assert estimate.interval == pytest.approx((0.7 - 4.302653 * 0.1 / 3**0.5, 0.7 + 4.302653 * 0.1 / 3**0.5))
    assert estimate.basis == "3 runs"


def test_accuracy_of_two_far_runs_is_cut_at_the_ends_of_the_scale():
    assert accuracy([finished_run(rl=0.2), finished_run(rl=0.8)], "rl").interval == (0.0, 1.0)


def test_runs_that_agree_do_not_tell_how_far_others_would_be():
    estimate = accuracy([finished_run(base=0.0), finished_run(base=0.0)], "base")
    assert (estimate.value, estimate.interval, estimate.basis) == (0.0, None, "2 runs")


def test_accuracy_of_one_run_keeps_the_interval_over_its_prompts():
    estimate = accuracy([finished_run(rl=0.7), finished_run(rl=None)], "rl")
    assert estimate.interval == pytest.approx((0.66, 0.74))
    assert estimate.basis == "512 prompts"


def test_a_run_that_was_not_evaluated_is_not_counted():
    runs = [finished_run(base=0.1, rl=0.6), finished_run(base=0.1, rl=0.7), finished_run(base=0.1)]
    assert accuracy(runs, "rl").basis == "2 of 3 runs"
    assert gain(runs).value == pytest.approx(0.55)
    assert accuracy(runs, "sft") is None


def test_gain_is_over_the_cold_start_where_there_was_one():
    alone = gain([finished_run(base=0.1, sft=0.4, rl=0.7)])
    assert alone.value == pytest.approx(0.3)
    assert alone.interval is None  # one run's intervals say nothing about their difference
    paired = gain([finished_run(sft=0.4, rl=0.7), finished_run(sft=0.5, rl=0.7)])
    assert paired.value == pytest.approx(0.25)
    assert paired.interval == pytest.approx((0.25 - 12.706205 * 0.05, 0.25 + 12.706205 * 0.05))
    assert gain([finished_run(rl=0.7)]) is None


def test_accuracy_is_read_as_the_run_wrote_it():
    assert finished_run(rl=0.5).accuracy("rl") == AccuracyInterval(value=0.5, n=512, low=0.46, high=0.54)
