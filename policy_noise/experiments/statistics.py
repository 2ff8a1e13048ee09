"""Intervals and tests for few repeated runs, on SciPy."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "MIN_PAIRS",
    "Difference",
    "Interval",
    "bootstrap_interval",
    "holm",
    "paired_difference",
    "pairs_needed",
    "smallest_difference",
    "t_interval",
]

MIN_PAIRS = 3
"""Fewest pairs for a test. With two pairs and one degree of freedom, chance agreement can give any p-value."""


class Interval(NamedTuple):
    """A mean (or other statistic) with its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return _with_range(self.mean, self.low, self.high, ".3f")


class Difference(NamedTuple):
    """A mean paired difference with its interval and the two-sided p-value of a paired t-test."""

    mean: float
    low: float
    high: float
    p_value: float

    def __str__(self) -> str:
        return _with_range(self.mean, self.low, self.high, "+.3f")


def _with_range(mean: float, low: float, high: float, form: str) -> str:
    if math.isnan(low):  # a single value
        return format(mean, form)
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def t_interval(
    values: Sequence[float] | np.ndarray, confidence: float = 0.95, *, bounds: tuple[float, float] | None = None
) -> Interval:
    """Student's t-interval for the mean of independent repeats.

    Args:
        values: One number per repeat.
        confidence: Coverage, in (0, 1).
        bounds: Range in which the mean must lie, such as (0, 1) for scores. The interval is clipped to it. Its
            coverage does not change, because the true mean is never in the clipped part.

    Returns:
        Mean, low, high. The ends are nan for a single value.

    Raises:
        ValueError: If there is no value, one is not finite or out of bounds, or the confidence is out of its range.

    Example:
        >>> print(t_interval([1.0, 2.0, 3.0]))
        2.000 [-0.484, 4.484]
        >>> print(t_interval([0.98, 1.0], bounds=(0, 1)))
        0.990 [0.863, 1.000]
    """
    from scipy import stats

    sample = _sample("values", values)
    _check_confidence(confidence)
    if bounds is not None and (sample.min() < bounds[0] or sample.max() > bounds[1]):
        raise ValueError(f"values must lie in {bounds[0]} to {bounds[1]}, got {sample.min()} to {sample.max()}")
    mean = float(sample.mean())
    if len(sample) == 1:
        return Interval(mean, float("nan"), float("nan"))
    if np.ptp(sample) <= 8 * np.finfo(np.float64).eps * np.abs(sample).max():  # of which SciPy says nan, or warns
        return Interval(mean, mean, mean)
    found = stats.ttest_1samp(sample, 0.0).confidence_interval(confidence)
    low, high = np.clip((found.low, found.high), *(bounds or (None, None)))
    return Interval(mean, float(low), float(high))


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    confidence: float = 0.95,
    *,
    bounds: tuple[float, float] | None = None,
) -> Difference:
    """Mean of a - b over pairs (equal seed, equal data), its t-interval and the paired t-test's p-value.

    Args:
        a: One method's numbers, one per repeat.
        b: The other method's numbers, in the same order.
        confidence: Coverage of the interval.
        bounds: Range of the difference, such as (-1, 1) for scores; see :func:`t_interval`.

    Returns:
        Mean, low, high, p-value. With fewer than three pairs the p-value is nan (not tested), so that two seeds are
        never significant. If all differences are equal up to rounding, it is 1 if they are 0, else 0. With a single
        pair the ends are nan.

    Raises:
        ValueError: If the lengths differ, or as in :func:`t_interval`.
    """
    from scipy import stats

    first, second = _sample("a", a), _sample("b", b)
    if len(first) != len(second):
        raise ValueError(f"a and b must be pairs, got {len(first)} and {len(second)} values")
    difference = first - second
    interval = t_interval(difference, confidence, bounds=bounds)
    rounding = 8 * np.finfo(np.float64).eps * max(np.abs(first).max(), np.abs(second).max())
    p_value = float("nan")
    if not difference.any():
        p_value = 1.0
    elif len(difference) >= MIN_PAIRS:
        p_value = float(stats.ttest_rel(first, second).pvalue) if np.ptp(difference) > rounding else 0.0
    return Difference(*interval, p_value)


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
        seed: Seed of the resampling, or a generator.
        confidence: Coverage.
        statistic: Function of a sample with an ``axis`` argument, as in NumPy.
        n_resamples: Number of resamples.

    Returns:
        The statistic, low, high. All three are equal if all values are.

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
        p_values: One per comparison; nan for comparisons without a test, which are not counted.

    Returns:
        Adjusted values in the same order. Rejecting those below 0.05 keeps the probability of any false finding below
        5 %. nan stays nan.

    Raises:
        ValueError: If one is neither nan nor in [0, 1].

    Example:
        >>> holm([0.01, 0.04, 0.03]).round(6).tolist()
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    tested = ~np.isnan(p)
    if p.ndim != 1 or not ((p[tested] >= 0) & (p[tested] <= 1)).all():
        raise ValueError(f"p_values must be a list of numbers in [0, 1] or nan, got {p_values!r}")
    order = np.argsort(p, kind="stable")[: tested.sum()]  # nan comes last
    adjusted = np.full_like(p, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted


def smallest_difference(spread: float, pairs: int, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The smallest true difference that a two-sided paired t-test finds with this probability.

    With n pairs whose differences have standard deviation s, the test's statistic under a true difference d has the
    noncentral t distribution of n - 1 degrees of freedom and noncentrality d sqrt(n) / s (Cohen, Statistical Power
    Analysis for the Behavioral Sciences, 1988, chapter 2). A finding of the wrong sign does not count.

    Args:
        spread: Standard deviation of the differences.
        pairs: How many there are.
        power: Probability of finding it.
        alpha: Significance level of the test. Under Holm's correction for m tests, p < 0.05 / m is always significant.

    Returns:
        The difference, in the spread's unit; nan with fewer than three pairs, which get no test.

    Raises:
        ValueError: If a number is out of its range.

    Example:
        >>> round(smallest_difference(0.02, 8), 4)
        0.0231
    """
    from scipy import optimize, stats

    if not spread >= 0:
        raise ValueError(f"spread must not be negative, got {spread!r}")
    if not 0 < alpha < power < 1:
        raise ValueError(f"alpha and power must lie in (0, 1), alpha below power, got {alpha!r} and {power!r}")
    if pairs < MIN_PAIRS:
        return float("nan")
    freedom = pairs - 1
    critical = stats.t.isf(alpha / 2, freedom)
    normal = stats.norm.isf(alpha / 2) + stats.norm.ppf(power)

    def lacking(noncentrality: float) -> float:
        return float(stats.nct.sf(critical, freedom, noncentrality)) - power

    # Of enough pairs the t distribution is the normal one; a spread that is itself estimated asks for more.
    noncentrality = normal if pairs > 1000 else optimize.brentq(lacking, 0.0, 2 * critical + normal)
    return float(spread * noncentrality / np.sqrt(pairs))


def pairs_needed(
    spread: float, difference: float, *, power: float = 0.8, alpha: float = 0.05, largest: int = 10_000
) -> int | None:
    """The fewest pairs that suffice to find a difference, see :func:`smallest_difference`.

    Args:
        spread: Standard deviation of the differences.
        difference: The difference to find, positive.
        power: See :func:`smallest_difference`.
        alpha: See :func:`smallest_difference`.
        largest: Largest number to try.

    Returns:
        The number of pairs, at least three. None if more than ``largest`` are needed.

    Example:
        >>> pairs_needed(0.02, 0.01)
        34
    """
    if not difference > 0:
        raise ValueError(f"difference must be positive, got {difference!r}")

    def enough(pairs: int) -> bool:
        return smallest_difference(spread, pairs, power=power, alpha=alpha) <= difference

    low, high = MIN_PAIRS - 1, MIN_PAIRS
    while not enough(high):
        if high >= largest:
            return None
        low, high = high, min(2 * high, largest)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _sample(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
        raise ValueError(f"{name} must be a list of finite numbers, got {values!r}")
    return sample


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence!r}")
