"""Intervals and tests."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from policy_noise.experiments.statistics import (
    MIN_PAIRS,
    bootstrap_interval,
    differences,
    holm,
    paired_difference,
    pairs_needed,
    smallest_difference,
    t_interval,
)


def test_t_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(500):
        interval = t_interval(rng.normal(3.0, 2.0, 4))
        inside += interval.low <= 3.0 <= interval.high
    assert 0.92 < inside / 500 < 0.98


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
    a, b = [0.8, 0.7, 0.9, 0.6, 0.7], [0.7, 0.65, 0.7, 0.61, 0.7]
    result = paired_difference(a, b)
    assert result.p_value == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert result[:3] == pytest.approx(t_interval(np.subtract(a, b)))
    interval = stats.ttest_rel(a, b).confidence_interval()
    assert result[1:3] == pytest.approx((interval.low, interval.high))


def test_a_floor_widens_only_smaller_spreads():
    a, b = [0.8, 0.7, 0.9, 0.6, 0.7], [0.7, 0.65, 0.7, 0.61, 0.7]
    free = paired_difference(a, b)
    assert paired_difference(a, b, floor=0.01) == free
    wide = paired_difference(a, b, floor=1.0)
    assert wide.p_value == pytest.approx(2 * stats.t.sf(free.mean / (1 / 5**0.5), 4))
    assert wide.high - wide.mean == pytest.approx(stats.t.isf(0.025, 4) / 5**0.5)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ([0.8, 0.7], [0.7, 0.6]),
        ([0.9, 0.7], [0.7, 0.51]),
        ([0.8, 0.7, 0.9, 0.6], [0.7, 0.65, 0.7, 0.61]),
    ],
)
def test_few_pairs_are_not_tested(a, b):
    assert np.isnan(paired_difference(a, b).p_value)


@pytest.mark.parametrize("step", [0.0, 0.1])
def test_equal_differences_are_not_tested(step):
    a = np.array([0.8, 0.7, 0.9, 0.6, 0.3])  # minus .1, rounding alone tells some apart: a t-test says 5e-16
    found = paired_difference(a, a - step)
    assert np.isnan(found.p_value)
    assert found[:3] == pytest.approx([step] * 3)


def test_intervals_of_scores_end_at_their_bounds():
    scores = [0.95, 1.0, 0.97, 1.0]
    free, cut = t_interval(scores), t_interval(scores, bounds=(0, 1))
    assert free.high > 1
    assert cut == (free.mean, free.low, 1.0)
    assert paired_difference([1.0, 0.4], [0.2, 0.1], bounds=(-1, 1))[1:3] == (-1.0, 1.0)


def test_a_bootstrap_of_many_normal_values_is_the_t_interval():
    values = np.random.default_rng(0).normal(size=400)
    interval = bootstrap_interval(values)
    assert interval == bootstrap_interval(values)
    assert interval == pytest.approx(t_interval(values), abs=0.01)
    assert bootstrap_interval([2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]).tolist() == [1.0, 1.0]
    assert holm([0.02, float("nan"), 0.03]) == pytest.approx([0.04, float("nan"), 0.04], nan_ok=True)


@pytest.mark.parametrize(("pairs", "alpha"), [(5, 0.05), (8, 0.05), (8, 0.005)])
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
    assert pairs_needed(0.0, 0.01) == pairs_needed(1e-9, 0.01) == MIN_PAIRS
    assert pairs_needed(5.0, 0.01) is None
    assert np.isnan(smallest_difference(0.02, MIN_PAIRS - 1))


# -- tables of runs, and how often they claim a difference where there is none -----------------------------------------


def table(values, names):
    """Scores of shape (methods, seeds, sets) as a table of runs."""
    index = [(name, seed, f"set {place}", values[number, seed, place]) for number, name in enumerate(names)
             for seed in range(values.shape[1]) for place in range(values.shape[2])]  # fmt: skip
    return pd.DataFrame(index, columns=["method", "seed", "set", "value"])


def test_differences_are_those_of_each_pair_and_set():
    values = np.random.default_rng(0).random((3, 6, 2))
    rows = differences(table(values, "abc"), [("b", "a"), ("c", "a")])
    assert [(row["method"], row["measure"]) for row in rows] == [
        ("b", "set 0"),
        ("b", "set 1"),
        ("c", "set 0"),
        ("c", "set 1"),
    ]
    for place in range(2):
        own = [values[number, :, place] - values[0, :, place] for number in (1, 2)]
        pooled = np.sqrt(np.mean([part.var(ddof=1) for part in own]))
        for row, part in zip(rows[place::2], own, strict=True):
            assert row["mean"] == pytest.approx(part.mean())
            assert row["spread"] == pytest.approx(max(part.std(ddof=1), pooled))
            error = row["spread"] / 6**0.5
            assert row["p"] == pytest.approx(2 * stats.t.sf(abs(row["mean"]) / error, 5))
    assert [row["p_holm"] for row in rows] == pytest.approx(holm([row["p"] for row in rows]))
    assert rows[0]["smallest"] == pytest.approx(smallest_difference(rows[0]["spread"], 6, alpha=0.05 / 4))


def test_runs_that_cannot_be_compared():
    runs = table(np.random.default_rng(0).random((2, 5, 1)), "ab")
    with pytest.raises(ValueError, match="no seed in common of b and a on set 0"):
        differences(runs.assign(seed=range(10)), [("b", "a")])
    with pytest.raises(ValueError, match="each method, seed and set once"):
        differences(pd.concat([runs, runs]), [("b", "a")])
    with pytest.raises(ValueError, match=r"the columns method, seed, set and value, got \['method'"):
        differences(runs.drop(columns="value"), [("b", "a")])


def p_values_of(differences_of):
    """The p-values of many differences, (N, seeds), by the rule of paired_difference, all at once."""
    spread = differences_of.std(1, ddof=1)
    equal = spread < 1e-12
    t = np.abs(differences_of.mean(1)) / np.where(equal, np.inf, spread) * differences_of.shape[1] ** 0.5
    p = 2 * stats.t.sf(t, differences_of.shape[1] - 1)
    return np.where(equal, np.nan, p)


def without_a_difference(rng, comparisons, seeds, images, accuracy):
    """Two methods that are equally good, on few test images: a discrete score."""
    a, b = rng.binomial(images, accuracy, (2, comparisons, seeds)) / images
    return a, b


@pytest.mark.parametrize("accuracy", [0.75, 0.97])
@pytest.mark.parametrize("images", [20, 60, 225])
def test_discrete_scores_of_five_seeds_seldom_claim_a_difference(images, accuracy):
    a, b = without_a_difference(np.random.default_rng(images), 20_000, MIN_PAIRS, images, accuracy)
    p = p_values_of(a - b)
    assert (p < 0.05).mean() < 0.055
    for own in range(5):
        assert paired_difference(a[own], b[own]).p_value == pytest.approx(p[own], nan_ok=True)


@pytest.mark.parametrize(("seeds", "low", "high"), [(3, 0.1, 1.0), (MIN_PAIRS, 0.0, 0.055)])
def test_fewer_seeds_than_the_minimum_would_claim_too_much(seeds, low, high):
    """Comparisons of twelve rows in which two methods differ by chance on few of 60 images of each set."""
    rng = np.random.default_rng(0)
    wins, losses = rng.binomial(60, 0.05, (2, 4000, 12, seeds))
    found = (wins - losses) / 60
    p = p_values_of(found.reshape(-1, seeds)).reshape(found.shape[:2])
    if seeds < MIN_PAIRS:  # equal differences, taken as a finding
        p = np.where(np.isnan(p) & (found[..., 0] != 0), 0.0, p)
    claims = (np.nanmin(p, 1) * 12 < 0.05).mean()
    assert low < claims < high or claims == low


def test_a_level_divided_over_looks_holds_where_looking_again_does_not():
    """Runs are added until a difference is significant: after 5, 8, 11 and 14 seeds."""
    rng = np.random.default_rng(0)
    looks = (5, 8, 11, 14)
    draws = rng.standard_normal((3000, looks[-1]))
    p = np.stack([stats.ttest_1samp(draws[:, :seeds], 0, axis=1).pvalue for seeds in looks], axis=1)
    assert (p.min(1) < 0.05).mean() > 0.08
    assert (p.min(1) < 0.05 / len(looks)).mean() < 0.05


@pytest.mark.usefixtures("without_garbage")
def test_a_shared_floor_makes_claims_of_a_family_rarer():
    """Five arms that are all like the reference, on a set near chance, where spreads over five seeds vary most."""
    rng = np.random.default_rng(0)
    free = shared = 0
    for _ in range(60):
        values = rng.binomial(60, 0.2, (6, 5, 1)) / 60
        rows = differences(table(values, "abcdef"), [(name, "a") for name in "bcdef"], worthwhile=None)
        shared += any(row["p_holm"] is not None and row["p_holm"] < 0.05 for row in rows)
        own = holm([paired_difference(values[n, :, 0], values[0, :, 0]).p_value for n in range(1, 6)])
        free += bool(np.nanmin(own) < 0.05)
    assert shared <= free
    assert shared / 60 < 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t_interval([]), "values must be a list of finite numbers"),
        (lambda: t_interval([1.0, float("nan")]), "values must be a list of finite numbers"),
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
