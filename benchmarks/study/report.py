"""The page of an analysis, with its tests and plots. Nothing is trained here."""

import csv
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.study.comparisons import Comparison, all_comparisons, frozen_front
from benchmarks.study.plots import plot_curves, plot_forest, plot_heat_map, plot_pareto
from benchmarks.study.results import Results
from benchmarks.study.tables import (
    Lookup,
    against_controls,
    against_named,
    against_twins,
    by_task,
    of_varying_mean,
    on_unseen,
    overview,
    policy_table,
)


def _write_tests(comparisons: list[Comparison], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Comparison)])
        writer.writeheader()
        for comparison in comparisons:
            values = vars(comparison).items()
            writer.writerow({name: f"{v:.4g}" if isinstance(v, float) else v for name, v in values})


def analyse(records: list[dict[str, Any]], split: str, output: Path, *, against: str | None = None) -> str:
    """Write a report (Markdown), all tests (CSV) and the plots (PNG), and return the report.

    Args:
        records: Records written by the commands ``run`` or ``pack``.
        split: ``"val"`` for selection, ``"test"`` for reported results.
        output: Folder. Its name becomes the title.
        against: A condition that all others are also compared with.

    Raises:
        ValueError: If there is no finished run of the split, or none of that condition.
    """
    import matplotlib

    matplotlib.use("Agg")
    results = Results(records, split)
    if not results.records:
        raise ValueError(f"no finished run was scored on {split!r}")
    if against is not None and against not in results.family:
        raise ValueError(f"against must be one of {list(results.family)}, got {against!r}")
    output.mkdir(parents=True, exist_ok=True)
    comparisons = all_comparisons(results, against)
    lookup = Lookup(comparisons)
    failed = sum("error" in record for record in records)
    seconds = sum(record["seconds"] for record in results.records)
    devices = sorted({f"{record.get('device')}, torch {record.get('torch')}" for record in results.records})
    seeds = {task: len(results.by_seed(task, "plain", "clean")) for task in results.tasks}
    lines = [
        f"# {output.name}, {split} split",
        "",
        f"{len(results.records)} runs ({failed} failed; {results.incomplete} more left out, whose seed not all "
        f"conditions of their task had), {seconds:.0f} s summed over processes; {'; '.join(devices)}. Seeds: "
        f"{', '.join(f'{task} {count}' for task, count in seeds.items())}.",
        "",
        "Macro F1. `shifted` is the mean over the eight shifts, each the mean over its three severities. Differences "
        "are paired by seed; ± is the 95 % t-interval, given where there are three seeds or more; * means p < .05 "
        "after Holm's correction over all tasks and conditions of a family. The [study's page](../../README.md"
        "#how-to-read-the-tables) explains the names of the conditions. All tests, with bootstrap intervals and effect "
        f"sizes, are in `{split}-tests.csv`, which the analysis writes.",
        "",
        "## Differences from plain, mean over tasks",
        "",
        *overview(results, lookup),
        "",
        "## Scores by task",
        "",
        *(f"- Random-mask frontier, {task}: {' → '.join(frozen_front(results, task))}" for task in results.tasks),
        *(
            f"- The frontier under bias fields, {task}: {' → '.join(frozen_front(results, task, 'bias_field'))}"
            for task in results.tasks
        ),
        "",
        *by_task(results),
    ]
    sections = []
    if min(seeds.values()) >= 3:
        sections = [
            ("Learned conditions against their controls", against_controls(results, lookup)),
            (
                "Learned conditions against the same mask unlearned, swapped and one for all",
                against_twins(results, lookup),
            ),
            ("Masks of varying brightness, mean over tasks", of_varying_mean(results, lookup)),
            ("Unseen patient, unseen modality, corruptions, transfer", on_unseen(results, lookup)),
        ]
        plot_forest(results, comparisons, output / f"{split}-forest.png")
    if against:
        sections.insert(0, (f"Against {against}, mean over tasks", against_named(results, lookup, against)))
    learned = "What the policies had learned in the end, median over tasks and seeds"
    for title, table in [*sections, (learned, policy_table(results))]:
        if len(table) > 2:  # more than its head
            lines += ["", f"## {title}", "", *table]
    report = "\n".join(lines) + "\n"
    (output / f"{split}.md").write_text(report)
    _write_tests(comparisons, output / f"{split}-tests.csv")
    plot_pareto(results, "shifted", output / f"{split}-pareto.png")
    plot_pareto(results, "bias_field", output / f"{split}-pareto-bias-field.png")
    plot_heat_map(results, output / f"{split}-heat-map.png")
    plot_curves(results, output / f"{split}-curves.png")
    return report
