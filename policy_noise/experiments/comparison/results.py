"""The results of a comparison in numbers: means, paired differences and statistical power."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..runs import read_json
from ..shifts import SHIFTS
from ..statistics import MIN_PAIRS, holm, paired_difference, pairs_needed, smallest_difference, t_interval
from .methods import CONTROLS, REFERENCE
from .plan import SCORES
from .scoring import METRICS

__all__ = ["ALPHA", "PLAN", "POINT", "POWER", "results_of"]

PLAN = "plan.json"
"""Name of the file, in a comparison's folder, with the methods and seeds of its last call."""
ALPHA = 0.05
POWER = 0.8
POINT = 0.01
"""One percentage point of a score."""

Scores = Mapping[str, Mapping[int, Mapping[str, Mapping[str, float]]]]


def results_of(folder: Path) -> dict[str, Any]:
    """Collect everything that a comparison reports, ready for JSON.

    Args:
        folder: The comparison's folder, with finished runs.

    Returns:
        The record, ``methods``, ``runs`` (every score), ``missing`` runs, ``overlaps`` (images that are in the training
        split too, by measure), and ``tables``: ``f1`` and ``roc_auc`` of all measures and ``shifts``, F1 under each
        shift. A table has ``measures``, ``means``, and ``differences`` whose p-values are adjusted by Holm's method as
        one family.

    Raises:
        FileNotFoundError: If the folder holds no comparison.
        ValueError: If no seed has the scores of all methods.
    """
    if not (folder / PLAN).is_file():
        raise FileNotFoundError(f"{folder} holds no comparison: {PLAN} is missing")
    plan, record = read_json(folder / PLAN), read_json(folder / "recipe.json")
    names = [method["name"] for method in plan["methods"]]
    runs, missing = [], []
    for seed in plan["seeds"]:
        for name in names:
            path = folder / "runs" / f"{name}-{seed}" / SCORES
            if path.is_file():
                runs.append(read_json(path))
            else:
                missing.append(f"{name}-{seed}")
    scores: dict[str, dict[int, Any]] = {name: {} for name in names}
    for run in runs:
        scores[run["method"]][run["seed"]] = run["scores"]
    complete = [seed for seed in plan["seeds"] if all(seed in scores[name] for name in names)]
    if not complete:
        raise ValueError(f"{folder}: no seed has the scores of all methods yet; missing: {missing[:10]}")
    scores = {name: {seed: scores[name][seed] for seed in complete} for name in names}
    measures = _measures(record["data"])
    single = [{"key": f"shift:{name}", "label": name.replace("_", " ")} for name in SHIFTS]
    return {
        "record": record,
        "methods": plan["methods"],
        "seeds": complete,
        "missing": missing,
        "overlaps": plan.get("overlaps", {}),  # a comparison of an older version has not looked
        "environment": read_json(folder / "environment.json"),
        "settings": {"alpha": ALPHA, "power": POWER, "point": POINT, "reference": REFERENCE},
        "tables": {
            "f1": _table(scores, measures, "f1"),
            "roc_auc": _table(scores, measures, "roc_auc"),
            "shifts": _table(scores, single, "f1"),
        },
        "runs": runs,
    }


def _measures(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The test sets that are scored. ``classes`` is the number of classes that can be predicted."""
    return [
        {"key": "clean", "label": "clean test images", "classes": data["classes"]},
        *(
            {"key": f"site:{site['name']}", "label": f"site {site['name']}", "classes": len(site["classes"])}
            for site in data["sites"]
        ),
        {"key": "shifts", "label": "the eight shifts", "classes": data["classes"]},
        *(
            {"key": f"few-shot:{target['name']}", "label": f"few-shot, {target['name']}", "classes": target["classes"]}
            for target in data["targets"]
        ),
    ]


def _value(scores: Mapping[str, Mapping[str, float]], key: str, metric: str) -> float:
    """A run's score. Shifts are averaged over shifts and severities, few-shot transfer over numbers of images."""
    if key == "clean" or key.startswith("site:"):
        return scores[key][metric]
    start = "shift:" if key == "shifts" else f"{key}:"
    return float(np.mean([score[metric] for name, score in scores.items() if name.startswith(start)]))


def _table(scores: Scores, measures: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """Means and differences of some measures. All tests of the table are one family."""
    values = {
        (name, measure["key"]): [_value(run, measure["key"], metric) for run in by_seed.values()]
        for name, by_seed in scores.items()
        for measure in measures
    }
    pairs = [(name, REFERENCE) for name in scores if name != REFERENCE]
    pairs += [pair for pair in CONTROLS if scores.keys() >= set(pair)]
    rows = [_difference(values, first, second, m["key"]) for first, second in pairs for m in measures]
    adjusted = holm([math.nan if row["p"] is None else row["p"] for row in rows])
    tests = max(1, sum(row["p"] is not None for row in rows))
    for row, value in zip(rows, adjusted, strict=True):
        row["p_holm"] = _number(value)
        spread, seeds = row["spread"], row["seeds"]
        known = row["p"] is not None and spread is not None and spread > 0
        row["smallest"] = smallest_difference(spread, seeds, power=POWER, alpha=ALPHA / tests) if known else None
        row["seeds_for_a_point"] = pairs_needed(spread, POINT, power=POWER, alpha=ALPHA / tests) if known else None
    means: dict[str, dict[str, list[float | None]]] = {}
    for (name, key), found in values.items():
        means.setdefault(name, {})[key] = [_number(end) for end in t_interval(found, bounds=(0, 1))]
    return {
        "metric": metric,
        "metric_label": METRICS[metric],
        "measures": list(measures),
        "means": means,
        "differences": rows,
        "tests": tests,
    }


def _difference(values: Mapping[tuple[str, str], Sequence[float]], first: str, second: str, key: str) -> dict[str, Any]:
    own, other = values[first, key], values[second, key]
    found = paired_difference(own, other, bounds=(-1, 1))
    spread = float(np.std(np.subtract(own, other), ddof=1)) if len(own) > 1 else math.nan
    return {
        "method": first,
        "versus": second,
        "measure": key,
        "mean": found.mean,
        "low": _number(found.low),
        "high": _number(found.high),
        "p": _number(found.p_value) if len(own) >= MIN_PAIRS else None,
        "spread": _number(spread),
        "seeds": len(own),
    }


def _number(value: float) -> float | None:
    """None for nan, which JSON does not have."""
    return None if math.isnan(value) else float(value)
