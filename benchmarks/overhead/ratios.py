"""Ratios of times and of memory, with their intervals, from a configuration's record."""

import math
from statistics import median
from typing import Any

from scipy.optimize import nnls
from scipy.stats import quantile_test

from policy_noise.experiments.statistics import t_interval


def ratio(record: dict[str, Any], variant: str, to: str) -> tuple[float, float, float] | None:
    """Median of the paired ratios of times, and its interval."""
    if variant not in record["arms"] or to not in record["arms"]:
        return None
    pairs = zip(record["arms"][variant]["seconds"], record["arms"][to]["seconds"], strict=True)
    return with_interval([mine / other for mine, other in pairs])


def ratio_by_hooks(record: dict[str, Any], variant: str) -> tuple[float, float, float] | None:
    """Median ratio, with interval, of the whole step to the same step without the time in the package's hooks."""
    timed = record["arms"].get(variant, {})
    if "seconds_in_hooks" not in timed:
        return None
    pairs = zip(timed["seconds"], timed["seconds_in_hooks"], strict=True)
    return with_interval([whole / (whole - inside) for whole, inside in pairs])


def with_interval(values: list[float]) -> tuple[float, float, float]:
    if len(values) < 6:  # with fewer values no 95 % interval of the median exists
        return median(values), math.nan, math.nan
    interval = quantile_test(values, q=1.0, p=0.5).confidence_interval(0.95)
    return median(values), float(interval.low), float(interval.high)


def memory_ratio(record: dict[str, Any], variant: str, to: str = "plain") -> float | None:
    values = [record["arms"].get(name, {}).get("peak_memory_bytes") for name in (variant, to)]
    return None if None in values else values[0] / values[1]


def added(record: dict[str, Any], variant: str = "learned") -> float:
    """Seconds that a variant adds to the plain step: the time in its hooks if measured, else the paired difference."""
    if "seconds_in_hooks" in record["arms"][variant]:
        return median(record["arms"][variant]["seconds_in_hooks"])
    pairs = zip(record["arms"][variant]["seconds"], record["arms"]["plain"]["seconds"], strict=True)
    return median(mine - other for mine, other in pairs)


def law(results: dict[str, Any]) -> str:
    """Fit the added time by a constant, a term in pixels and a term in cells, by least squares of relative errors."""
    points = [
        (
            1e3 * added(record),
            one["batch"] * one["size"] ** 2 / 1e6,
            one["batch"] * (one["grid"] or results["default_grid"]) ** 2 / 1e3,
        )
        for record in results["configurations"]
        if "error" not in record and "learned" in record["arms"] and (one := record["configuration"])
    ]
    measured = [point for point in points if point[0] > 0]  # relative errors need positive values
    if len({point[1:] for point in measured}) < 4:
        return "- too few configurations for a law of the cost"
    rows = [(1 / cost, pixels / cost, cells / cost) for cost, pixels, cells in measured]
    (constant, by_pixels, by_cells), _ = nnls(rows, [1.0] * len(rows))
    errors = [abs(constant * row[0] + by_pixels * row[1] + by_cells * row[2] - 1) for row in rows]
    return (
        "- O(B H W) plus O(B G^2) plus a constant, one fit for all classifiers: learned masks add "
        f"{constant:.2f} ms, {by_pixels:.2f} ms for a million pixels and {by_cells:.2f} ms for a thousand cells "
        f"({len(measured)} of {len(points)} configurations, off by {100 * median(errors):.0f} % in the median and "
        f"{100 * max(errors):.0f} % at most)"
    )


def the_rest(results: dict[str, Any]) -> list[str]:
    """Compare the rest of a step with the plain step over all configurations. It shows costs outside the hooks."""
    ratios: dict[str, list[float]] = {}
    for record in results["configurations"]:
        for name, variant in record.get("arms", {}).items():
            if name == "plain again" or "seconds_in_hooks" in variant:
                inside = variant.get("seconds_in_hooks", [0.0] * len(variant["seconds"]))
                steps = zip(variant["seconds"], inside, record["arms"]["plain"]["seconds"], strict=True)
                ratios.setdefault(name, []).extend(math.log((whole - part) / plain) for whole, part, plain in steps)
    return [
        f"- a step without the time in hooks, divided by the plain step, {name}: {math.exp(found.mean):.3f} "
        f"({math.exp(found.low):.3f} to {math.exp(found.high):.3f}; geometric mean of {len(values)} pairs)"
        for name, values in ratios.items()
        for found in [t_interval(values)]
    ]
