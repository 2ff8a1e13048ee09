"""The experiments' pictures, drawn by matplotlib without a display."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.files import PathLike, write_atomic

__all__ = [
    "COLOURS",
    "confusion_matrix",
    "few_shot_curves",
    "forest",
    "picture",
    "rows_of_images",
    "training_diagnostics",
]

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {
    "plain": "#6b6b6b",
    "random": "#e69f00",
    "learned": "#0072b2",
    "scratch": "#cc79a7",
    "imagenet": "#009e73",
}
INK = "#222222"
STYLE: dict[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#999999",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.dpi": 110,
}

# For labels of the user's own: the rest of that palette, then darker and lighter ones.
SPARE = ("#56b4e9", "#d55e00", "#000000", "#7f3c8d", "#8c6d31", "#11a579", "#a5aa99", "#e73f74", "#393b79", "#b5cf6b")


@contextmanager
def picture(path: PathLike, width: float, height: float) -> Iterator[Any]:
    """An empty figure, in inches. After the ``with`` block it is written, in the format of the path's suffix."""
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot: no backend, no global state

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        write_atomic(path, lambda temporary: figure.savefig(temporary, format=Path(path).suffix[1:] or "png"))


def axes_of(figure: Any, count: int, columns: int, **options: Any) -> Any:
    """So many axes, in rows of so many."""
    axes = figure.subplots(-(-count // columns), columns, squeeze=False, **options).ravel()
    for axis in axes[count:]:
        axis.set_visible(False)
    return axes[:count]


def colours_of(labels: Iterable[str]) -> dict[str, str]:
    """A colour for each label, the same for its curve and its place in the legend."""
    spare = cycle(SPARE)
    return {label: COLOURS.get(label) or next(spare) for label in dict.fromkeys(labels)}


def plain(text: str) -> str:
    """Make a name from the user's data safe for matplotlib: no math mode between dollar signs, no undecodable bytes."""
    return text.encode("utf-8", "replace").decode().replace("$", r"\$")


def training_diagnostics(
    histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], path: PathLike, panels: Mapping[str, str]
) -> None:
    """Draw curves over training: thin lines for single seeds, a thick one for their mean.

    A dotted line marks where masks end and training goes on without them.

    Args:
        histories: For each method and seed the log: entries with ``epoch`` and any of the panels' values.
        path: PNG to write.
        panels: Values to draw and their titles.
    """
    colours = colours_of(histories)
    columns = -(-len(panels) // 2)
    with picture(path, 10.5, 5.8) as figure:
        axes = axes_of(figure, len(panels), columns)
        for axis, (value, title) in zip(axes, panels.items(), strict=True):
            for method, logs in histories.items():
                _curves(axis, logs, value, colours[method], "-")
                if value == "loss":
                    _curves(axis, logs, "val_loss", colours[method], "--")
            axis.set_title(title)
            axis.margins(x=0.02)
        for axis in axes[-columns:]:
            axis.set_xlabel("epoch")
        handles = [
            axes[0].plot([], [], color=colours[method], linewidth=2.2, label=plain(method))[0] for method in histories
        ]
        if any(len(logs) > 1 for logs in histories.values()):
            handles += axes[0].plot([], [], color="0.6", linewidth=0.9, label="single seeds")
        end = _end_of_masks(histories)
        for axis, value in zip(axes, panels, strict=True):
            if end is not None and value in ("loss", "val_balanced_accuracy"):
                line = axis.axvline(end, color="0.3", linewidth=1, linestyle=":", label="masks off from here")
                handles += [line] if line.axes is axes[0] else []
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5))  # more would be cut off


def _end_of_masks(histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]]) -> float | None:
    """The last epoch with a reward, if a loss was logged after it."""
    entries = [entry for logs in histories.values() for log in logs for entry in log]
    rewarded = [entry["epoch"] for entry in entries if entry.get("reward") is not None]
    trained = [entry["epoch"] for entry in entries if entry.get("loss") is not None]
    return max(rewarded) if rewarded and max(trained, default=0) > max(rewarded) else None


def _curves(axis: Any, logs: Sequence[Sequence[Mapping[str, float]]], value: str, colour: str, linestyle: str) -> None:
    """One method's seeds and their mean."""
    curves = [
        np.array([(entry["epoch"], entry[value]) for entry in log if entry.get(value) is not None]) for log in logs
    ]
    curves = [curve for curve in curves if len(curve)]
    if not curves:
        return
    length = min(map(len, curves))
    for curve in curves:
        axis.plot(curve[:, 0], curve[:, 1], color=colour, alpha=0.25, linewidth=0.9, linestyle=linestyle)
    average = np.mean([curve[:length] for curve in curves], axis=0)
    point = "o" if length == 1 else None  # a line of one point is none
    axis.plot(average[:, 0], average[:, 1], color=colour, linewidth=2.2, linestyle=linestyle, marker=point)


def forest(
    panels: Mapping[str, Sequence[Mapping[str, Any]]], rows: Sequence[str], path: PathLike, *, xlabel: str
) -> None:
    """Draw differences from a reference with 95 % intervals, a panel for each measure on an axis of its own.

    Dots are filled where a difference is found.

    Args:
        panels: By measure, for each row ``mean``, ``low``, ``high`` (None where there is none) and ``finding``.
        rows: Their names, from the top.
        path: PNG to write.
        xlabel: Below the panels.
    """
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    width, height = 1.2 + 0.065 * max(map(len, rows)) + 2.3 * columns, 0.4 + lines * (0.7 + 0.34 * len(rows))
    with picture(path, width, height) as figure:
        axes = axes_of(figure, len(panels), columns, sharey=True)
        places = np.arange(len(rows))[::-1]
        for axis, (title, found) in zip(axes, panels.items(), strict=True):
            axis.axvline(0, color=INK, linewidth=0.9)
            for place, row in zip(places, found, strict=True):
                shown = row["finding"] in ("better", "worse")
                colour = COLOURS["learned"] if row["finding"] == "better" else "#d55e00" if shown else COLOURS["plain"]
                if row["low"] is not None:
                    axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.6)
                axis.plot(
                    row["mean"], place, "o", color=colour, markerfacecolor=colour if shown else "white", markersize=5.5
                )
            axis.set_title(plain(title), fontsize=9)
            axis.locator_params(axis="x", nbins=5)
            axis.margins(x=0.08)
            axis.grid(axis="y", visible=False)
        axes[0].set_yticks(places, [plain(row) for row in rows])
        axes[0].set_ylim(-0.6, len(rows) - 0.4)
        figure.supxlabel(xlabel, fontsize=9)


def rows_of_images(rows: Mapping[str, np.ndarray], path: PathLike) -> None:
    """Draw rows of images, a name above each.

    Args:
        rows: By name uint8 images side by side, (H, W) or (H, W, 3), all of one size.
        path: PNG to write.
    """
    height, width = next(iter(rows.values())).shape[:2]
    with picture(path, 8.0, len(rows) * (8.0 * height / width + 0.3)) as figure:
        for axis, (name, strip) in zip(axes_of(figure, len(rows), 1), rows.items(), strict=True):
            axis.imshow(strip, cmap="gray", vmin=0, vmax=255, aspect="equal", interpolation="nearest")
            axis.set_title(plain(name), fontsize=9, fontweight="normal", pad=2)
            axis.set_axis_off()


def confusion_matrix(counts: Sequence[Sequence[int]], class_names: Sequence[str], path: PathLike) -> None:
    """Draw a confusion matrix as shares of each true class.

    Args:
        counts: Row the true class, column the predicted one.
        class_names: One for each class.
        path: PNG to write.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    shares = 100 * matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    texts = [plain(name.replace("_", " ")[:28]) for name in class_names]
    side = min(13.0, 2.6 + 0.38 * len(texts)) + 0.06 * max(map(len, texts))
    with picture(path, side + 0.9, side) as figure:
        axis = figure.subplots()
        axis.grid(False)
        axis.spines[:].set_visible(False)
        axis.set_xticks(range(len(texts)), texts, rotation=60, ha="right")
        axis.set_yticks(range(len(texts)), texts)
        for row, column in np.argwhere(shares >= 0.5):
            colour = "white" if shares[row, column] > 55 else INK
            text = f"{shares[row, column]:.0f}"
            axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
        drawn = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100, interpolation="nearest")
        axis.set(xlabel="predicted", ylabel="true class")
        axis.set_title("confusion, % of each true class")
        figure.colorbar(drawn, ax=axis, fraction=0.04, pad=0.02, format="%d%%", ticks=[0, 5, 25, 50, 75, 100])


def few_shot_curves(table: Mapping[str, Mapping[str, Mapping[int, Any]]], path: PathLike, *, metric: str) -> None:
    """Draw means with 95 % intervals over sample sizes, a panel for each set.

    Args:
        table: By set, initialisation and sample size, as :func:`policy_noise.experiments.few_shot.summarise` gives it.
        path: PNG to write.
        metric: Name for the axis.
    """
    columns = min(3, len(table))
    with picture(path, max(4.6, 4.0 * columns), 3.3 * -(-len(table) // columns) + 0.4) as figure:
        axes = axes_of(figure, len(table), columns)
        colours = colours_of(init for entry in table.values() for init in entry)
        for axis, (name, entries) in zip(axes, table.items(), strict=True):
            for position, (init, points) in enumerate(entries.items()):
                shots = np.array(sorted(points))
                spread = shots * 1.025 ** (position - (len(entries) - 1) / 2)  # side by side, so that bars don't hide
                mean, low, high = (np.array([points[n][field] for n in shots]) for field in range(3))
                axis.errorbar(
                    spread,
                    mean,
                    yerr=np.nan_to_num([mean - low, high - mean]),
                    color=colours[init],
                    linewidth=1.6,
                    marker="o",
                    markersize=3.5,
                    capsize=2.5,
                    elinewidth=0.9,
                )
            axis.set_xscale("log", base=2)
            ticks = sorted({n for points in entries.values() for n in points})
            axis.set_xticks(ticks, [str(n) for n in ticks])
            axis.minorticks_off()
            axis.set_title(plain(name))
            axis.set_xlabel("images to learn from")
        for axis in axes[::columns]:
            axis.set_ylabel(metric)
        handles = [
            axes[0].plot([], [], color=colours[label], marker="o", markersize=3.5, label=plain(label))[0]
            for label in colours
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
