"""Plots of the study's results."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import save_plot
from benchmarks.study.comparisons import TWINS, Comparison, by_family, frozen_front, gains
from benchmarks.study.names import condition_in_words, measure_in_words, task_in_words
from benchmarks.study.results import MEASURES, Results
from policy_noise.experiments.statistics import t_interval

COLOURS = {"plain": "black", "frozen": "#b57600", "learned": "#0072b2", "augmentation": "#6b6b6b"}
"""Of the families: random masks, learned masks and other augmentations."""
MARKERS = {
    "plain": "o",
    "coop": "s",
    "adv": "D",
    "paper": "^",
    "coop-smooth": "v",
    "relative-coop": "P",
    "coop-normalized": "<",
    "coop-dose20": "p",
    "coop-2x2-dose10": "*",
    "coop-2x2-dose20": "X",
    "robust-2x2-dose20": "h",
    "coop-2x2-dose20-level": "d",
    "coop-dose20-static": ">",
    "bias-field": ">",
    "gaussian-noise": "*",
    "random-erasing": "X",
    "mixup": "p",
    "randaugment": "H",
}
"""The same in every figure."""
ALWAYS_NAMED = ("plain", "coop", "adv", "paper")


def _panels(results: Results, width: float, height: float, columns: int = 2, **shared: bool) -> tuple[Any, list[Any]]:
    import matplotlib.pyplot as plt

    rows = -(-len(results.tasks) // columns)
    size = (columns * width, rows * height)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **shared)
    for axis in axes.flat[len(results.tasks) :]:
        axis.remove()
    return figure, list(axes.flat)


def _named(results: Results, measure: str) -> list[str]:
    """Conditions that a crowded plot names: plain, other augmentations and up to seven learned ones."""
    learned = [name for name in results.family if results.family[name] == "learned" and not name.endswith(TWINS)]
    learned.sort(key=lambda name: -gains(results, name, measure))
    chosen = [*(name for name in ALWAYS_NAMED if name in results.family)]
    chosen += [name for name in learned if name not in chosen][: 8 - len(chosen)]
    rivals = [name for name in results.family if results.family[name] == "augmentation"]
    return [*chosen, *(name for name in rivals if not name.endswith("-throughout"))]


def _half(values: np.ndarray) -> float | None:
    """Half the 95 % t-interval of a mean; None with fewer than three seeds."""
    if len(values) < 3:
        return None
    interval = t_interval(list(values))
    return interval.high - interval.mean


def plot_pareto(results: Results, measure: str, path: Path) -> None:
    """Plot clean score against a measure, one panel per task, with the numbered frontier of random masks."""
    import matplotlib.pyplot as plt

    figure, axes = _panels(results, 4.6, 4.4, columns=3 if len(results.tasks) == 3 else 2)
    named = _named(results, measure)
    handles = {}
    for axis, task in zip(axes, results.tasks, strict=False):
        for name in results.conditions(task):
            x, y = (results.values(task, name, which) for which in ("clean", measure))
            colour = COLOURS[results.family[name]]
            if name not in named:
                axis.plot(x.mean(), y.mean(), ".", color=colour, alpha=0.6, zorder=2)
                continue
            handles[condition_in_words(name)] = axis.errorbar(
                x.mean(),
                y.mean(),
                xerr=_half(x),
                yerr=_half(y),
                fmt=MARKERS.get(name, "8"),
                color=colour,
                markersize=8,
                elinewidth=0.7,
                zorder=3,
            )
        front = frozen_front(results, task, measure)
        curve = [[results.mean(task, name, which) for name in front] for which in ("clean", measure)]
        axis.plot(*curve, color=COLOURS["frozen"], linestyle="--", zorder=1)
        steps = []
        for name, *point in zip(front, *curve, strict=True):
            if name != "plain":
                steps.append(f"{len(steps) + 1}: {condition_in_words(name)}")
                style = {"fontsize": 7, "ha": "center", "va": "center", "color": "white", "zorder": 4}
                circle = {"boxstyle": "circle,pad=0.2", "facecolor": COLOURS["frozen"], "edgecolor": "none"}
                axis.annotate(str(len(steps)), point, bbox=circle, **style)
        axis.set(title=task_in_words(task), ylabel=f"{measure_in_words(measure)}, macro F1")
        axis.set_xlabel(f"clean, {results.split}, macro F1")
        below = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}
        axis.annotate("\n".join(steps), (0, 0), (0, -34), fontsize=7, color=COLOURS["frozen"], **below)
        axis.grid(alpha=0.25)
    others = {
        "frontier of random masks": plt.Line2D([], [], color=COLOURS["frozen"], linestyle="--"),
        "other random masks": plt.Line2D([], [], color=COLOURS["frozen"], alpha=0.6, marker=".", linestyle=""),
        "other learned masks": plt.Line2D([], [], color=COLOURS["learned"], alpha=0.6, marker=".", linestyle=""),
    }
    shown = {name: handles[name] for name in map(condition_in_words, named) if name in handles} | others
    figure.legend(shown.values(), shown, loc="outside lower center", ncols=3, fontsize=8)
    save_plot(figure, path)


def plot_heat_map(results: Results, path: Path) -> None:
    """Difference from plain, conditions against measures, mean over tasks."""
    import matplotlib.pyplot as plt

    measures = [m for m in MEASURES if np.isfinite(gains(results, "plain", m))]
    names = by_family(results)[1:]
    values = np.array([[gains(results, name, measure) for measure in measures] for name in names])
    figure, axis = plt.subplots(figsize=(9.5, 1.2 + 0.21 * len(names)), layout="constrained")
    image = axis.imshow(values, cmap="RdBu", vmin=-0.2, vmax=0.2, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        colour = "white" if abs(value) > 0.13 else "black"
        axis.text(column, row, f"{value:+.2f}".replace("0.", "."), ha="center", va="center", fontsize=6.5, color=colour)
    axis.set_xticks(range(len(measures)), [measure_in_words(m) for m in measures], rotation=35, ha="left", fontsize=8)
    axis.set_yticks(range(len(names)), [condition_in_words(name) for name in names], fontsize=7)
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


def plot_forest(results: Results, comparisons: list[Comparison], path: Path) -> None:
    """Differences from plain by task, with 95 % intervals, on one scale."""
    names = by_family(results)[1:]
    columns = len(results.tasks)
    figure, axes = _panels(results, 1.2 + 7 / columns, 1.2 + 0.24 * len(names), columns, sharex=True, sharey=True)
    shown = ((-0.25, "clean", "black"), (0, "shifted", "#d55e00"), (0.25, "bias_field", "#56b4e9"))
    for axis, task in zip(axes, results.tasks, strict=False):
        for offset, measure, colour in shown:
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
                label=measure_in_words(measure),
            )
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set_title(task_in_words(task), fontsize=10)
        axis.grid(axis="x", alpha=0.25)
        for row in range(1, len(names), 2):
            axis.axhspan(row - 0.5, row + 0.5, color="0.96", zorder=0)
        axis.tick_params(axis="x", labelsize=8)
    axes[0].set_yticks(range(len(names)), [condition_in_words(name) for name in names], fontsize=8)
    for label, name in zip(axes[0].get_yticklabels(), names, strict=True):
        label.set_color(COLOURS[results.family[name]])
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    figure.supxlabel(f"difference from plain, macro F1, {results.split}, 95 % intervals", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=8)
    save_plot(figure, path)


def plot_curves(results: Results, path: Path) -> None:
    """Plot clean validation scores in training: plain, coop, adv, and the best random mask and augmentation."""
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
            axis.plot(steps, scores.mean(0), marker=".", color=f"C{number}", label=condition_in_words(name))
        axis.set(title=task_in_words(task), xlabel="step", ylabel="clean validation, macro F1")
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=8)
    save_plot(figure, path)
