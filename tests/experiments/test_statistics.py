"""Intervals and tests."""

import numpy as np
import pytest
from scipy import stats

from policy_noise.experiments.statistics import (
    bootstrap_interval,
    holm,
    paired_difference,
    pairs_needed,
    smallest_difference,
    t_interval,
)


def test_t_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        interval = t_interval(rng.normal(3.0, 2.0, 4))
        inside += interval.low <= 3.0 <= interval.high
    assert 0.93 < inside / 1000 < 0.97


def test_t_interval_by_table():
    # t(0.975, 2) = 4.3027
    mean, low, high = t_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)


def test_single_value_has_no_interval():
    mean, low, high = t_interval([0.5])
    assert mean == 0.5
    assert np.isnan([low, high]).all()
    assert str(t_interval([0.25])) == "0.250"


def test_paired_difference():
    a, b = [0.8, 0.7, 0.9, 0.6], [0.7, 0.65, 0.7, 0.61]
    result = paired_difference(a, b)
    assert result.p_value == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert result[:3] == pytest.approx(t_interval(np.subtract(a, b)))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([0.8, 0.7], [0.7, 0.6]),  # differences that rounding alone tells apart: a t-test says 5e-16
        ([0.9, 0.7], [0.7, 0.51]),
        ([2.0, 2.0], [1.0, 1.0]),
    ],
)
def test_two_pairs_are_not_tested(a, b):
    assert np.isnan(paired_difference(a, b).p_value)


def test_equal_differences():
    assert paired_difference([0.8, 0.7, 0.9], [0.7, 0.6, 0.8]).p_value == 0.0
    assert paired_difference([1.0, 1.0], [1.0, 1.0]).p_value == 1.0


def test_intervals_of_scores_end_at_their_bounds():
    scores = [0.95, 1.0, 0.97, 1.0]
    free, cut = t_interval(scores), t_interval(scores, bounds=(0, 1))
    assert free.high > 1
    assert cut == (free.mean, free.low, 1.0)
    assert paired_difference([1.0, 0.4], [0.2, 0.1], bounds=(-1, 1))[1:3] == (-1.0, 1.0)


def test_bootstrap_follows_its_seed():
    values = np.random.default_rng(0).exponential(size=30)
    interval = bootstrap_interval(values, 1)
    assert interval == bootstrap_interval(values, 1)
    assert interval != bootstrap_interval(values, 2)
    assert interval.low < interval.mean < interval.high
    assert bootstrap_interval(values, np.random.default_rng(1)) == interval
    assert bootstrap_interval([2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([0.02, float("nan"), 0.03]) == pytest.approx([0.04, float("nan"), 0.04], nan_ok=True)


@pytest.mark.parametrize(("pairs", "alpha"), [(3, 0.05), (8, 0.05), (8, 0.005)])
def test_the_smallest_difference_is_found_four_times_in_five(pairs, alpha):
    difference = smallest_difference(2.0, pairs, alpha=alpha)
    draws = np.random.default_rng(0).normal(difference, 2.0, (20_000, pairs))
    assert (stats.ttest_1samp(draws, 0.0, axis=1).pvalue < alpha).mean() == pytest.approx(0.8, abs=0.01)


def test_of_many_pairs_the_smallest_difference_is_the_normal_distributions():
    closed = stats.norm.isf(0.025) + stats.norm.ppf(0.8)  # 2.80 standard errors
    for pairs in (1000, 1001, 100_000):
        assert smallest_difference(3.0, pairs) * pairs**0.5 / 3.0 == pytest.approx(closed, rel=2e-3)


def test_pairs_needed_are_the_fewest():
    pairs = pairs_needed(0.02, 0.01)
    assert smallest_difference(0.02, pairs) <= 0.01 < smallest_difference(0.02, pairs - 1)
    assert pairs_needed(0.0, 0.01) == pairs_needed(1e-9, 0.01) == 3
    assert pairs_needed(5.0, 0.01) is None
    assert np.isnan(smallest_difference(0.02, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t_interval([]), "values must be a list of finite numbers"),
        (lambda: t_interval([1.0, float("nan")]), "values must be a list of finite numbers"),
        (lambda: t_interval([1.0, 2.0], 95), "confidence must lie in"),
        (lambda: t_interval([0.5, 1.5], bounds=(0, 1)), "values must lie in 0 to 1, got 0.5 to 1.5"),
        (lambda: paired_difference([1.0], [1.0, 2.0]), "a and b must be pairs, got 1 and 2"),
        (lambda: bootstrap_interval([1.0]), "at least two"),
        (lambda: holm([0.5, 1.5]), "p_values must be"),
        (lambda: smallest_difference(-1.0, 8), "spread must not be negative, got -1.0"),
        (lambda: smallest_difference(1.0, 8, power=0.01), "alpha and power must lie in"),
        (lambda: pairs_needed(1.0, 0.0), "difference must be positive, got 0.0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
