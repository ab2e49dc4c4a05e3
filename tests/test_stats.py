"""The statistics, on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from l3rs.stats import crossing, mean_interval


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
