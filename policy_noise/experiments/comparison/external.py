"""The same verdict for runs of any framework and task: a table of scores instead of trainings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..runs import read_json
from ..statistics import MIN_PATIENTS, bootstrap_interval
from .methods import controls
from .results import ALPHA, POINT, POWER, table_of

__all__ = ["judge", "read_nnunet", "read_runs"]

KEYS = ("method", "seed", "set", "patient")


def read_runs(path: Path) -> Any:
    """Read scores from a CSV file.

    Args:
        path: With the columns ``method``, ``seed``, optionally ``set`` and ``patient``, and a column of numbers for
            each measure, such as ``dice``; or with the columns ``measure``, its name, and one of its values. Columns
            may also be separated by semicolons, as some Excels write them, with decimal commas, or by tabs.

    Returns:
        A pandas table of ``method``, ``seed``, ``set``, ``measure``, ``value`` and, if it was there, ``patient``.

    Raises:
        ValueError: If a column is missing or holds something else than numbers, or a cell is empty.
    """
    import pandas as pd

    try:
        with open(path, encoding="utf-8-sig") as file:
            head = file.readline()
        mark = next((mark for mark in (";", "\t") if mark in head and "," not in head), ",")
        own: dict[str, Any] = {} if mark == "," else {"sep": mark, "decimal": ","}
        table = pd.read_csv(path, encoding="utf-8-sig", skipinitialspace=True, **own)
    except (ValueError, pd.errors.ParserError) as error:  # an empty file's, one of ragged lines', and of no text
        raise ValueError(f"{path} cannot be read as CSV: {error}") from error
    table = table.rename(columns={name: name.strip() for name in table.columns})
    if "set" not in table.columns:
        table["set"] = "test"
    keys = [name for name in KEYS if name in table.columns]
    if "measure" in table.columns:
        keys.append("measure")
    measures = [name for name in table.columns if name not in keys]
    if "measure" in keys and len(measures) != 1:
        raise ValueError(f"{path} must have one column of values beside the column measure, got {measures}")
    if not {"method", "seed"} <= set(keys) or not measures:
        raise ValueError(
            f"{path} must have the columns method, seed and one for each measure (and set and patient if there are "
            f"several), got {list(table.columns)}"
        )
    for name in (*keys, *measures):
        bad = table[name].isna() if name in keys else ~np.isfinite(pd.to_numeric(table[name], errors="coerce"))
        if bad.any():
            line = int(np.flatnonzero(bad)[0])
            what = "a name" if name in keys else "a number"
            raise ValueError(f"{path}, line {line + 2}: {name} must be {what}, got {table[name][line]}")
    if "measure" in keys:
        return table[[*keys, *measures]].rename(columns={measures[0]: "value"}).astype({"value": float})
    return table.melt(keys, measures, "measure", "value").astype({"value": float})


def read_nnunet(texts: Sequence[str]) -> Any:
    """Read nnU-Net's validation scores.

    Args:
        texts: ``METHOD=FOLDER``, one for each training, in the order of the seeds of its method. Its folds'
            ``summary.json`` are read, at any depth.

    Returns:
        As :func:`read_runs`, with ``Dice`` averaged over a case's foreground classes. The cases are the patients. A
        class that is neither in a case's reference nor in its prediction has no score and is left out, as in nnU-Net.

    Raises:
        ValueError: If a text is malformed, or a file holds no cases.
        FileNotFoundError: If a folder has no ``summary.json``.
    """
    import pandas as pd

    rows, seeds = [], dict[str, int]()
    for text in texts:
        method, separator, folder = text.partition("=")
        if not separator or not method or not folder:
            raise ValueError(f"--nnunet must be METHOD=FOLDER, got {text!r}")
        files = sorted(Path(folder).rglob("summary.json"))
        if not files:
            raise FileNotFoundError(f"--nnunet {method}: {folder} holds no summary.json")
        seed = seeds[method] = seeds.get(method, -1) + 1
        for path in files:
            cases = read_json(path).get("metric_per_case")
            if not cases:
                raise ValueError(f"{path} holds no metric_per_case, as nnU-Net's summary of a validation does")
            for case in cases:
                scores = [found.get("Dice") for label, found in case["metrics"].items() if label != "0"]
                known = [score for score in scores if score is not None and score == score]
                if known:
                    patient = Path(case.get("reference_file") or case["prediction_file"]).name.partition(".")[0]
                    rows.append((method, seed, "validation", patient, "Dice", float(np.mean(known))))
    return pd.DataFrame(rows, columns=["method", "seed", "set", "patient", "measure", "value"])


def judge(runs: Any, *, reference: str | None = None, lower: Sequence[str] = (), looks: int = 1) -> dict[str, Any]:
    """Compare the methods of a table of scores.

    Args:
        runs: As :func:`read_runs` gives it.
        reference: The method that the others are compared with; by default ``plain``, or else the first one.
        lower: Measures of which less is better.
        looks: Planned looks, see ``compare``.

    Returns:
        What :func:`~policy_noise.experiments.comparison.page.write_results` writes as a page, and
        :func:`~policy_noise.experiments.comparison.sentences.verdict` says in sentences.

    Raises:
        ValueError: If there is one method, a name is unknown, a score is given twice, or runs of a set have different
            patients.
    """
    names = [str(name) for name in dict.fromkeys(runs["method"])]
    reference = reference or ("plain" if "plain" in names else names[0])
    measures = list(dict.fromkeys(runs["measure"]))
    for option, given, known in (("--reference", [reference], names), ("--lower-is-better", lower, measures)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"{option} must be among {known}, got {unknown[0]!r}")
    if len(names) < 2:
        raise ValueError(f"at least two methods must be compared, got {names}")
    runs = runs.assign(method=runs["method"].astype(str), set=runs["set"].astype(str))
    keys = ["method", "seed", "set", "measure", *(["patient"] if "patient" in runs.columns else [])]
    twice = runs[runs.duplicated(keys)]
    if len(twice):
        raise ValueError(f"a score is given twice: {twice.iloc[0][keys].to_dict()}")
    for (name, measure), own in runs.groupby(["set", "measure"], sort=False):
        scored = set(zip(own["method"], own["seed"], strict=True))
        lacking = [(m, seed) for m in names for seed in dict.fromkeys(runs["seed"]) if (m, seed) not in scored]
        if lacking:
            raise ValueError(
                f"all methods must have the same seeds on each set, but {lacking[0][0]} has no {measure} of seed "
                f"{lacking[0][1]} on {name}: add it, or leave this seed or set out"
            )
    names = [reference, *(name for name in names if name != reference)]
    pairs = controls(names, reference)
    patients = _over_patients(runs, pairs, measures[0]) if "patient" in runs.columns else []
    means = runs.groupby(["method", "seed", "set", "measure"], sort=False, as_index=False)["value"].mean()
    tables: dict[str, Any] = {}
    for name in measures:
        own = means[means["measure"] == name]
        sets = [{"key": key, "label": key} for key in dict.fromkeys(own["set"])]
        inside = own["value"].between(0, 1).all()
        tables[name] = table_of(
            own,
            pairs,
            sets,
            metric=name,
            level=ALPHA / looks,
            bounds=(0, 1) if inside else None,
            higher=name not in lower,
        )
    return {
        "methods": [{"name": name, "about": "", "changes": {}} for name in names],
        "seeds": sorted(set(means["seed"].tolist())),
        "settings": {"alpha": ALPHA, "looks": looks, "power": POWER, "point": POINT, "reference": reference},
        "tables": tables,
        "patients": patients,
        "runs": means.to_dict("records"),
    }


def _over_patients(runs: Any, pairs: Sequence[tuple[str, str]], measure: str) -> list[dict[str, Any]]:
    """Bootstrap intervals over patients of differences that are averaged over seeds."""
    rows = []
    for name, mine in runs[runs["measure"] == measure].groupby("set", sort=False):
        wide = mine.pivot(index="patient", columns=["method", "seed"], values="value")
        gaps = wide.index[wide.isna().any(axis=1)]
        if len(gaps):
            raise ValueError(
                f"set {name}: all {wide.shape[1]} runs must have scores of the same patients, and of {gaps[0]!r} "
                "some have none"
            )
        means = wide.T.groupby(level="method").mean().T
        for method, versus in pairs:
            low = high = None
            if len(wide) >= MIN_PATIENTS:
                _, low, high = bootstrap_interval((means[method] - means[versus]).to_numpy())
            row = {"method": method, "versus": versus, "measure": name, "low": low, "high": high}
            rows.append(row | {"patients": len(wide)})
    return rows
