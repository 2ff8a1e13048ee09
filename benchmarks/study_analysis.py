"""Tables, tests and plots of the study's results. Nothing is trained here.

Everything is paired by seed. The control is not one frozen setting but all of them: their Pareto front of clean
against shifted score, from plain training (no noise) to the setting that is best on shifted data. A method is compared
with the mixture of two neighbouring points of that front whose mean clean score is its own.
"""

import csv
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from study_tasks import SHIFTS

from policy_noise.experiments.statistics import bootstrap_interval, holm, paired_difference

__all__ = ["Comparison", "Results", "analyse", "compare", "front_mixture", "frozen_front", "gains", "save_plot"]

GROUPED = (*SHIFTS, "medmnist_c", "few_shot")
"""Measures that are the mean of several sets' scores."""
MEASURES = ("clean", "shifted", *GROUPED, "ct2", "mr")
TESTED = ("clean", "shifted", "bias_field", "medmnist_c", "few_shot", "ct2", "mr")
"""Measures with all tests; other shifts are compared with plain alone, over all tasks. The bias field is the shift
nearest to what the mask does."""
TWINS = ("-shuffled", "-static")
LEVEL_CONTROLS = ("mean of 1", "no pattern", "level of the dose", "bias-field", "color-jitter")
CONTROLS = ("plain", "frozen front", "frozen twin", *TWINS, *LEVEL_CONTROLS)
FROZEN_TWINS = {
    "coop": "frozen-s100-p50",
    "adv": "frozen-s100-p50",
    "relative-coop": "frozen-s100-p50",
    "coop-smooth": "frozen-smooth-s100-p50",
    "coop-normalized": "frozen-normalized",
    "paper": "frozen-paper",
    "color-jitter-coop-2x2-dose10-level20": "color-jitter-2x2-dose10-level20",
}
"""The same mask with a policy that never learns; ``X-doseN`` has ``frozen-doseN``, and ``X-2x2-doseN``
``frozen-2x2-doseN``."""
ALWAYS_NAMED = ("plain", "coop", "adv", "paper")


class Results:
    """Scores of one split by task, condition and seed.

    Args:
        records: As ``study.py run`` wrote them. Failed runs and other splits are left out; of a repeated run the last
            counts. Seeds that not all of a task's conditions have are left out, so that all are compared on the same.
        split: ``"val"`` or ``"test"``.
    """

    def __init__(self, records: Iterable[dict[str, Any]], split: str) -> None:
        kept = {record["key"]: record for record in records if split in record.get("scores", {})}
        seeds: dict[str, dict[str, set[int]]] = {}
        for record in kept.values():
            seeds.setdefault(record["task"], {}).setdefault(record["condition"], set()).add(record["seed"])
        complete = {task: set.intersection(*own.values()) for task, own in seeds.items()}
        self.records = [record for record in kept.values() if record["seed"] in complete[record["task"]]]
        self.incomplete = len(kept) - len(self.records)
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
    """Each shift is the mean of its severities, ``shifted`` the mean of the shifts; corruptions and shots likewise."""
    result = {name: value for name, value in scores.items() if ":" not in name}
    for group in GROUPED:
        levels = [value for name, value in scores.items() if name.split(":")[0] == group and ":" in name]
        if levels:
            result[group] = float(np.mean(levels))
    shifts = [result[shift] for shift in SHIFTS if shift in result]
    return result | ({"shifted": float(np.mean(shifts))} if shifts else {})


# -- the control -------------------------------------------------------------------------------------------------------


def frozen_front(results: Results, task: str, measure: str = "shifted") -> list[str]:
    """The frozen settings on the concave hull of clean against a measure, from the clean end; plain is one of them.

    Args:
        results: Scores.
        task: Name.
        measure: ``"shifted"`` or one shift.
    """
    names = [
        name
        for name in results.conditions(task)
        if results.family[name] in ("plain", "frozen") and not name.endswith("-throughout")
    ]
    points = {name: (results.mean(task, name, "clean"), results.mean(task, name, measure)) for name in names}
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


def front_mixture(results: Results, task: str, clean: float, measure: str = "shifted") -> Callable[[int], float]:
    """The frozen front's score at a clean score, as a function of the seed.

    Beyond the front's ends it is the end itself.
    """
    front = frozen_front(results, task, measure)
    cleans = [results.mean(task, name, "clean") for name in front]
    if clean >= cleans[0]:
        pair, weight = (front[0], front[0]), 1.0
    elif clean <= cleans[-1]:
        pair, weight = (front[-1], front[-1]), 1.0
    else:
        index = next(i for i in range(1, len(front)) if cleans[i] <= clean)
        pair = (front[index - 1], front[index])
        weight = (clean - cleans[index]) / (cleans[index - 1] - cleans[index])

    def at(seed: int) -> float:
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


def _differences(results: Results, task: str, condition: str, control: str, measure: str) -> dict[int, float]:
    """Differences by seed, empty where there is nothing to compare."""
    own = results.by_seed(task, condition, measure)
    if control != "frozen front":
        other = results.by_seed(task, control, measure)
        return {seed: value - other[seed] for seed, value in own.items() if seed in other}
    if not own or not frozen_front(results, task, measure):
        return {}
    at = front_mixture(results, task, results.mean(task, condition, "clean"), measure)
    return {seed: value - at(seed) for seed, value in own.items()}


def compare(results: Results, task: str, condition: str, control: str, measure: str) -> Comparison | None:
    """Compare by seed with another condition, or with ``"frozen front"``; None with fewer than two common seeds.

    Args:
        results: Scores.
        task: Name, or ``"all"`` for the mean over tasks, by seed.
        condition: Name.
        control: Name.
        measure: One of :data:`MEASURES`; the frozen front is that of this measure.
    """
    tasks = results.tasks if task == "all" else [task]
    found = [_differences(results, name, condition, control, measure) for name in tasks]
    found = [differences for differences in found if differences]  # not every task has every measure
    if not found:
        return None
    seeds = sorted(set.intersection(*(set(differences) for differences in found)))
    if len(seeds) < 2:
        return None
    difference = np.mean([[differences[seed] for seed in seeds] for differences in found], axis=0)
    test = paired_difference(difference, np.zeros_like(difference))
    interval = bootstrap_interval(difference)
    spread = float(difference.std(ddof=1))
    effect = float(difference.mean() / spread) if spread > 0 else float("nan")
    return Comparison(
        task, condition, control, measure, len(seeds), *test[:3], *interval[1:], effect, p_value=test.p_value
    )


def _frozen_twin(condition: str) -> str:
    name, _, dose = condition.partition("-dose")
    if condition in FROZEN_TWINS or not dose or name.startswith("frozen"):
        return FROZEN_TWINS.get(condition, "none")
    for kind in ("-shuffled", "-static", "-class"):
        dose = dose.removesuffix(kind)
    shape = name.partition("-")[2]
    return f"frozen-{shape}-dose{dose}" if shape else f"frozen-dose{dose}"


def _other(condition: str, control: str) -> str:
    """The condition that a control means for this one, ``"none"`` where it has none."""
    if control in TWINS:
        return condition + control
    if control == "frozen twin":
        return _frozen_twin(condition)
    if control not in LEVEL_CONTROLS or condition.startswith(f"{control}-"):
        return control
    mask, found, level = condition.partition("-level")
    if not found or level.startswith("-"):
        return "none"
    if control == "no pattern":
        name, _, dose = mask.partition("-2x2-dose")
        return f"{name}-1x1-dose{level or dose}-level" if dose else "none"
    if control == "level of the dose":
        return f"{mask}-level" if level else "none"
    return mask if control == "mean of 1" else control


def _comparisons(results: Results, against: str | None) -> list[Comparison]:
    """All conditions against plain and, but for frozen ones, the front; those with twins against them; all against one.

    Masks whose mean varies are compared with the same of mean 1 and with hand-set rivals too, and masks after a rival
    with the rival.

    Holm's correction is over all tasks and conditions of one family of conditions, control and measure, and likewise
    over the conditions' means over tasks.
    """
    found = []
    names = list(results.family)
    controls = (*CONTROLS, against) if against else CONTROLS
    for measure in MEASURES:
        for control in controls if measure in TESTED else controls[:1]:
            for family in ("frozen", "learned", "augmentation"):
                for tasks in (results.tasks, ["all"]) if measure in TESTED else (["all"],):
                    kept = []
                    for task in tasks:
                        for name in (name for name in names if results.family[name] == family):
                            other = _other(name, control)
                            needless = control == "frozen front" and (family == "frozen" or measure == "clean")
                            if not needless and other != name:
                                kept.append(compare(results, task, name, other, measure))
                    done = [comparison for comparison in kept if comparison is not None]
                    for comparison, adjusted in zip(done, holm([c.p_value for c in done]), strict=True):
                        comparison.p_holm = float(adjusted)
                    found += done
    return found


# -- reports -----------------------------------------------------------------------------------------------------------


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _head(cells: Iterable[str]) -> list[str]:
    cells = list(cells)
    return [_row(cells), f"|{'---|' * len(cells)}"]


def _number(value: float) -> str:
    """A score or difference without its leading zero."""
    return f"{value:+.3f}".replace("0.", ".", 1)


def _with_interval(comparison: Comparison | None) -> str:
    """With half the t-interval, starred where Holm's p-value is below .05; two seeds have no interval to speak of."""
    if comparison is None:
        return ""
    if comparison.seeds < 3:
        return _number(comparison.mean)
    star = "*" if comparison.p_holm < 0.05 else ""
    half = f"{comparison.high - comparison.mean:.3f}".replace("0.", ".", 1)
    return f"{_number(comparison.mean)} ± {half}{star}"


def gains(results: Results, condition: str, measure: str) -> float:
    """Difference from plain training, as a mean over the tasks that have the measure."""
    found = [_differences(results, task, condition, "plain", measure) for task in results.tasks]
    means = [np.mean(list(differences.values())) for differences in found if differences]
    return float(np.mean(means)) if means else float("nan")


def _sorted(results: Results) -> list[str]:
    """Conditions by family, the best on shifted images first."""
    families = list(COLOURS)
    return sorted(
        results.family, key=lambda name: (families.index(results.family[name]), -gains(results, name, "shifted"))
    )


class _Lookup:
    def __init__(self, comparisons: list[Comparison]) -> None:
        self.by_name = {(c.task, c.condition, c.control, c.measure): c for c in comparisons}

    def __call__(self, task: str, condition: str, control: str, measure: str) -> str:
        return _with_interval(self.by_name.get((task, condition, control, measure)))


def _overview(results: Results, lookup: _Lookup) -> list[str]:
    """Over tasks: differences from plain, and distance above the frozen front."""
    shifts = [m for m in SHIFTS if np.isfinite(gains(results, "plain", m))]
    lines = _head(["condition", "clean", "shifted", "shifted above frozen front", *shifts])
    for name in _sorted(results)[1:]:
        # One seed has no tests, and a difference all the same.
        clean, shifted, *rest = (
            lookup("all", name, "plain", measure) or _number(gains(results, name, measure))
            for measure in ("clean", "shifted", *shifts)
        )
        lines.append(_row([name, clean, shifted, lookup("all", name, "frozen front", "shifted"), *rest]))
    return lines


def _by_task(results: Results) -> list[str]:
    measures = ("clean", "shifted", "bias_field", "brightness", "medmnist_c", "few_shot", "ct2", "mr")
    columns = [(task, measure) for task in results.tasks for measure in measures]
    columns = [column for column in columns if len(results.values(column[0], "plain", column[1]))]
    lines = _head(["condition", *(f"{task} {measure}" for task, measure in columns)])
    for name in _sorted(results):
        cells = [f"{results.mean(t, name, m):.3f}"[1:] if len(results.values(t, name, m)) else "" for t, m in columns]
        lines.append(_row([name, *cells]))
    return lines


def _tests(results: Results, lookup: _Lookup) -> list[str]:
    """The learned conditions, task by task, against all controls."""
    columns = [
        ("plain", "clean"),
        ("plain", "shifted"),
        ("plain", "bias_field"),
        ("frozen front", "shifted"),
        ("frozen front", "bias_field"),
    ]
    lines = _head(["task", "condition", *(f"{measure} - {control}" for control, measure in columns)])
    for task in ("all", *results.tasks):
        for name in _sorted(results):
            if results.family[name] == "learned" and not name.endswith(TWINS):
                lines.append(_row([task, name, *(lookup(task, name, *column) for column in columns)]))
    return lines


def _twin_tests(results: Results, lookup: _Lookup) -> list[str]:
    """Against the same mask unlearned, the learned masks of other images, and one mask for all."""
    columns = [(twin, measure) for twin in ("frozen twin", *TWINS) for measure in ("clean", "shifted", "bias_field")]
    titles = (f"{measure} - {twin.removeprefix('-').removesuffix(' twin')}" for twin, measure in columns)
    lines = _head(["task", "condition", *titles])
    for task in ("all", *results.tasks):
        for name in results.family:
            cells = [lookup(task, name, _other(name, twin), measure) for twin, measure in columns]
            if any(cells):
                lines.append(_row([task, name, *cells]))
    return lines


def _tested(results: Results) -> list[str]:
    return [measure for measure in TESTED if np.isfinite(gains(results, "plain", measure))]


def _level_tests(results: Results, lookup: _Lookup) -> list[str]:
    """Masks whose mean varies about 1 against the same of mean 1, without a pattern, and hand-set rivals."""
    measures = _tested(results)
    lines = _head(["condition", "control", *measures])
    for name in _sorted(results):
        for control in LEVEL_CONTROLS:
            other = _other(name, control)
            cells = [lookup("all", name, other, measure) for measure in measures]
            if any(cells):
                lines.append(_row([name, other, *cells]))
    return lines


def _tests_against(results: Results, lookup: _Lookup, against: str) -> list[str]:
    """All conditions against a named one."""
    measures = _tested(results)
    lines = _head(["condition", *measures])
    for name in _sorted(results):
        cells = [lookup("all", name, against, measure) for measure in measures]
        if any(cells):
            lines.append(_row([name, *cells]))
    return lines


def _unseen_tests(results: Results, lookup: _Lookup) -> list[str]:
    """What only some tasks have: an unseen patient and modality, MedMNIST-C, few-shot transfer."""
    columns = [m for m in ("ct2", "mr", "medmnist_c", "few_shot") if np.isfinite(gains(results, "plain", m))]
    lines = _head(["condition", *(f"{measure} - {control}" for measure in columns for control in ("plain", "front"))])
    for name in _sorted(results)[1:]:
        controls = ("plain", "frozen front")
        lines.append(_row([name, *(lookup("all", name, other, m) for m in columns for other in controls)]))
    return lines if columns else []


def _policy_table(results: Results) -> list[str]:
    """Medians over runs, as some policies end far from the others: spotlights, whose spread exceeds the mask's mean."""
    names = ("alpha", "beta", "cell_mean", "cell_std", "mean_over_images_std", "mean_over_cells_std", "rendered_std")
    lines = _head(["condition", *names, "spotlights"])
    for condition in _sorted(results):
        last = [r["policy"][-1] for r in results.records if r["condition"] == condition and r["policy"]]
        if last and results.family[condition] == "learned":
            cells = [f"{np.median([point[name] for point in last]):.2f}" for name in names]
            spotlights = sum(point["rendered_std"] > 1 for point in last)
            lines.append(_row([condition, *cells, f"{spotlights} of {len(last)}"]))
    return lines


# -- plots -------------------------------------------------------------------------------------------------------------

COLOURS = {"plain": "black", "frozen": "tab:gray", "learned": "tab:red", "augmentation": "tab:blue"}
MARKERS = "osD^vP<>*Xph8d"


def _panels(results: Results, width: float, height: float) -> tuple[Any, list[Any]]:
    import matplotlib.pyplot as plt

    rows = -(-len(results.tasks) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(2 * width, rows * height), squeeze=False, layout="constrained")
    for axis in axes.flat[len(results.tasks) :]:
        axis.remove()
    return figure, list(axes.flat)


def _named(results: Results, measure: str) -> list[str]:
    """Conditions that a crowded plot names: plain, the rivals and up to seven learned ones."""
    learned = [name for name in results.family if results.family[name] == "learned" and not name.endswith(TWINS)]
    learned.sort(key=lambda name: -gains(results, name, measure))
    chosen = [*(name for name in ALWAYS_NAMED if name in results.family)]
    chosen += [name for name in learned if name not in chosen][: 8 - len(chosen)]
    rivals = [name for name in results.family if results.family[name] == "augmentation"]
    return [*chosen, *(name for name in rivals if not name.endswith("-throughout"))]


def _plot_pareto(results: Results, measure: str, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = _panels(results, 6.2, 4.6)
    named = _named(results, measure)
    for axis, task in zip(axes, results.tasks, strict=False):
        for name in results.conditions(task):
            x, y = (results.values(task, name, which) for which in ("clean", measure))
            scale = np.sqrt(len(x)) if len(x) > 1 else np.inf
            colour, is_named = COLOURS[results.family[name]], name in named
            if results.family[name] in ("learned", "augmentation") and is_named:
                colour = plt.get_cmap("tab20")(named.index(name))
            axis.errorbar(
                x.mean(),
                y.mean(),
                xerr=x.std() / scale,
                yerr=y.std() / scale,
                fmt=MARKERS[named.index(name) % len(MARKERS)] if is_named else ".",
                color=colour,
                alpha=1 if is_named else 0.35,
                markersize=8 if is_named else 5,
                elinewidth=0.7,
                label=name if is_named else None,
                zorder=3 if is_named else 2,
            )
        front = frozen_front(results, task, measure)
        curve = [[results.mean(task, name, which) for name in front] for which in ("clean", measure)]
        axis.plot(*curve, color="tab:gray", linestyle="--", zorder=1)
        for name, *point in zip(front, *curve, strict=True):
            if name != "plain":
                axis.annotate(
                    name.removeprefix("frozen-"), point, fontsize=7, xytext=(4, -9), textcoords="offset points"
                )
        axis.set(title=task, xlabel=f"clean, {results.split}, macro F1", ylabel=f"{measure}, macro F1")
        axis.grid(alpha=0.25)
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    others = {
        "front of frozen noise": plt.Line2D([], [], color="tab:gray", linestyle="--"),
        "other frozen": plt.Line2D([], [], color="tab:gray", marker=".", linestyle=""),
        "other learned": plt.Line2D([], [], color="tab:red", alpha=0.35, marker=".", linestyle=""),
    }
    handles = {name: handles[name] for name in named if name in handles} | others
    figure.legend(handles.values(), handles, loc="outside right upper", fontsize=8)
    save_plot(figure, path)


def _plot_heat_map(results: Results, path: Path) -> None:
    """Difference from plain, conditions against measures, mean over tasks."""
    import matplotlib.pyplot as plt

    measures = [m for m in MEASURES if np.isfinite(gains(results, "plain", m))]
    names = _sorted(results)[1:]
    values = np.array([[gains(results, name, measure) for measure in measures] for name in names])
    figure, axis = plt.subplots(figsize=(9, 1.2 + 0.21 * len(names)), layout="constrained")
    image = axis.imshow(values, cmap="RdBu", vmin=-0.2, vmax=0.2, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if abs(value) > 0.13 else "black"
        axis.text(column, row, f"{value:+.2f}".replace("0.", "."), ha="center", va="center", fontsize=6.5, color=colour)
    axis.set_xticks(range(len(measures)), [m.replace("_", " ") for m in measures], rotation=35, ha="left")
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False)
    for label, name in zip(axis.get_yticklabels(), names, strict=True):
        label.set_color(COLOURS[results.family[name]])
    edges = [i for i in range(1, len(names)) if results.family[names[i]] != results.family[names[i - 1]]]
    for edge in edges:
        axis.axhline(edge - 0.5, color="black", linewidth=1)
    axis.axvline(1.5, color="black", linewidth=1)
    label = f"difference from plain, macro F1, {results.split}, mean over tasks"
    figure.colorbar(image, label=label, pad=0.01, shrink=min(1.0, 30 / len(names)))
    save_plot(figure, path)


def _plot_forest(results: Results, comparisons: list[Comparison], path: Path) -> None:
    """The learned conditions, their twins and the rivals."""
    names = [name for name in _sorted(results) if results.family[name] in ("learned", "augmentation")]
    figure, axes = _panels(results, 5.2, 1 + 0.2 * len(names))
    for axis, task in zip(axes, results.tasks, strict=False):
        for offset, measure, colour in ((-0.2, "clean", "black"), (0, "shifted", "tab:red"), (0.2, "bias_field", "C0")):
            kept = [c for c in comparisons if (c.task, c.measure, c.control) == (task, measure, "plain")]
            kept = [c for c in kept if c.condition in names]
            axis.errorbar(
                [c.mean for c in kept],
                [names.index(c.condition) + offset for c in kept],
                xerr=[[c.mean - c.low for c in kept], [c.high - c.mean for c in kept]],
                fmt="o",
                color=colour,
                markersize=3,
                linewidth=0.9,
                label=measure.replace("_", " "),
            )
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set(title=task, xlabel="difference from plain, macro F1")
        axis.set_yticks(range(len(names)), names, fontsize=8)
        axis.invert_yaxis()
        axis.grid(axis="x", alpha=0.25)
    axes[0].legend(fontsize=8)
    save_plot(figure, path)


def _plot_curves(results: Results, path: Path) -> None:
    """Clean validation score while training: plain, coop, adv, and the frozen and hand-set ones best when shifted."""
    figure, axes = _panels(results, 5.5, 3.6)
    best = [
        max(names, key=lambda name: gains(results, name, "shifted"))
        for family in ("frozen", "augmentation")
        if (names := [name for name in results.family if results.family[name] == family])
    ]
    for axis, task in zip(axes, results.tasks, strict=False):
        for number, name in enumerate([*(name for name in ALWAYS_NAMED if name in results.family), *best]):
            curves = [r["curve"] for r in results.records if r["task"] == task and r["condition"] == name]
            length = min((len(curve) for curve in curves), default=0)
            if length == 0:
                continue
            steps = [point["step"] for point in curves[0][:length]]
            scores = np.array([[point.get("val_clean", np.nan) for point in curve[:length]] for curve in curves])
            axis.plot(steps, scores.mean(0), marker=".", color=f"C{number}", label=name)
        axis.set(title=task, xlabel="step", ylabel="clean validation, macro F1")
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=8)
    save_plot(figure, path)


def save_plot(figure: Any, path: Path) -> None:
    """Write a small PNG and close the figure."""
    import matplotlib.pyplot as plt
    from PIL import Image

    figure.savefig(path, dpi=110)
    plt.close(figure)
    with Image.open(path) as image:  # 256 colours are enough for a plot, and a third of the file
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def _write_tests(comparisons: list[Comparison], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Comparison)])
        writer.writeheader()
        for comparison in comparisons:
            values = vars(comparison).items()
            writer.writerow({name: f"{v:.4g}" if isinstance(v, float) else v for name, v in values})


def analyse(records: list[dict[str, Any]], split: str, output: Path, name: str, *, against: str | None = None) -> str:
    """Write a report (markdown), all tests (CSV) and the plots (PNG), and give back the report.

    Args:
        records: As ``study.py run`` or ``study.py pack`` wrote them.
        split: ``"val"`` to choose by, ``"test"`` to report.
        output: Folder.
        name: Prefix of the files.
        against: A condition that all others are compared with, beside their usual controls.

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
    comparisons = _comparisons(results, against)
    lookup = _Lookup(comparisons)
    failed = sum("error" in record for record in records)
    seconds = sum(record["seconds"] for record in results.records)
    devices = sorted({f"{record.get('device')}, torch {record.get('torch')}" for record in results.records})
    seeds = {task: len(results.by_seed(task, "plain", "clean")) for task in results.tasks}
    lines = [
        f"# {name}, {split} split",
        "",
        f"{len(results.records)} runs ({failed} failed; {results.incomplete} more left out, whose seed not all "
        f"conditions of their task had), {seconds:.0f} s summed over processes; {'; '.join(devices)}. Seeds: "
        f"{', '.join(f'{task} {count}' for task, count in seeds.items())}.",
        "",
        "Macro F1. `shifted` is the mean over the eight shifts, each the mean over its three severities. Differences "
        "are paired by seed; ± is the 95 % t-interval, given where there are three seeds or more; * means p < .05 "
        "after Holm's correction over all tasks and conditions of a family. All tests, with bootstrap intervals and "
        "effect sizes: "
        f"`{name}-{split}-tests.csv`, which the analysis writes.",
        "",
        "## Differences from plain, mean over tasks",
        "",
        *_overview(results, lookup),
        "",
        "## Scores by task",
        "",
        *(f"- Front of frozen noise, {task}: {' → '.join(frozen_front(results, task))}" for task in results.tasks),
        *(
            f"- Front under bias fields, {task}: {' → '.join(frozen_front(results, task, 'bias_field'))}"
            for task in results.tasks
        ),
        "",
        *_by_task(results),
    ]
    sections = []
    if min(seeds.values()) >= 3:
        sections = [
            ("Learned conditions against their controls", _tests(results, lookup)),
            ("Learned conditions against their twins", _twin_tests(results, lookup)),
            ("Masks whose mean varies about 1, mean over tasks", _level_tests(results, lookup)),
            ("Unseen patient, unseen modality, corruptions, transfer", _unseen_tests(results, lookup)),
        ]
        _plot_forest(results, comparisons, output / f"{name}-{split}-forest.png")
    if against:
        sections.insert(0, (f"Against {against}, mean over tasks", _tests_against(results, lookup, against)))
    learned = "What the policies had learned when they were let go, median over tasks and seeds"
    for title, table in [*sections, (learned, _policy_table(results))]:
        if len(table) > 2:  # more than its head
            lines += ["", f"## {title}", "", *table]
    report = "\n".join(lines) + "\n"
    (output / f"{name}-{split}.md").write_text(report)
    _write_tests(comparisons, output / f"{name}-{split}-tests.csv")
    _plot_pareto(results, "shifted", output / f"{name}-{split}-pareto.png")
    _plot_pareto(results, "bias_field", output / f"{name}-{split}-pareto-bias-field.png")
    _plot_heat_map(results, output / f"{name}-{split}-heat-map.png")
    _plot_curves(results, output / f"{name}-{split}-curves.png")
    return report
