"""Intervals and tests for few repeated runs, on SciPy."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Difference", "Interval", "bootstrap_interval", "holm", "paired_difference", "t_interval"]


class Interval(NamedTuple):
    """A mean (or other statistic) with its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Difference(NamedTuple):
    """A mean paired difference with its interval and the two-sided p-value of a paired t-test."""

    mean: float
    low: float
    high: float
    p_value: float

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def t_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Interval:
    """Student's t-interval for the mean of independent repeats.

    Args:
        values: One number a repeat.
        confidence: Coverage, in (0, 1).

    Returns:
        Mean, low, high; the ends are nan for a single value, of which nothing is known.

    Raises:
        ValueError: If there is no value, one is not finite, or the confidence is out of its range.

    Example:
        >>> print(t_interval([1.0, 2.0, 3.0]))
        2.000 [-0.484, 4.484]
    """
    from scipy import stats

    sample = _sample("values", values)
    _check_confidence(confidence)
    mean = float(sample.mean())
    if len(sample) == 1:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stats.sem(sample) * stats.t.ppf((1 + confidence) / 2, len(sample) - 1))
    return Interval(mean, mean - half, mean + half)


def paired_difference(
    a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, confidence: float = 0.95
) -> Difference:
    """Mean of a - b over pairs (equal seed, equal data), its t-interval and the paired t-test's p-value.

    Args:
        a: One number a repeat.
        b: The other method's, in the same order.
        confidence: Coverage of the interval.

    Returns:
        Mean, low, high, p-value; nan but for the mean with a single pair. Where all differences are equal the p-value
        is 1 if they are 0, else 0.

    Raises:
        ValueError: If the two are not equally long, or as :func:`t_interval`.
    """
    from scipy import stats

    first, second = _sample("a", a), _sample("b", b)
    if len(first) != len(second):
        raise ValueError(f"a and b must be pairs, got {len(first)} and {len(second)} values")
    difference = first - second
    mean, low, high = t_interval(difference, confidence)
    if len(difference) == 1:
        return Difference(mean, low, high, float("nan"))
    if np.ptp(difference) == 0:
        return Difference(mean, low, high, float(mean == 0))
    return Difference(mean, low, high, float(stats.ttest_1samp(difference, 0.0).pvalue))


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    seed: int | np.random.Generator = 0,
    *,
    confidence: float = 0.95,
    statistic: Callable[..., Any] = np.mean,
    n_resamples: int = 9999,
) -> Interval:
    """Bias-corrected and accelerated bootstrap interval; see :func:`scipy.stats.bootstrap`.

    Args:
        values: Independent observations.
        seed: Of the resampling, or a generator.
        confidence: Coverage.
        statistic: Of one sample, with an ``axis`` argument as NumPy's have.
        n_resamples: Draws.

    Returns:
        The statistic, low, high; all three equal where all values are.

    Raises:
        ValueError: If there are fewer than two values, or as :func:`t_interval`.
    """
    from scipy import stats

    sample = _sample("values", values)
    _check_confidence(confidence)
    if len(sample) < 2:
        raise ValueError(f"values must hold at least two numbers to draw from, got {len(sample)}")
    value = float(statistic(sample))
    if np.ptp(sample) == 0:
        return Interval(value, value, value)
    result = stats.bootstrap(
        (sample,),
        statistic,
        confidence_level=confidence,
        n_resamples=n_resamples,
        method="BCa",
        random_state=np.random.default_rng(seed),
    )
    return Interval(value, float(result.confidence_interval.low), float(result.confidence_interval.high))


def holm(p_values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Adjust p-values for many comparisons by Holm's step-down method.

    Args:
        p_values: One a comparison.

    Returns:
        Adjusted values in the same order: those below 0.05 keep the chance of any false finding below 5 %.

    Raises:
        ValueError: If one is not in [0, 1].

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(6).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p_values must be a list of numbers in [0, 1], got {p_values!r}")
    order = np.argsort(p, kind="stable")
    scaled = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def _sample(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
        raise ValueError(f"{name} must be a list of finite numbers, got {values!r}")
    return sample


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence!r}")
