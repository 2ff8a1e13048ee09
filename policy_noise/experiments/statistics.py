"""What repeated runs show: intervals, paired differences, Holm's correction and power, on SciPy and statsmodels.

:func:`differences` does all of it for a table of runs, from any framework and task.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "DRAWS",
    "MIN_PAIRS",
    "MIN_PATIENTS",
    "Difference",
    "Interval",
    "bootstrap_interval",
    "differences",
    "holm",
    "paired_difference",
    "pairs_needed",
    "smallest_difference",
    "t_interval",
]

MIN_PAIRS = 5
"""Fewest pairs for a test. With three, a score of few test images claims a difference in up to a quarter of the
comparisons without any, because such scores often agree by chance."""


DRAWS = 2000
"""Bootstrap samples."""
MIN_PATIENTS = 8
"""Fewest patients for a bootstrap interval over them. Of fewer, 95 % intervals hold the truth in less than 88 %."""


class Interval(NamedTuple):
    """A mean (or other statistic) with its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        alone = math.isnan(self.low)  # a single value
        return f"{self.mean:.3f}" if alone else f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Difference(NamedTuple):
    """A mean paired difference with its interval and the two-sided p-value of a paired t-test."""

    mean: float
    low: float
    high: float
    p_value: float


def t_interval(values: Sequence[float] | np.ndarray, *, bounds: tuple[float, float] | None = None) -> Interval:
    """Student's 95 % t-interval for the mean of independent repeats.

    Args:
        values: One number per repeat.
        bounds: Range in which the mean must lie, such as (0, 1) for scores. The interval is clipped to it. Its
            coverage does not change, because the true mean is never in the clipped part.

    Returns:
        Mean, low, high. The ends are nan for a single value.

    Raises:
        ValueError: If there is no value, one is not finite or out of bounds.

    Example:
        >>> print(t_interval([1.0, 2.0, 3.0]))
        2.000 [-0.484, 4.484]
        >>> print(t_interval([0.98, 1.0], bounds=(0, 1)))
        0.990 [0.863, 1.000]
    """
    sample = _sample("values", values)
    if bounds is not None and (sample.min() < bounds[0] or sample.max() > bounds[1]):
        raise ValueError(f"values must lie in {bounds[0]} to {bounds[1]}, got {sample.min()} to {sample.max()}")
    return Interval(*_t_test(sample, bounds, 0.0)[:3])


def paired_difference(
    a: Sequence[float] | np.ndarray,
    b: Sequence[float] | np.ndarray,
    *,
    bounds: tuple[float, float] | None = None,
    floor: float = 0.0,
) -> Difference:
    """Mean of a - b over pairs (equal seed, equal data), its 95 % t-interval and the paired t-test's p-value.

    Args:
        a: One method's numbers, one per repeat.
        b: The other method's numbers, in the same order.
        bounds: Range of the difference, such as (-1, 1) for scores; see :func:`t_interval`.
        floor: Smallest standard deviation that is believed, such as that of similar comparisons.

    Returns:
        Mean, low, high, p-value. The p-value is nan (not tested) with fewer than five pairs, and if all differences
        are equal up to rounding, which says nothing of chance. With a single pair the ends are nan.

    Raises:
        ValueError: If the lengths differ, or as in :func:`t_interval`.
    """
    first, second = _sample("a", a), _sample("b", b)
    if len(first) != len(second):
        raise ValueError(f"a and b must be pairs, got {len(first)} and {len(second)} values")
    return Difference(*_t_test(_without_rounding(first, second), bounds, floor))


def _without_rounding(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Differences, made equal where only rounding tells them apart, of which a t-test would say 5e-16."""
    difference = first - second
    rounding = 8 * np.finfo(np.float64).eps * max(np.abs(first).max(), np.abs(second).max())
    return np.full_like(difference, difference.mean()) if np.ptp(difference) <= rounding else difference


def _t_test(sample: np.ndarray, bounds: tuple[float, float] | None, floor: float) -> tuple[float, float, float, float]:
    from scipy import stats

    mean, freedom = float(sample.mean()), len(sample) - 1
    if not freedom:
        return mean, math.nan, math.nan, math.nan
    spread = float(sample.std(ddof=1)) if np.ptp(sample) > 8 * np.finfo(float).eps * np.abs(sample).max() else 0.0
    error = max(spread, floor) / math.sqrt(len(sample))
    low, high = stats.t.interval(0.95, freedom, mean, error) if error else (mean, mean)
    low, high = np.clip((low, high), *(bounds or (None, None)))
    tested = spread > 0 and len(sample) >= MIN_PAIRS
    return mean, float(low), float(high), float(2 * stats.t.sf(abs(mean) / error, freedom)) if tested else math.nan


def differences(
    runs: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    level: float = 0.05,
    power: float = 0.8,
    worthwhile: float | None = 0.01,
    bounds: tuple[float, float] | None = None,
) -> list[dict[str, Any]]:
    """Compare methods on every test set, seed by seed.

    The spread of a difference over few seeds is itself uncertain, and the smallest ones look significant. So within a
    set no spread counts that is smaller than the root mean square of the set's rows; this can only make claims rarer.

    Args:
        runs: A pandas table with the columns ``method``, ``seed``, ``set`` and ``value``, one row per run and set.
        pairs: Methods to compare, each with another one.
        level: Probability of any false finding in the table, for the power.
        power: See :func:`smallest_difference`.
        worthwhile: The difference for which ``seeds_needed`` is given, if any.
        bounds: Range of a difference, such as (-1, 1) for scores.

    Returns:
        For each pair and set ``method``, ``versus``, ``measure`` (the set), ``mean``, ``low``, ``high`` (95 %), ``p``,
        ``p_holm`` (corrected for all rows), ``spread``, ``seeds``, ``smallest`` (the difference that would be found
        with that power) and ``seeds_needed``. None where there is nothing to say.

    Raises:
        ValueError: If a column is missing, a run is given twice, or a pair shares no seed.

    Example:
        >>> import pandas as pd
        >>> dice = {"plain": [0.70, 0.72, 0.69, 0.71, 0.70], "mine": [0.74, 0.75, 0.74, 0.74, 0.75]}
        >>> runs = pd.DataFrame([{"method": m, "seed": s, "set": "test", "value": v}
        ...                      for m, values in dice.items() for s, v in enumerate(values)])
        >>> row = differences(runs, [("mine", "plain")])[0]
        >>> round(row["mean"], 3), row["p_holm"] < 0.05
        (0.04, True)
    """
    missing = [name for name in ("method", "seed", "set", "value") if name not in runs.columns]
    if missing:
        raise ValueError(f"runs must have the columns method, seed, set and value, got {list(runs.columns)}")
    twice = runs[runs.duplicated(["method", "seed", "set"])]
    if len(twice):
        raise ValueError(f"runs must hold each method, seed and set once, got twice {twice.iloc[0].to_dict()}")
    wide = runs.pivot(index=["set", "seed"], columns="method", values="value")
    rows: list[dict[str, Any]] = []
    for name in dict.fromkeys(runs["set"]):
        table = wide.loc[name]
        both = {pair: table[list(pair)].dropna().to_numpy() for pair in pairs}
        alone = [f"{a} and {b} on {name}" for (a, b), values in both.items() if not len(values)]
        if alone:
            raise ValueError(f"methods are compared seed by seed, but there is no seed in common of {alone[0]}")
        spreads = {pair: _without_rounding(*values.T).std(ddof=1) if len(values) > 1 else 0.0
                   for pair, values in both.items()}  # fmt: skip
        known = [spread for spread in spreads.values() if spread > 0]
        floor = float(np.sqrt(np.mean(np.square(known)))) if known else 0.0
        for (first, second), values in both.items():
            found = paired_difference(*values.T, bounds=bounds, floor=floor)
            spread = max(spreads[first, second], floor) if spreads[first, second] > 0 else 0.0
            row = {"method": first, "versus": second, "measure": name, "mean": found.mean, "low": found.low}
            row |= {"high": found.high, "p": found.p_value, "spread": spread, "seeds": len(values)}
            rows.append(row | {"smallest": None, "seeds_needed": None})
    order = {pair: place for place, pair in enumerate(pairs)}
    rows.sort(key=lambda row: order[row["method"], row["versus"]])
    tests = max(1, sum(not math.isnan(row["p"]) for row in rows))
    for row, adjusted in zip(rows, holm([row["p"] for row in rows]), strict=True):
        strictest: dict[str, Any] = {"power": power, "alpha": level / tests}
        tested = not math.isnan(row["p"])
        row["p_holm"] = float(adjusted)
        if tested:
            row["smallest"] = smallest_difference(row["spread"], row["seeds"], **strictest)
            row["seeds_needed"] = None if worthwhile is None else pairs_needed(row["spread"], worthwhile, **strictest)
    return [{name: None if value != value else value for name, value in row.items()} for row in rows]


def bootstrap_interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Bias-corrected and accelerated 95 % bootstrap interval of a mean; see :func:`scipy.stats.bootstrap`.

    Args:
        values: Independent observations.

    Returns:
        The mean, low, high. All three are equal if all values are.

    Raises:
        ValueError: If there are fewer than two values, or as :func:`t_interval`.
    """
    from scipy import stats

    sample = _sample("values", values)
    if len(sample) < 2:
        raise ValueError(f"values must hold at least two numbers to draw from, got {len(sample)}")
    value = float(sample.mean())
    if np.ptp(sample) == 0:
        return Interval(value, value, value)
    own: dict[str, Any] = {"n_resamples": DRAWS, "random_state": np.random.default_rng(0)}
    found = stats.bootstrap((sample,), np.mean, **own).confidence_interval
    return Interval(value, float(found.low), float(found.high))


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
    from statsmodels.stats.multitest import multipletests

    p = np.asarray(p_values, dtype=np.float64)
    tested = ~np.isnan(p)
    if p.ndim != 1 or not ((p[tested] >= 0) & (p[tested] <= 1)).all():
        raise ValueError(f"p_values must be a list of numbers in [0, 1] or nan, got {p_values!r}")
    adjusted = np.full_like(p, np.nan)
    if tested.any():
        adjusted[tested] = multipletests(p[tested], method="holm")[1]
    return adjusted


def smallest_difference(spread: float, pairs: int, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The true difference that a two-sided paired t-test would find with some probability.

    Args:
        spread: Standard deviation of the differences.
        pairs: Number of pairs.
        power: Probability of finding it.
        alpha: Level of the test. For the strictest step of Holm's method, the level divided by the number of tests.

    Returns:
        The difference, or nan with too few pairs for a test.

    Raises:
        ValueError: If a number is out of its range.
    """
    if spread < 0:
        raise ValueError(f"spread must not be negative, got {spread!r}")
    if not 0 < alpha < power < 1:
        raise ValueError(f"alpha and power must lie in (0, 1), alpha below power, got {alpha!r} and {power!r}")
    if pairs < MIN_PAIRS:
        return math.nan
    return float(spread * _effect(pairs, power, alpha))


@functools.cache
def _effect(pairs: int, power: float, alpha: float) -> float:
    """The difference that is found, in standard deviations."""
    from statsmodels.stats.power import TTestPower

    return float(TTestPower().solve_power(nobs=pairs, alpha=alpha, power=power))


def pairs_needed(
    spread: float, difference: float, *, power: float = 0.8, alpha: float = 0.05, largest: int = 10_000
) -> int | None:
    """The fewest pairs that suffice to find a difference, see :func:`smallest_difference`.

    Args:
        spread: Standard deviation of the differences.
        difference: The difference to find, positive.
        power: See :func:`smallest_difference`.
        alpha: See :func:`smallest_difference`.
        largest: Largest number to return.

    Returns:
        The number of pairs, at least five. None if more than ``largest`` are needed.

    Example:
        >>> pairs_needed(0.02, 0.01)
        34
    """
    from statsmodels.stats.power import TTestPower

    if not difference > 0:
        raise ValueError(f"difference must be positive, got {difference!r}")
    if smallest_difference(spread, MIN_PAIRS, power=power, alpha=alpha) <= difference:
        return MIN_PAIRS
    if smallest_difference(spread, largest, power=power, alpha=alpha) > difference:
        return None
    return math.ceil(TTestPower().solve_power(effect_size=difference / spread, alpha=alpha, power=power))


def _sample(name: str, values: Sequence[float] | np.ndarray) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) == 0 or not np.isfinite(sample).all():
        raise ValueError(f"{name} must be a list of finite numbers, got {values!r}")
    return sample
