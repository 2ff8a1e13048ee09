"""The results of a comparison in numbers: means, paired differences and statistical power."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..runs import read_json
from ..shifts import SHIFTS
from ..statistics import MIN_PAIRS, differences, t_interval
from .methods import controls
from .patients import over_patients
from .plan import SCORES
from .scoring import METRICS

__all__ = ["ALPHA", "PLAN", "POINT", "POWER", "results_of", "scores_of", "table_of"]

PLAN = "plan.json"
"""Name of the file, in a comparison's folder, with its methods, seeds and looks."""
ALPHA = 0.05
POWER = 0.8
POINT = 0.01
"""One percentage point of a score."""


def results_of(folder: Path) -> dict[str, Any]:
    """Collect everything that a comparison reports, ready for JSON.

    Args:
        folder: The comparison's folder, with finished runs.

    Returns:
        The record, ``methods``, ``runs`` (every score), ``missing`` runs, ``overlaps`` (images that are in the training
        split too, by measure), ``patients`` (intervals over patients), and ``tables``: ``f1`` and ``roc_auc`` of all
        measures, ``shifts``, F1 under each shift, and ``medmnistc``, its errors, if asked for; see :func:`table_of`.

    Raises:
        FileNotFoundError: If the folder holds no comparison.
        ValueError: If no seed has the scores of all methods, or runs left out different numbers of unreadable images.
    """
    import pandas as pd

    if not (folder / PLAN).is_file():
        raise FileNotFoundError(f"{folder} holds no comparison: {PLAN} is missing")
    plan, record = read_json(folder / PLAN), read_json(folder / "recipe.json")
    names = [method["name"] for method in plan["methods"]]
    jobs = [(name, seed) for seed in plan["seeds"] for name in names]
    paths = {(name, seed): folder / "runs" / f"{name}-{seed}" / SCORES for name, seed in jobs}
    missing = [f"{name}-{seed}" for (name, seed), path in paths.items() if not path.is_file()]
    runs = [read_json(path) for path in paths.values() if path.is_file()]
    complete = [seed for seed in plan["seeds"] if not any(f"{name}-{seed}" in missing for name in names)]
    if not complete:
        raise ValueError(f"{folder}: no seed has the scores of all methods yet; missing: {missing[:10]}")
    _require_equal_sets(folder, runs)
    measures = _measures(record["data"])
    single = [{"key": f"shift:{name}", "label": name.replace("_", " ")} for name in SHIFTS]
    reference, looks = plan["reference"], plan["looks"]

    whole = [run for run in runs if run["seed"] in complete]
    pairs, level = controls(names, reference), ALPHA / looks

    def table(chosen: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
        scores = scores_of(whole, chosen, metric)
        return table_of(scores, pairs, chosen, metric=METRICS[metric], level=level, bounds=(0, 1))

    tables = {"f1": table(measures, "f1"), "roc_auc": table(measures, "roc_auc"), "shifts": table(single, "f1")}
    if record["data"].get("shifts"):
        errors = [{"key": "be", "label": "BE"}, {"key": "rbe", "label": "rBE"}]
        parts = [scores_of(whole, [{"key": "medmnistc"}], own["key"]).assign(set=own["key"]) for own in errors]
        about = "MedMNIST-C's balanced error (BE) and relative balanced error (rBE), AlexNet's being 1"
        tables["medmnistc"] = table_of(pd.concat(parts), pairs, errors, metric=about, level=level, higher=False)
    folders = {(name, seed): paths[name, seed].parent for name in names for seed in complete}
    return {
        "record": record,
        "methods": plan["methods"],
        "seeds": complete,
        "missing": missing,
        "overlaps": plan["overlaps"],
        "environment": read_json(folder / "environment.json"),
        "settings": {"alpha": ALPHA, "looks": looks, "power": POWER, "point": POINT, "reference": reference},
        "tables": tables,
        "patients": over_patients(folders, pairs, measures),
        "runs": runs,
    }


def _require_equal_sets(folder: Path, runs: Sequence[Mapping[str, Any]]) -> None:
    """Check that all runs were scored on equally many images, as files may turn bad, or be mended, between two runs."""
    for key in runs[0]["scores"]:
        skipped = {f"{run['method']}-{run['seed']}": run["scores"][key].get("files_skipped", 0) for run in runs}
        fewest, most = min(skipped, key=skipped.__getitem__), max(skipped, key=skipped.__getitem__)
        if skipped[fewest] != skipped[most]:
            raise ValueError(
                f"{folder}: its runs were scored on different images ({key}): {most} left out {skipped[most]} bad "
                f"files, {fewest} {skipped[fewest]}. Remove the folders of one kind from runs/, and --resume"
            )


def _measures(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The test sets that are scored. ``classes`` is the number of classes among which one is predicted."""
    measures = [
        {"key": "clean", "label": "clean test images", "classes": data["classes"]},
        *(
            {"key": f"site:{site['name']}", "label": f"site {site['name']}", "classes": len(site["classes"])}
            for site in data["sites"]
        ),
        {"key": "shifts", "label": "the eight shifts", "classes": data["classes"]},
        *([{"key": "medmnistc", "label": "MedMNIST-C", "classes": data["classes"]}] if data.get("shifts") else []),
        *(
            {"key": f"few-shot:{target['name']}", "label": f"few-shot, {target['name']}", "classes": target["classes"]}
            for target in data["targets"]
        ),
    ]
    several = data.get("multi_label")
    return [{name: m[name] for name in ("key", "label")} for m in measures] if several else measures


def scores_of(runs: Sequence[Mapping[str, Any]], measures: Sequence[Mapping[str, Any]], metric: str) -> Any:
    """The scores of runs as a pandas table for :func:`table_of`.

    Args:
        runs: The contents of the runs' files of scores.
        measures: The test sets.
        metric: Such as ``"f1"``.
    """
    import pandas as pd

    rows = [
        (run["method"], run["seed"], measure["key"], _value(run["scores"], measure["key"], metric))
        for run in runs
        for measure in measures
    ]
    return pd.DataFrame(rows, columns=["method", "seed", "set", "value"])


def _value(scores: Mapping[str, Mapping[str, float]], key: str, metric: str) -> float:
    """A run's score. Shifts are averaged over shifts and severities, few-shot transfer over numbers of images."""
    if key in scores:
        return scores[key][metric]
    start = "shift:" if key == "shifts" else f"{key}:"
    return float(np.mean([score[metric] for name, score in scores.items() if name.startswith(start)]))


def table_of(
    runs: Any,
    pairs: Sequence[tuple[str, str]],
    measures: Sequence[Mapping[str, Any]],
    *,
    metric: str,
    level: float = ALPHA,
    bounds: tuple[float, float] | None = None,
    higher: bool = True,
) -> dict[str, Any]:
    """Means and differences of some measures. All tests of the table are one family.

    Args:
        runs: See :func:`~policy_noise.experiments.statistics.differences`.
        pairs: Methods to compare.
        measures: For each test set ``key``, its name in ``runs``, and ``label``.
        metric: Name of what is measured.
        level: Probability of any false finding.
        bounds: Range of a score.
        higher: Whether more is better.

    Returns:
        ``metric``, ``level``, ``higher``, ``measures``, ``means`` with their intervals by method and set,
        ``differences`` and ``tests``, their number. A difference has a ``finding``: ``"better"``, ``"worse"``,
        ``"not shown"``, ``"not tested"``, or ``"near chance"`` where no method does much better than guessing.
    """
    width = None if bounds is None else (bounds[0] - bounds[1], bounds[1] - bounds[0])
    rows = differences(runs, pairs, level=level, power=POWER, worthwhile=POINT, bounds=width)
    means: dict[str, dict[str, list[Any]]] = {}
    for (name, key), values in runs.groupby(["method", "set"], sort=False)["value"]:
        interval = t_interval(values.to_numpy(), bounds=bounds)
        means.setdefault(name, {})[key] = [None if math.isnan(end) else end for end in interval]
    sets: dict[str, dict[str, Any]] = {measure["key"]: dict(measure) for measure in measures}
    for key, measure in sets.items():
        measure["best"] = max(found[key][0] for found in means.values())
        measure["near_chance"] = "classes" in measure and measure["best"] < NEAR_CHANCE / measure["classes"]
    for row in rows:
        row["finding"] = _finding(row, level, higher, sets[row["measure"]]["near_chance"])
    return {
        "metric": metric,
        "level": level,
        "higher": higher,
        "measures": list(sets.values()),
        "means": means,
        "differences": rows,
        "tests": sum(row["p"] is not None for row in rows),
    }


NEAR_CHANCE = 1.5
"""F1 is called near chance if the best is below this many times that of guessing."""


def _finding(row: Mapping[str, Any], level: float, higher: bool, near_chance: bool) -> str:
    if row["p_holm"] is None or row["seeds"] < MIN_PAIRS:
        return "not tested"
    if row["p_holm"] >= level:
        return "not shown"
    if near_chance:
        return "near chance"
    return "better" if (row["mean"] > 0) == higher else "worse"
