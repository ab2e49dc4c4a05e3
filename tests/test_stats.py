"""The statistics, on numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_ind

from l3rs.stats import FEW, crossing, half_width, interquartile_mean, interval, mean_interval, probability_of_improvement


def test_variances_add_up_with_welchs_degrees_of_freedom() -> None:
    a, b = np.array([1.0, 2.0, 4.0]), np.array([2.0, 3.0, 5.0, 9.0, 1.0])
    low, high = ttest_ind(a, b, equal_var=False).confidence_interval()
    half = half_width((a.var(ddof=1) / 3, 2), (b.var(ddof=1) / 5, 4))
    assert (a.mean() - b.mean() - half, a.mean() - b.mean() + half) == pytest.approx((low, high))
    assert half_width((0.0, 3)) == 0
    assert math.isnan(half_width((math.nan, 3)))
    assert mean_interval([1e-90, 2e-90])[2] > 0


def test_interval_is_students() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert high - mean == pytest.approx(3.1824 * math.sqrt(5 / 3) / 2, rel=1e-4)  # t(0.975, 3) = 3.1824
    assert mean - low == pytest.approx(high - mean)
    assert math.isnan(mean_interval([1.0])[1])


def test_crossing_is_linear_in_log_steps() -> None:
    steps = [math.log(10), math.log(1000)]
    assert crossing(steps, [0.0, 1.0], 0.5) == pytest.approx(100)
    assert crossing(steps, [0.6, 1.0], 0.5) == pytest.approx(10)
    assert crossing(steps, [0.0, 0.4], 0.5) == math.inf
    assert crossing(steps, [-math.inf, 1.0], 0.5) == pytest.approx(1000)  # after a run that diverged nothing lies between
    three = [*steps, math.log(100_000)]
    many = np.array([[0.0, math.nan, 1.0], [math.nan, 0.6, 1.0], [0.0, 0.4, 0.4], [0.6, 0.2, 1.0]])
    assert crossing(three, many, 0.5).tolist() == pytest.approx([1000, 1000, math.inf, 10])


def test_the_interquartile_mean_leaves_out_a_quarter_at_each_end() -> None:
    assert interquartile_mean([-1000.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 1000.0]) == 2.5


def test_the_interval_is_about_students_for_many_values() -> None:
    x = np.random.default_rng(0).normal(3.0, 2.0, 400)
    _, low, high = mean_interval(x)
    assert interval(x) == pytest.approx((low, high), abs=0.02)
    assert interval(x) == interval(x)
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert math.isnan(interval([1.0])[0])
    assert math.isnan(interval([1.0, math.inf])[0])


@pytest.mark.parametrize("number", [3, 10, FEW])
def test_an_interval_holds_the_mean_in_95_of_100_cases(number: int) -> None:
    drawn = np.random.default_rng(0).normal(size=(600, number))
    held = np.mean([low <= 0 <= high for low, high in map(interval, drawn)])
    assert 0.92 < held < 0.98


def test_ties_are_half_an_improvement() -> None:
    assert probability_of_improvement([1.0, 0.0, -1.0, 2.0], [0.0] * 4) == pytest.approx(2.5 / 4)
    assert probability_of_improvement([math.inf, 1.0], [math.inf, math.inf]) == pytest.approx(0.5 / 2)
