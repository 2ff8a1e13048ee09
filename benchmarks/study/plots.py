"""Plots of the study's results."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import save_plot
from benchmarks.study.comparisons import TWINS, Comparison, by_family, frozen_front, gains
from benchmarks.study.results import MEASURES, Results

COLOURS = {"plain": "black", "frozen": "tab:gray", "learned": "tab:red", "augmentation": "tab:blue"}
MARKERS = "osD^vP<>*Xph8d"
ALWAYS_NAMED = ("plain", "coop", "adv", "paper")


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


def plot_pareto(results: Results, measure: str, path: Path) -> None:
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


def plot_heat_map(results: Results, path: Path) -> None:
    """Difference from plain, conditions against measures, mean over tasks."""
    import matplotlib.pyplot as plt

    measures = [m for m in MEASURES if np.isfinite(gains(results, "plain", m))]
    names = by_family(results)[1:]
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


def plot_forest(results: Results, comparisons: list[Comparison], path: Path) -> None:
    """The learned conditions, their twins and the rivals."""
    names = [name for name in by_family(results) if results.family[name] in ("learned", "augmentation")]
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


def plot_curves(results: Results, path: Path) -> None:
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
