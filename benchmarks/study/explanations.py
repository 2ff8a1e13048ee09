"""Possible reasons why learning does not help: drift, correlates of the gap to the unlearned control, and encoding.

Drift: the final means of the policies' cells, and the constant brightening or darkening that they cause and that test
images do not have. Gap: its correlation under bias fields with drift and with the remaining spread of the cells.
Encoding: how well the class can be predicted from the mask alone, and how much the training loss rises under another
image's mask.
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from benchmarks.pages import head, row
from benchmarks.study.comparisons import meant_by
from benchmarks.study.conditions import CONDITIONS, Condition
from benchmarks.study.results import Results
from policy_noise.experiments.statistics import t_interval
from policy_noise.functional import mask_brightness

SHARE = 0.2
"""A larger constant change of brightness counts as drift. This is one standard deviation of the default masks."""

FEWEST = 10
"""Degrees of freedom below which no correlation is given."""


def implied_brightness(condition: Condition, cell_mean: float) -> float | None:
    """The factor by which an image is multiplied if every cell has this mean.

    Args:
        condition: The run's condition.
        cell_mean: Mean expected value of the cells, in [0, 1].

    Returns:
        The factor. It is 1 if no policy can change the mean brightness, and None for masks without brightness.
    """
    std = condition.mask.get("brightness_std", 0.0)
    if not std:
        return None
    cells = torch.full((1, 1, *[condition.mask["grid_size"]] * 2), cell_mean)
    expected = cells if condition.mask.get("center_brightness") else None
    return float(mask_brightness(cells, std, expected))


def drift_table(records: Iterable[dict[str, Any]]) -> list[str]:
    """For learned conditions, the range over finished runs of the cells' mean and of the implied brightness."""
    ends: dict[str, list[float]] = {}
    for record in records:
        if record.get("family") == "learned" and record.get("policy"):
            ends.setdefault(record["condition"], []).append(record["policy"][-1]["cell_mean"])
    lines = head(["condition", "runs", "cell mean: least, median, most", "brightness: least, median, most", "drifted"])
    for name, means in ends.items():
        found = [implied_brightness(CONDITIONS[name], mean) for mean in means]
        factors = [factor for factor in found if factor is not None]
        drifted = sum(abs(factor - 1) > SHARE for factor in factors)
        of_brightness = [_spread(factors), f"{drifted} of {len(factors)}"] if factors else ["", ""]
        lines.append(row([name, str(len(means)), _spread(means), *of_brightness]))
    return lines


def gap_table(records: Iterable[dict[str, Any]]) -> list[str]:
    """For learned conditions with an unlearned control, correlations over runs of the test gap under bias fields.

    The gap is the run's score minus that of the control's run with the same task and seed. All numbers are centred
    within each task, so that differences between tasks do not cause correlation. Intervals are Fisher's, 95 %.
    """
    results = Results(records, "test")
    lines = head(["condition", "runs", "with the cells' deviation", "with drift"])
    for name in (name for name, family in results.family.items() if family == "learned"):
        groups: dict[str, list[tuple[float, float, float]]] = {}
        for record in (record for record in results.records if record["condition"] == name):
            task, seed, last = record["task"], record["seed"], record["policy"][-1]
            twin = results.by_seed(task, meant_by(name, "frozen twin"), "bias_field").get(seed)
            brightness = implied_brightness(CONDITIONS[name], last["cell_mean"])
            if twin is not None and brightness is not None:
                gap = results.by_seed(task, name, "bias_field")[seed] - twin
                groups.setdefault(task, []).append((gap, last["cell_std"], abs(math.log(brightness))))
        runs = [np.array(group) for group in groups.values()]
        freedom = sum(len(group) - 1 for group in runs)
        if freedom > FEWEST:
            gaps, *others = np.concatenate([group - group.mean(0) for group in runs]).T
            cells = [_correlation(gaps, other, freedom) for other in others]
            lines.append(row([name, str(sum(map(len, runs))), *cells]))
    return lines


def _correlation(a: np.ndarray, b: np.ndarray, freedom: int) -> str:
    """Correlation of centred numbers, with its interval. Empty if either is constant."""
    scale = float(np.linalg.norm(a) * np.linalg.norm(b))
    if scale < 1e-9:
        return ""
    middle, half = np.arctanh(a @ b / scale), 1.96 / math.sqrt(freedom - 2)
    return f"{a @ b / scale:+.2f} [{np.tanh(middle - half):+.2f}, {np.tanh(middle + half):+.2f}]"


def _spread(values: list[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in np.quantile(values, [0, 0.5, 1]))


def encoding_table(records: Iterable[dict[str, Any]]) -> list[str]:
    """For conditions with masks, by task: the probe's recall, and the rise of the training loss under other masks.

    Means over seeds, with ± half the 95 % t-interval for three or more seeds.
    """
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for record in records:
        if record.get("encoding"):
            found.setdefault((record["task"], record["condition"]), []).append(record["encoding"])
    columns = ["task", "condition", "seeds", "class named from the mask", "from another image's mask", "chance"]
    lines = head([*columns, "loss, other masks - own", "loss, own masks - none"])
    for (task, condition), seen in sorted(found.items(), key=lambda item: item[0][0]):
        cells = [
            _mean([one["probe"] for one in seen], ".3f"),
            _mean([one["probe_swapped"] for one in seen], ".3f"),
            f"{np.mean([one['chance'] for one in seen]):.3f}",
            _mean([one["loss_swapped"] - one["loss"] for one in seen], "+.3f"),
            _mean([one["loss"] - one["loss_unmasked"] for one in seen], "+.3f"),
        ]
        lines.append(row([task, condition, str(len(seen)), *cells]))
    return lines


def _mean(values: list[float], digits: str) -> str:
    interval = t_interval(values)
    half = f" ± {interval.high - interval.mean:.3f}" if len(values) > 2 else ""
    return f"{interval.mean:{digits}}{half}"
