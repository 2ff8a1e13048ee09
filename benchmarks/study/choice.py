"""The rule of suite entropy-screen, which selects the entropy-controlled condition to test."""

from typing import NamedTuple

import numpy as np

from benchmarks.pages import head, row
from benchmarks.study.conditions import HELD
from benchmarks.study.results import Results
from policy_noise.experiments.statistics import Interval, t_interval

CONTROL = "frozen-2x2-dose10-level20"
MEASURES = ("clean", "shifted", "bias_field")


class Candidate(NamedTuple):
    """A condition, its differences from the control by measure, their mean, and whether the rule keeps it."""

    name: str
    differences: dict[str, Interval]
    mean: float
    kept: bool


def candidates(results: Results) -> list[Candidate]:
    """The entropy-controlled conditions, sorted by the mean of the three measures, the best first.

    Differences are paired by task and seed, and all pairs have the same weight. A condition is excluded if the 95 %
    t-interval of any measure lies below 0.

    Raises:
        ValueError: If the control is missing.
    """
    if CONTROL not in results.family:
        raise ValueError(f"the results have no {CONTROL}, which candidates are compared with: {list(results.family)}")
    found = []
    for name in (name for name in results.family if name in HELD):
        differences = {measure: t_interval(_pairs(results, name, measure)) for measure in MEASURES}
        mean = float(np.mean([interval.mean for interval in differences.values()]))
        found.append(Candidate(name, differences, mean, all(not d.high < 0 for d in differences.values())))
    return sorted(found, key=lambda candidate: -candidate.mean)


def _pairs(results: Results, name: str, measure: str) -> list[float]:
    return [
        value - results.by_seed(task, CONTROL, measure)[seed]
        for task in results.tasks
        for seed, value in results.by_seed(task, name, measure).items()
    ]


def choice_table(results: Results) -> str:
    """All candidates, and the one that the rule selects."""
    found = candidates(results)
    lines = head([f"against {CONTROL}", *MEASURES, "mean of the three", "in"])
    for name, differences, mean, kept in found:
        cells = [f"{d.mean:+.4f} ± {d.high - d.mean:.4f}" for d in differences.values()]
        lines.append(row([name, *cells, f"{mean:+.4f}", "yes" if kept else "no"]))
    taken = next((candidate.name for candidate in found if candidate.kept), "none")
    return "\n".join([*lines, "", f"Taken: {taken}"])
