"""The arithmetic of the curves."""

import numpy as np
import pytest

from ring_ray.report.pictures import condensed, mean_course, moving_mean


def test_moving_mean():
    np.testing.assert_allclose(moving_mean(np.array([1.0, 2.0, 3.0, 4.0]), 2), [1.0, 1.5, 2.5, 3.5])


def test_mean_course_lies_where_all_runs_have_been():
    early = np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.0, 4.0])
    late = np.array([1.5, 2.5, 3.5]), np.array([1.0, 1.0, 1.0])
    positions, mean, margin = mean_course([early, late])
    np.testing.assert_allclose(positions, [2.0, 3.0])
    np.testing.assert_allclose(mean, [1.5, 2.5])
    np.testing.assert_allclose(margin, 12.706205 * np.array([0.5, 1.5]))  # of two: t times half their distance


def test_mean_course_of_runs_that_never_met_is_empty():
    positions, mean, margin = mean_course([(np.array([1.0]), np.array([1.0])), (np.array([2.0]), np.array([1.0]))])
    assert len(positions) == len(mean) == len(margin) == len(condensed(positions)) == 0


def test_condensed_keeps_short_series_and_the_mean_of_long_ones():
    np.testing.assert_array_equal(condensed(np.arange(3.0)), [0.0, 1.0, 2.0])
    long = condensed(np.arange(4000.0))
    assert len(long) == 400
    assert long.mean() == pytest.approx(1999.5)
