"""Intervals over patients: how much a difference depends on who was tested."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..statistics import DRAWS, MIN_PATIENTS

__all__ = ["over_patients"]


def over_patients(
    folders: Mapping[tuple[str, int], Path], pairs: Sequence[tuple[str, str]], measures: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Bootstrap differences of macro F1, averaged over seeds, over the patients of each test set.

    A patient is drawn with all images, and the same draws count for all methods. Drawing patients means adding up their
    confusion matrices.

    Args:
        folders: Of finished runs, by method and seed, with ``predictions.csv``.
        pairs: Methods to compare.
        measures: The test sets.

    Returns:
        For each pair and set whose predictions name patients ``method``, ``versus``, ``measure``, ``low``, ``high``
        (95 %; None for fewer than :data:`~policy_noise.experiments.statistics.MIN_PATIENTS`) and ``patients``.
    """
    import pandas as pd

    tables = {}
    for run, folder in folders.items():
        path = folder / "predictions.csv"
        if not path.is_file():
            return []
        tables[run] = pd.read_csv(path, usecols=lambda name: name in ("set", "patient", "label", "predicted"))
    if not tables or "patient" not in next(iter(tables.values())).columns:
        return []
    rows = []
    for measure in measures:
        chosen = {run: table["set"] == measure["key"] for run, table in tables.items()}
        parts = {run: table[chosen[run] & table["patient"].notna()] for run, table in tables.items()}
        first = next(iter(parts.values()))
        names = np.unique(first["patient"].astype(str))
        if len(names) < MIN_PATIENTS:
            few = {"measure": measure["key"], "low": None, "high": None, "patients": len(names)}
            rows += [{"method": method, "versus": versus, **few} for method, versus in pairs if len(names)]
            continue
        classes = sorted({*first["label"], *(label for part in parts.values() for label in part["predicted"])})
        rng = np.random.default_rng(0)
        weights = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)
        scores: dict[str, list[np.ndarray]] = {}
        for (method, _), part in parts.items():
            people = pd.Categorical(part["patient"].astype(str), names).codes
            truth, guess = (pd.Categorical(part[name], classes).codes for name in ("label", "predicted"))
            counts = np.zeros((len(names), len(classes), len(classes)))
            np.add.at(counts, (people, truth, guess), 1)
            scores.setdefault(method, []).append(_macro_f1(np.tensordot(weights, counts, 1)))
        means = {method: np.mean(several, 0) for method, several in scores.items()}
        for method, versus in pairs:
            low, high = np.quantile(means[method] - means[versus], (0.025, 0.975)).tolist()
            row = {"method": method, "versus": versus, "measure": measure["key"], "low": low, "high": high}
            rows.append(row | {"patients": len(names)})
    return rows


def _macro_f1(counts: np.ndarray) -> np.ndarray:
    """Of confusion matrices, (B, K, K), over the classes that occur in each."""
    hits, support, predicted = counts.diagonal(axis1=1, axis2=2), counts.sum(2), counts.sum(1)
    there = support > 0
    f1 = 2 * hits / np.maximum(1, support + predicted)
    return (f1 * there).sum(1) / np.maximum(1, there.sum(1))
