"""Tables of a results page."""

import numpy as np

from benchmarks.pages import head, row
from benchmarks.study.comparisons import LEVEL_CONTROLS, TESTED, TWINS, Comparison, by_family, gains, meant_by
from benchmarks.study.results import Results
from policy_noise.experiments.shifts import SHIFTS

SHOWN_AS = {
    "frozen front": "random-mask frontier",
    "frozen twin": "unlearned control",
    "-shuffled": "masks swapped",
    "-static": "one for all",
}
"""Names of the controls in tables."""


def _number(value: float) -> str:
    """A score or difference without its leading zero."""
    return f"{value:+.3f}".replace("0.", ".", 1)


def _with_interval(comparison: Comparison | None) -> str:
    """A difference ± half its t-interval, with a star for Holm's p < .05. With two seeds no interval is given."""
    if comparison is None:
        return ""
    if comparison.seeds < 3:
        return _number(comparison.mean)
    star = "*" if comparison.p_holm < 0.05 else ""
    half = f"{comparison.high - comparison.mean:.3f}".replace("0.", ".", 1)
    return f"{_number(comparison.mean)} ± {half}{star}"


class Lookup:
    def __init__(self, comparisons: list[Comparison]) -> None:
        self.by_name = {(c.task, c.condition, c.control, c.measure): c for c in comparisons}

    def __call__(self, task: str, condition: str, control: str, measure: str) -> str:
        return _with_interval(self.by_name.get((task, condition, control, measure)))


def overview(results: Results, lookup: Lookup) -> list[str]:
    """Over tasks: differences from plain, and distance above the random-mask frontier."""
    shifts = [m for m in SHIFTS if np.isfinite(gains(results, "plain", m))]
    lines = head(["condition", "clean", "shifted", "shifted above random-mask frontier", *shifts])
    for name in by_family(results)[1:]:
        # With one seed there is a difference but no test.
        clean, shifted, *rest = (
            lookup("all", name, "plain", measure) or _number(gains(results, name, measure))
            for measure in ("clean", "shifted", *shifts)
        )
        lines.append(row([name, clean, shifted, lookup("all", name, "frozen front", "shifted"), *rest]))
    return lines


def by_task(results: Results) -> list[str]:
    measures = ("clean", "shifted", "bias_field", "brightness", "medmnist_c", "few_shot", "ct2", "mr")
    columns = [(task, measure) for task in results.tasks for measure in measures]
    columns = [column for column in columns if len(results.values(column[0], "plain", column[1]))]
    lines = head(["condition", *(f"{task} {measure}" for task, measure in columns)])
    for name in by_family(results):
        cells = [f"{results.mean(t, name, m):.3f}"[1:] if len(results.values(t, name, m)) else "" for t, m in columns]
        lines.append(row([name, *cells]))
    return lines


def against_controls(results: Results, lookup: Lookup) -> list[str]:
    """The learned conditions, task by task, against all controls."""
    columns = [
        ("plain", "clean"),
        ("plain", "shifted"),
        ("plain", "bias_field"),
        ("frozen front", "shifted"),
        ("frozen front", "bias_field"),
    ]
    lines = head(
        ["task", "condition", *(f"{measure} - {SHOWN_AS.get(control, control)}" for control, measure in columns)]
    )
    for task in ("all", *results.tasks):
        for name in by_family(results):
            if results.family[name] == "learned" and not name.endswith(TWINS):
                lines.append(row([task, name, *(lookup(task, name, *column) for column in columns)]))
    return lines


def against_twins(results: Results, lookup: Lookup) -> list[str]:
    """Against the same mask unlearned, the learned masks of other images, and one mask for all."""
    columns = [(twin, measure) for twin in ("frozen twin", *TWINS) for measure in ("clean", "shifted", "bias_field")]
    titles = (f"{measure} - {SHOWN_AS[twin]}" for twin, measure in columns)
    lines = head(["task", "condition", *titles])
    for task in ("all", *results.tasks):
        for name in results.family:
            cells = [lookup(task, name, meant_by(name, twin), measure) for twin, measure in columns]
            if any(cells):
                lines.append(row([task, name, *cells]))
    return lines


def _tested(results: Results) -> list[str]:
    return [measure for measure in TESTED if np.isfinite(gains(results, "plain", measure))]


def of_varying_mean(results: Results, lookup: Lookup) -> list[str]:
    """Masks of varying brightness against the same of mean 1, without a pattern, and against other augmentations."""
    measures = _tested(results)
    lines = head(["condition", "control", *measures])
    for name in by_family(results):
        for control in LEVEL_CONTROLS:
            other = meant_by(name, control)
            cells = [lookup("all", name, other, measure) for measure in measures]
            if any(cells):
                lines.append(row([name, other, *cells]))
    return lines


def against_named(results: Results, lookup: Lookup, against: str) -> list[str]:
    """All conditions against a named one."""
    measures = _tested(results)
    lines = head(["condition", *measures])
    for name in by_family(results):
        cells = [lookup("all", name, against, measure) for measure in measures]
        if any(cells):
            lines.append(row([name, *cells]))
    return lines


def on_unseen(results: Results, lookup: Lookup) -> list[str]:
    """What only some tasks have: an unseen patient and modality, MedMNIST-C, few-shot transfer."""
    columns = [m for m in ("ct2", "mr", "medmnist_c", "few_shot") if np.isfinite(gains(results, "plain", m))]
    lines = head(["condition", *(f"{measure} - {control}" for measure in columns for control in ("plain", "frontier"))])
    for name in by_family(results)[1:]:
        controls = ("plain", "frozen front")
        lines.append(row([name, *(lookup("all", name, other, m) for m in columns for other in controls)]))
    return lines if columns else []


def policy_table(results: Results) -> list[str]:
    """Medians over runs, because some policies end far from the others (spotlights: standard deviation above 1)."""
    names = ("alpha", "beta", "cell_mean", "cell_std", "mean_over_images_std", "mean_over_cells_std", "rendered_std")
    lines = head(["condition", *names, "spotlights"])
    for condition in by_family(results):
        last = [r["policy"][-1] for r in results.records if r["condition"] == condition and r["policy"]]
        if last and results.family[condition] == "learned":
            cells = [f"{np.median([point[name] for point in last]):.2f}" for name in names]
            spotlights = sum(point["rendered_std"] > 1 for point in last)
            lines.append(row([condition, *cells, f"{spotlights} of {len(last)}"]))
    return lines
