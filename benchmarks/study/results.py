"""Records of runs, and paired differences between arms."""

import functools
import gzip
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from policy_noise.experiments.shifts import SHIFTS
from policy_noise.experiments.statistics import holm

FEWEST = 3
"""Seeds for an interval."""


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the records of a results file, packed or not. An incomplete last line is skipped."""
    records = []
    if path.is_file():
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        for line in text.splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                print(f"{path}: a line that is not JSON was skipped", file=sys.stderr)
    return records


def done(records: Iterable[dict[str, Any]]) -> set[str]:
    """Keys of the runs that have scores."""
    return {record["key"] for record in records if "scores" in record}


@dataclass
class Difference:
    """A paired difference over seeds: its mean, half its 95 % t-interval and p-value, NaN with fewer than 3 seeds."""

    seeds: int
    mean: float
    half: float
    p_value: float
    p_holm: float = float("nan")

    def __str__(self) -> str:
        if np.isnan(self.half):
            return f"{self.mean:+.3f}".replace("0.", ".", 1)
        star = "*" if self.p_holm < 0.05 else ""
        return f"{self.mean:+.3f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{self.half:.3f}{star}".replace("0.", ".")


class Results:
    """Scores of one split by task, arm and seed.

    Args:
        records: What ``run`` wrote. Failed runs and other splits are skipped.
        split: ``"val"`` or ``"test"``.
    """

    def __init__(self, records: Iterable[dict[str, Any]], split: str) -> None:
        self._values: dict[tuple[str, str, str], dict[int, float]] = {}
        for record in records:
            if record["split"] == split and "scores" in record:
                for measure, value in _measures(record["scores"]).items():
                    self._values.setdefault((record["task"], record["arm"], measure), {})[record["seed"]] = value

    def by_seed(self, tasks: Sequence[str], arm: str, measure: str) -> dict[int, float]:
        """The mean over tasks of each seed that all of them have."""
        found = [self._values.get((task, arm, measure), {}) for task in tasks]
        seeds = sorted(set.intersection(*map(set, found))) if found else []
        return {seed: float(np.mean([values[seed] for values in found])) for seed in seeds}

    def difference(self, tasks: Sequence[str], arm: str, control: str, measure: str) -> Difference | None:
        """An arm minus another one, in the mean over tasks, paired by seed. None without a common seed."""
        first, second = (self.by_seed(tasks, name, measure) for name in (arm, control))
        pairs = [(value, second[seed]) for seed, value in first.items() if seed in second]
        return Difference(*_paired(*zip(*pairs, strict=True))) if pairs else None


@functools.cache  # several tables show the same pairs, and a test takes a millisecond
def _paired(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[int, float, float, float]:
    """Number of pairs, mean difference, half its interval, p-value."""
    from scipy.stats import ttest_rel

    mean = float(np.subtract(first, second).mean())
    if len(first) < FEWEST:
        return len(first), mean, float("nan"), float("nan")
    test = ttest_rel(first, second)
    return len(first), mean, float(test.confidence_interval().high) - mean, float(test.pvalue)


def _measures(scores: dict[str, float]) -> dict[str, float]:
    """Average shifts over severities, and ``shifted`` over the eight shifts."""
    result = {name: value for name, value in scores.items() if ":" not in name}
    for group in dict.fromkeys(name.partition(":")[0] for name in scores if ":" in name):
        result[group] = float(np.mean([value for name, value in scores.items() if name.startswith(f"{group}:")]))
    shifts = [result[shift] for shift in SHIFTS if shift in result]
    return result | ({"shifted": float(np.mean(shifts))} if shifts else {})


def correct(column: Iterable[Difference | None]) -> None:
    """Holm's correction over a table's column."""
    tested = [difference for difference in column if difference is not None and not np.isnan(difference.half)]
    for difference, adjusted in zip(tested, holm([d.p_value for d in tested]), strict=True):
        difference.p_holm = float(adjusted)
