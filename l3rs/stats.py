"""Statistics of comparisons over tasks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import bootstrap, trim_mean
from scipy.stats import t as student

LEVEL = 0.95  # of all intervals
SEED = 0  # of bootstrap resamples
FEW = 30  # values, of which a bootstrap's intervals are too narrow: of 3, 5 and 10 normal ones they hold the mean in 75, 83 and 90%


def mean_interval(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    """Mean of independent values with its Student-t confidence interval: (mean, low, high). NaN bounds for one value."""
    x = np.asarray(values, dtype=float)
    mean = float(x.mean())
    if len(x) < 2:
        return mean, math.nan, math.nan
    half = half_width((float(x.var(ddof=1)) / len(x), len(x) - 1))
    return mean, mean - half, mean + half


def half_width(*parts: tuple[float, int]) -> float:
    """Half the width of the Student-t confidence interval of a mean whose variance is a sum (Welch 1947, Satterthwaite 1946).

    Args:
        parts: the variances that add up, each with its degrees of freedom.
    """
    total = sum(variance for variance, _ in parts)
    if not total > 0:  # NaN too
        return total
    freedom = 1 / sum((variance / total) ** 2 / n for variance, n in parts)
    return float(student.ppf(0.5 + LEVEL / 2, freedom) * math.sqrt(total))


def interquartile_mean(values: Sequence[float] | np.ndarray) -> float:
    """The mean of the middle half of the values (Agarwal et al. 2021, arXiv 2108.13264)."""
    return float(trim_mean(np.asarray(values, dtype=float), 0.25))


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The confidence interval of the mean, (low, high): the bootstrap's percentiles from 9,999 resamples; Student's of fewer than `FEW`.

    NaN for one value, or if one is not finite. A few that are all the same have an interval of no width, though another may differ.
    """
    x = np.asarray(values, dtype=float)
    if len(x) < 2 or not np.isfinite(x).all():
        return math.nan, math.nan
    if np.ptp(x) == 0:
        return float(x[0]), float(x[0])
    if len(x) < FEW:
        return mean_interval(x)[1:]
    found = bootstrap((x,), np.mean, confidence_level=LEVEL, method="percentile", rng=np.random.default_rng(SEED)).confidence_interval
    return float(found.low), float(found.high)


def probability_of_improvement(mine: Sequence[float] | np.ndarray, theirs: Sequence[float] | np.ndarray) -> float:
    """The share of pairs in which `mine` is above `theirs`; ties count half, those of two infinities too."""
    x, y = np.asarray(mine, dtype=float), np.asarray(theirs, dtype=float)
    return float(((x > y) + 0.5 * (x == y)).mean())


def crossing(log_steps: Sequence[float] | np.ndarray, accuracies: Sequence[float] | np.ndarray, target: float) -> np.ndarray:
    """Finds the steps at which rising curves first reach `target`, linear in log steps.

    Args:
        log_steps: (lengths,), rising.
        accuracies: (..., lengths); NaN where a curve has no point.

    Returns:
        (...,): the first point's steps where that reaches the target, and infinity where none does.
    """
    y = np.moveaxis(np.asarray(accuracies, dtype=float), -1, 0)
    found = np.full(y.shape[1:], math.inf)  # in log steps
    before = before_x = np.full(y.shape[1:], math.nan)  # the last point so far
    for x, here in zip(log_steps, y, strict=True):
        reaches = (here >= target) & np.isinf(found)
        with np.errstate(invalid="ignore", divide="ignore"):
            between = before_x + (x - before_x) * (target - before) / (here - before)
        found = np.where(reaches, np.where(np.isfinite(before), between, x), found)
        before, before_x = (np.where(np.isnan(here), old, new) for old, new in ((before, here), (before_x, x)))
    return np.asarray(np.exp(found))


def speedup(steps: int, log_steps: Sequence[float], behind: np.ndarray) -> tuple[float, float, float]:
    """Divides the steps that another arm needs to match a reference after `steps` by `steps`; with a bootstrap percentile interval.

    Args:
        log_steps: logs of the lengths of the other arm's runs, rising.
        behind: (tasks, lengths), the other arm at each length minus the reference, paired by task, higher is better; NaN if one of the two
            did not run. A resample without a task at a length skips it.

    Returns:
        (speedup, low, high); infinite if the other arm never gets there. Bounds are NaN for one task.
    """
    there = ~np.isnan(behind)
    filled = np.where(there, behind, 0.0)

    def share(tasks: np.ndarray, axis: int = -1) -> np.ndarray:  # steps over the other's steps; 0 for never, so that it is finite
        with np.errstate(invalid="ignore", divide="ignore"):
            gaps = filled[tasks].sum(axis=-2) / there[tasks].sum(axis=-2)
        return steps / crossing(log_steps, gaps, 0.0)

    tasks = np.arange(len(behind))
    low, high = math.nan, math.nan
    if len(tasks) > 1:
        found = bootstrap(
            (tasks,), share, vectorized=True, batch=999, confidence_level=LEVEL, method="percentile", rng=np.random.default_rng(SEED)
        ).confidence_interval
        low, high = (_inverse(float(bound)) for bound in (found.high, found.low))
    return _inverse(float(share(tasks[None])[0])), low, high


def _inverse(x: float) -> float:
    return 1 / x if x else math.inf


def performance_profile(values: Sequence[float] | np.ndarray, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """The share of the values that are at least each threshold (Agarwal et al. 2021)."""
    x = np.asarray(values, dtype=float)
    return np.asarray((x[:, None] >= np.asarray(thresholds, dtype=float)).mean(0))


def runs_to_break_even(invested: float, saved: float) -> float:
    """Counts the runs, each saving `saved`, that pay back an investment: 0 without one, infinite if they save nothing."""
    if invested <= 0:
        return 0.0
    return max(1.0, math.ceil(invested / saved)) if saved > 0 else math.inf
