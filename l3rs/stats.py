"""The few statistics that a comparison over tasks needs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap, trim_mean
from scipy.stats import t as student


def mean_interval(values: Sequence[float] | np.ndarray, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of independent values with its Student-t confidence interval: (mean, low, high). NaN bounds for one value."""
    x = np.asarray(values, dtype=float)
    mean = float(x.mean())
    if len(x) < 2:
        return mean, math.nan, math.nan
    half = float(student.ppf(0.5 + level / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return mean, mean - half, mean + half


def interquartile_mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean of the middle half of the values (Agarwal et al. 2021, arXiv 2108.13264)."""
    return float(trim_mean(np.asarray(values, dtype=float), 0.25))


def bootstrap_interval(values: Sequence[float] | np.ndarray, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """The bootstrap percentile interval of the mean, from 9,999 resamples: (low, high). NaN for one value or where one is not finite."""
    x = np.asarray(values, dtype=float)
    if len(x) < 2 or not np.isfinite(x).all():
        return math.nan, math.nan
    if np.ptp(x) == 0:
        return float(x[0]), float(x[0])
    found = bootstrap((x,), np.mean, confidence_level=level, method="percentile", rng=np.random.default_rng(seed)).confidence_interval
    return float(found.low), float(found.high)


def probability_of_improvement(differences: Sequence[float] | np.ndarray) -> float:
    """The share of paired differences above 0; those of 0 count half."""
    x = np.asarray(differences, dtype=float)
    return float(((x > 0) + 0.5 * (x == 0)).mean())


def crossing(log_steps: Sequence[float], accuracies: Sequence[float], target: float) -> float:
    """The steps at which a rising curve first reaches `target`, linear between points in log steps.

    At or above the first point, that point's steps; infinite when the target is never reached.
    """
    if accuracies[0] >= target:
        return math.exp(log_steps[0])
    for x0, x1, y0, y1 in zip(log_steps, log_steps[1:], accuracies, accuracies[1:], strict=False):
        if y1 >= target:
            return math.exp(x0 + (x1 - x0) * (target - y0) / (y1 - y0))
    return math.inf
