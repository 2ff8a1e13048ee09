"""Tables, tests and plots of the study's results. Nothing is trained here.

Everything is paired by seed. The control is not one frozen setting but all of them: their Pareto front of clean
against shifted score, from plain training (no noise) to the setting that is best on shifted data. A method is compared
with the mixture of two neighbouring points of that front whose mean clean score is its own.
"""

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from study_tasks import SHIFTS

from policy_noise.experiments.statistics import bootstrap_interval, holm, paired_difference, t_interval

__all__ = ["Comparison", "Results", "analyse", "compare", "front_mixture", "frozen_front"]

MEASURES = ("clean", "shifted", *SHIFTS, "ct2", "mr")


class Results:
    """Scores of one split by task, condition and seed.

    Args:
        records: As ``study.py run`` wrote them. Failed runs and other splits are left out; of a repeated run the last
            counts.
        split: ``"val"`` or ``"test"``.
    """

    def __init__(self, records: Iterable[dict[str, Any]], split: str) -> None:
        kept = {record["key"]: record for record in records if split in record.get("scores", {})}
        self.records = list(kept.values())
        self.split = split
        self.family = {record["condition"]: record["family"] for record in self.records}
        self._values: dict[tuple[str, str, str], dict[int, float]] = {}
        for record in self.records:
            for measure, value in _measures(record["scores"][split]).items():
                self._values.setdefault((record["task"], record["condition"], measure), {})[record["seed"]] = value

    @property
    def tasks(self) -> list[str]:
        """In order of appearance."""
        return list(dict.fromkeys(record["task"] for record in self.records))

    def conditions(self, task: str) -> list[str]:
        """Of a task, in order of appearance."""
        return list(dict.fromkeys(record["condition"] for record in self.records if record["task"] == task))

    def by_seed(self, task: str, condition: str, measure: str) -> dict[int, float]:
        """Scores by seed; empty where there are none."""
        return self._values.get((task, condition, measure), {})

    def values(self, task: str, condition: str, measure: str) -> np.ndarray:
        """Scores of all seeds."""
        return np.array(list(self.by_seed(task, condition, measure).values()))

    def mean(self, task: str, condition: str, measure: str) -> float:
        """Mean over seeds."""
        return float(self.values(task, condition, measure).mean())


def _measures(scores: dict[str, float]) -> dict[str, float]:
    """Each shift is the mean of its severities, ``shifted`` the mean of the shifts."""
    result = {name: value for name, value in scores.items() if ":" not in name}
    for shift in SHIFTS:
        levels = [value for name, value in scores.items() if name.split(":")[0] == shift and ":" in name]
        if levels:
            result[shift] = float(np.mean(levels))
    shifts = [result[shift] for shift in SHIFTS if shift in result]
    return result | ({"shifted": float(np.mean(shifts))} if shifts else {})


# -- the control -------------------------------------------------------------------------------------------------------


def frozen_front(results: Results, task: str) -> list[str]:
    """The frozen settings on the Pareto front's concave hull, plain training among them, from clean to shifted."""
    names = [
        name
        for name in results.conditions(task)
        if results.family[name] in ("plain", "frozen") and not name.endswith("-throughout")
    ]
    points = {name: (results.mean(task, name, "clean"), results.mean(task, name, "shifted")) for name in names}
    if not points:
        return []
    start = max(points, key=lambda name: points[name])
    front = [start]
    while True:
        clean, shifted = points[front[-1]]
        better = [name for name in names if points[name][1] > shifted]
        if not better:
            return front
        # The next vertex of the hull gains most shifted score for the clean score it gives up.
        front.append(max(better, key=lambda name: (points[name][1] - shifted) / max(clean - points[name][0], 1e-12)))


def front_mixture(results: Results, task: str, clean: float) -> Callable[[str, int], float]:
    """The frozen front's score at a clean score, as a function of measure and seed.

    Beyond the front's ends it is the end itself.
    """
    front = frozen_front(results, task)
    cleans = [results.mean(task, name, "clean") for name in front]
    if clean >= cleans[0]:
        pair, weight = (front[0], front[0]), 1.0
    elif clean <= cleans[-1]:
        pair, weight = (front[-1], front[-1]), 1.0
    else:
        index = next(i for i in range(1, len(front)) if cleans[i] <= clean)
        pair = (front[index - 1], front[index])
        weight = (clean - cleans[index]) / (cleans[index - 1] - cleans[index])

    def at(measure: str, seed: int) -> float:
        first, second = (results.by_seed(task, name, measure)[seed] for name in pair)
        return weight * first + (1 - weight) * second

    return at


# -- comparisons -------------------------------------------------------------------------------------------------------


@dataclass
class Comparison:
    """A paired comparison of a condition with a control on one task and measure."""

    task: str
    condition: str
    control: str
    measure: str
    seeds: int
    mean: float
    low: float
    high: float
    bootstrap_low: float
    bootstrap_high: float
    effect_size: float
    p_value: float
    p_holm: float = float("nan")


def compare(results: Results, task: str, condition: str, control: str, measure: str) -> Comparison | None:
    """Compare by seed with another condition, or with ``"frozen front"``; None with fewer than two common seeds."""
    own = results.by_seed(task, condition, measure)
    if not own:
        return None
    if control == "frozen front":
        at = front_mixture(results, task, results.mean(task, condition, "clean"))
        seeds = [seed for seed in own if all(_has(results, task, n, seed) for n in frozen_front(results, task))]
        other = {seed: at(measure, seed) for seed in seeds}
    else:
        other = results.by_seed(task, control, measure)
        seeds = [seed for seed in own if seed in other]
    if len(seeds) < 2:
        return None
    a, b = [own[seed] for seed in seeds], [other[seed] for seed in seeds]
    difference = np.subtract(a, b)
    test = paired_difference(a, b)
    interval = bootstrap_interval(difference)
    spread = float(difference.std(ddof=1))
    effect = float(difference.mean() / spread) if spread > 0 else float("nan")
    return Comparison(
        task, condition, control, measure, len(seeds), *test[:3], *interval[1:], effect, p_value=test.p_value
    )


def _has(results: Results, task: str, name: str, seed: int) -> bool:
    return seed in results.by_seed(task, name, "shifted")


def _comparisons(results: Results) -> list[Comparison]:
    """All conditions against plain and the front, and each learned one against its shuffled and static twins.

    Holm's correction is over all tasks and conditions of one family of conditions, control and measure.
    """
    found = []
    for measure in ("clean", "shifted", "ct2", "mr"):
        for control in ("plain", "frozen front", "-shuffled", "-static"):
            for family in dict.fromkeys(results.family.values()):
                kept = []
                for task in results.tasks:
                    for name in (name for name in results.conditions(task) if results.family[name] == family):
                        other = f"{name}{control}" if control.startswith("-") else control
                        if name != other and not (control == "frozen front" and name == "plain"):
                            kept.append(compare(results, task, name, other, measure))
                kept = [comparison for comparison in kept if comparison is not None]
                for comparison, adjusted in zip(kept, holm([c.p_value for c in kept]), strict=True):
                    comparison.p_holm = float(adjusted)
                found += kept
    return found


# -- reports -----------------------------------------------------------------------------------------------------------


def _means_table(results: Results, task: str) -> list[str]:
    measures = [m for m in MEASURES if any(results.by_seed(task, c, m) for c in results.conditions(task))]
    lines = [f"| condition | seeds | {' | '.join(measures)} |", f"|---|---{'|---' * len(measures)}|"]
    for name in results.conditions(task):
        cells = [f"{results.mean(task, name, m):.3f}" for m in measures]
        for index, measure in enumerate(measures[:2]):
            half = t_interval(results.values(task, name, measure))
            if np.isfinite(half.high):
                cells[index] += f" ± {half.high - half.mean:.3f}"
        lines.append(f"| {name} | {len(results.by_seed(task, name, 'clean'))} | {' | '.join(cells)} |")
    return lines


def _comparison_table(comparisons: list[Comparison]) -> list[str]:
    lines = [
        "| task | condition | against | measure | seeds | difference [95 % t] | [95 % bootstrap] | d | p | p Holm |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for c in comparisons:
        lines.append(
            f"| {c.task} | {c.condition} | {c.control} | {c.measure} | {c.seeds} | "
            f"{c.mean:+.3f} [{c.low:+.3f}, {c.high:+.3f}] | [{c.bootstrap_low:+.3f}, {c.bootstrap_high:+.3f}] | "
            f"{c.effect_size:+.1f} | {c.p_value:.2g} | {c.p_holm:.2g} |"
        )
    return lines


def _ranking(results: Results) -> list[str]:
    """Over tasks: difference from plain in clean and shifted score, and distance above the frozen front."""
    rows = []
    names = dict.fromkeys(name for task in results.tasks for name in results.conditions(task))
    for name in names:
        tasks = [
            t for t in results.tasks if results.by_seed(t, name, "shifted") and results.by_seed(t, "plain", "clean")
        ]
        if not tasks:
            continue
        gains = {
            measure: [results.mean(t, name, measure) - results.mean(t, "plain", measure) for t in tasks]
            for measure in ("clean", "shifted")
        }
        above = [compare(results, t, name, "frozen front", "shifted") for t in tasks]
        distances = [c.mean for c in above if c is not None]
        distance = float(np.mean(distances)) if distances else float("nan")
        rows.append((name, len(tasks), float(np.mean(gains["clean"])), float(np.mean(gains["shifted"])), distance))
    rows.sort(key=lambda row: -row[3])
    lines = [
        "| condition | tasks | clean - plain | shifted - plain | shifted above frozen front |",
        "|---|---|---|---|---|",
    ]
    return lines + [
        f"| {name} | {n} | {clean:+.3f} | {shifted:+.3f} | {d:+.3f} |" for name, n, clean, shifted, d in rows
    ]


def _policy_table(results: Results) -> list[str]:
    names = ("alpha", "beta", "cell_mean", "cell_std", "mean_over_images_std", "mean_over_cells_std", "rendered_std")
    lines = [f"| task | condition | {' | '.join(names)} |", f"|---|---{'|---' * len(names)}|"]
    for task in results.tasks:
        for condition in results.conditions(task):
            last = [
                r["policy"][-1]
                for r in results.records
                if r["task"] == task and r["condition"] == condition and r["policy"] and r["family"] == "learned"
            ]
            if last:
                cells = [f"{np.mean([point[name] for point in last]):.3f}" for name in names]
                lines.append(f"| {task} | {condition} | {' | '.join(cells)} |")
    return lines


COLOURS = {"plain": "black", "frozen": "tab:gray", "learned": "tab:red", "augmentation": "tab:blue"}


def _plot_pareto(results: Results, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results.tasks), figsize=(6.5 * len(results.tasks), 6), squeeze=False)
    for axis, task in zip(axes[0], results.tasks, strict=True):
        for name in results.conditions(task):
            x, y = (results.values(task, name, measure) for measure in ("clean", "shifted"))
            scale = np.sqrt(len(x))
            axis.errorbar(
                x.mean(),
                y.mean(),
                xerr=x.std(ddof=len(x) > 1) / scale,
                yerr=y.std(ddof=len(y) > 1) / scale,
                fmt="o",
                color=COLOURS[results.family[name]],
                alpha=0.6,
                markersize=4,
                linewidth=0.6,
            )
            axis.annotate(name, (x.mean(), y.mean()), fontsize=5, xytext=(3, 2), textcoords="offset points")
        front = frozen_front(results, task)
        curve = [[results.mean(task, name, measure) for name in front] for measure in ("clean", "shifted")]
        axis.plot(*curve, color="tab:gray", linestyle="--", label="front of frozen noise")
        axis.set(title=task, xlabel=f"clean {results.split}, macro F1", ylabel="shifted, macro F1")
        axis.legend(fontsize=7)
    _save(figure, path)


def _plot_forest(comparisons: list[Comparison], path: Path) -> None:
    import matplotlib.pyplot as plt

    tasks = list(dict.fromkeys(c.task for c in comparisons))
    names = list(dict.fromkeys(c.condition for c in comparisons))
    if not names:
        return
    figure, axes = plt.subplots(
        1, len(tasks), figsize=(4.5 * len(tasks), 1 + 0.2 * len(names)), sharey=True, squeeze=False
    )
    for axis, task in zip(axes[0], tasks, strict=True):
        for offset, measure, colour in ((-0.15, "clean", "tab:blue"), (0.15, "shifted", "tab:red")):
            kept = [c for c in comparisons if c.task == task and c.measure == measure]
            axis.errorbar(
                [c.mean for c in kept],
                [names.index(c.condition) + offset for c in kept],
                xerr=[[c.mean - c.low for c in kept], [c.high - c.mean for c in kept]],
                fmt="o",
                color=colour,
                markersize=3,
                linewidth=0.8,
                label=measure,
            )
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set(title=task, xlabel="difference from plain, macro F1", yticks=range(len(names)), yticklabels=names)
        axis.tick_params(labelsize=6)
        axis.legend(fontsize=6)
    axes[0][0].invert_yaxis()
    _save(figure, path)


def _plot_curves(results: Results, path: Path) -> None:
    """Validation score while training, of the plain, the best frozen and the best learned condition of each task."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results.tasks), figsize=(5 * len(results.tasks), 4), squeeze=False)
    for axis, task in zip(axes[0], results.tasks, strict=True):
        for family in COLOURS:
            names = [name for name in results.conditions(task) if results.family[name] == family]
            if not names:
                continue
            best = max(names, key=lambda name: results.mean(task, name, "shifted"))
            curves = [r["curve"] for r in results.records if r["task"] == task and r["condition"] == best]
            length = min(len(curve) for curve in curves)
            steps = [point["step"] for point in curves[0][:length]]
            scores = np.array([[point.get("val_clean", np.nan) for point in curve[:length]] for curve in curves])
            axis.plot(steps, scores.mean(0), marker=".", color=COLOURS[family], label=best)
        axis.set(title=task, xlabel="step", ylabel="clean validation, macro F1")
        axis.legend(fontsize=7)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _write_csv(results: Results, path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "condition", "family", "seed", "split", "set", "macro_f1"])
        for r in results.records:
            for name, value in r["scores"][results.split].items():
                row = [r["task"], r["condition"], r["family"], r["seed"], results.split, name, f"{value:.5f}"]
                writer.writerow(row)


def analyse(records: list[dict[str, Any]], split: str, output: Path, name: str) -> str:
    """Write a report (markdown), all scores (CSV) and the plots (PNG), and give back the report.

    Args:
        records: As ``study.py run`` wrote them.
        split: ``"val"`` to choose by, ``"test"`` to report.
        output: Folder.
        name: Prefix of the files.
    """
    import matplotlib

    matplotlib.use("Agg")
    results = Results(records, split)
    if not results.records:
        raise ValueError(f"no finished run was scored on {split!r}")
    output.mkdir(parents=True, exist_ok=True)
    comparisons = _comparisons(results)
    failed = sum("error" in record for record in records)
    seconds = sum(record["seconds"] for record in results.records)
    devices = sorted({f"{record.get('device')}, torch {record.get('torch')}" for record in results.records})
    lines = [
        f"# {name}, {split} split",
        "",
        f"{len(results.records)} runs ({failed} failed), {seconds:.0f} s summed over processes; {'; '.join(devices)}.",
        "Macro F1. ``shifted`` is the mean over shifts, each the mean over its severities. ± is the 95 % t-interval.",
        "",
        "## Over tasks",
        "",
        *_ranking(results),
    ]
    for task in results.tasks:
        front = " → ".join(frozen_front(results, task))
        lines += ["", f"## {task}", "", f"Front of frozen noise: {front}", "", *_means_table(results, task)]
    for control in ("plain", "frozen front", "twins"):
        kept = [
            c for c in comparisons if c.control == control or (control == "twins" and c.control.startswith(c.condition))
        ]
        lines += ["", f"## Against {control}", "", *_comparison_table(kept)]
    lines += ["", "## What the policies had learned when they were let go", "", *_policy_table(results)]
    report = "\n".join(lines) + "\n"
    (output / f"{name}-{split}.md").write_text(report)
    _write_csv(results, output / f"{name}-{split}.csv")
    _plot_pareto(results, output / f"{name}-{split}-pareto.png")
    _plot_forest([c for c in comparisons if c.control == "plain"], output / f"{name}-{split}-forest.png")
    _plot_curves(results, output / f"{name}-{split}-curves.png")
    return report
