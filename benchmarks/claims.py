"""How often more seeds take a claim back: the verdicts of five seeds against that of all, from a finished comparison.

    policy-noise quickstart --seeds 10 --output outputs/claims
    python -m benchmarks.claims outputs/claims

A claim is a difference of macro F1 that the verdict calls better or worse. It is taken back if all seeds together show
no difference, or the opposite one.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from policy_noise.experiments.comparison.external import judge, read_runs
from policy_noise.experiments.comparison.methods import controls
from policy_noise.experiments.comparison.results import results_of, scores_of, table_of
from policy_noise.experiments.statistics import MIN_PAIRS

__all__ = ["claims", "count", "main"]


def claims(
    runs: Any, pairs: Sequence[tuple[str, str]], measures: Sequence[dict[str, Any]]
) -> dict[tuple[str, str, str], str]:
    """What a table of scores claims: ``"better"`` or ``"worse"``, by method, what it is compared with, and set."""
    rows = table_of(runs, pairs, measures, metric="macro F1", bounds=(0, 1))["differences"]
    said = {(row["method"], row["versus"], row["measure"]): row["finding"] for row in rows}
    return {key: finding for key, finding in said.items() if finding in ("better", "worse")}


def count(
    runs: Any, pairs: Sequence[tuple[str, str]], measures: Sequence[dict[str, Any]], *, size: int = MIN_PAIRS
) -> dict[str, Counter[str]]:
    """Count claims by set: of the first seeds, of all choices of as many, and those that all seeds take back.

    Args:
        runs: A pandas table with the columns ``method``, ``seed``, ``set`` and ``value``.
        pairs: Methods to compare.
        measures: The sets, see :func:`~policy_noise.experiments.comparison.results.table_of`.
        size: Number of seeds.

    Returns:
        For each set the numbers ``first``, ``first taken back``, ``any``, ``any taken back`` and ``all seeds``.
    """
    seeds = sorted(set(runs["seed"]))
    final = claims(runs, pairs, measures)
    found = {measure["key"]: Counter[str]() for measure in measures}
    for _, _, name in final:
        found[name]["all seeds"] += 1
    for number, chosen in enumerate(combinations(seeds, size)):
        for key, finding in claims(runs[runs["seed"].isin(chosen)], pairs, measures).items():
            for kind in ("first", "any") if number == 0 else ("any",):
                found[key[2]][kind] += 1
                found[key[2]][f"{kind} taken back"] += final.get(key) != finding
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the counts of a comparison as a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", type=Path, help="a comparison's folder, or a CSV file as for policy-noise verdict")
    path = parser.parse_args(arguments).runs
    if path.is_file():
        table = read_runs(path)
        table = table[table["measure"] == table["measure"].iloc[0]]
        results = judge(table)
    else:
        results = results_of(path)
    seeds = results["seeds"]
    if len(seeds) <= MIN_PAIRS:
        parser.error(f"the comparison must have more than {MIN_PAIRS} seeds, got {len(seeds)}")
    measures = [
        {name: measure[name] for name in ("key", "label", "classes") if name in measure}
        for measure in next(iter(results["tables"].values()))["measures"]
    ]
    pairs = controls([method["name"] for method in results["methods"]], results["settings"]["reference"])
    if not path.is_file():
        table = scores_of([run for run in results["runs"] if run["seed"] in seeds], measures, "f1")
    found = count(table, pairs, measures)
    print(f"Claims of {MIN_PAIRS} seeds, and how many of them {len(seeds)} seeds take back\n")
    print(f"| test set | of the first {MIN_PAIRS} | taken back | of any {MIN_PAIRS} | taken back | of {len(seeds)} |")
    print("|---|---:|---:|---:|---:|---:|")
    for measure in measures:
        own = found[measure["key"]]
        cells = [own[kind] for kind in ("first", "first taken back", "any", "any taken back", "all seeds")]
        print(f"| {measure['label']} | {' | '.join(map(str, cells))} |")


if __name__ == "__main__":
    main()
