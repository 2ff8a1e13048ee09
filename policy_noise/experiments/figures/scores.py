"""Pictures of scores: confusion, calibration, mistakes, and few-shot curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .style import COLOURS, INK, PathLike, colours_of, panels, picture, plain

__all__ = ["calibration_curve", "confusion_matrix", "few_shot_curves", "mistakes_gallery"]


def confusion_matrix(
    counts: Sequence[Sequence[int]],
    class_names: Sequence[str],
    path: PathLike,
    *,
    groups: Sequence[str] | None = None,
) -> None:
    """Draw a confusion matrix as shares of each true class.

    Up to 30 classes are named. More classes are sorted by group, and only the groups are named and separated by lines.
    For the confused classes see :func:`~policy_noise.experiments.metrics.confused_pairs`.

    Args:
        counts: Row the true class, column the predicted one.
        class_names: One for each class.
        path: PNG to write.
        groups: The kind of each class, such as its modality.
    """
    from matplotlib.colors import Normalize, PowerNorm

    matrix = np.asarray(counts, dtype=np.float64)
    shares = 100 * matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    classes = len(matrix)
    named = classes <= 30
    texts = [plain(name.replace("_", " ")[:28]) for name in class_names] if named else []
    side = min(13.0, 2.6 + 0.38 * classes) + 0.06 * max(map(len, texts), default=0) if named else 8.5
    with picture(path, side + 0.9, side) as figure:
        axis = figure.subplots()
        axis.grid(False)
        axis.spines[:].set_visible(False)
        if named:
            axis.set_xticks(range(classes), texts, rotation=60, ha="right")
            axis.set_yticks(range(classes), texts)
            for row, column in np.argwhere(shares >= 0.5):
                colour = "white" if shares[row, column] > 55 else INK
                text = f"{shares[row, column]:.0f}"
                axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
        elif groups:
            kinds = list(dict.fromkeys(groups))
            order = np.argsort([kinds.index(kind) for kind in groups], kind="stable")
            shares = shares[order][:, order]
            sizes = np.array([list(groups).count(kind) for kind in kinds])
            ends = np.cumsum(sizes)
            for end in ends[:-1]:
                axis.axhline(end - 0.5, color=INK, linewidth=0.6)
                axis.axvline(end - 0.5, color=INK, linewidth=0.6)
            texts = [f"{plain(kind) or 'other'} ({size})" for kind, size in zip(kinds, sizes, strict=True)]
            axis.set_xticks(ends - sizes / 2 - 0.5, texts, rotation=60 if len(kinds) > 5 else 0)
            axis.set_yticks(ends - sizes / 2 - 0.5, texts)
        # A power below 1 shows the few per cent that a class loses to each of many others.
        scale = Normalize(0, 100) if named else PowerNorm(0.5, 0, 100)
        drawn = axis.imshow(shares, cmap="Blues", norm=scale, interpolation="nearest" if named else "none")
        axis.set(xlabel="predicted", ylabel="true class")
        axis.set_title("confusion, % of each true class")
        figure.colorbar(drawn, ax=axis, fraction=0.04, pad=0.02, format="%d%%", ticks=[0, 5, 25, 50, 75, 100])


def calibration_curve(bins: Sequence[Mapping[str, float]], path: PathLike, *, error: float) -> None:
    """Draw how often a prediction is right against how sure it was.

    Args:
        bins: As :func:`policy_noise.experiments.metrics.calibration` gives them.
        path: PNG to write.
        error: The expected calibration error, for the title.
    """
    with picture(path, 4.6, 4.6) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        sure, right, counts = (np.array([entry[name] for entry in bins]) for name in ("confidence", "share", "count"))
        upper.plot([0, 1], [0, 1], color="#999999", linestyle=":", linewidth=1)
        upper.plot(sure, right, color=COLOURS["learned"], marker="o", linewidth=1.6)
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share that is right")
        upper.set_title(f"calibration (expected error {error:.3f})")
        lower.bar(sure, counts, width=0.05, color=COLOURS["learned"])
        lower.set(xlabel="probability of the prediction", ylabel="predictions")


def mistakes_gallery(images: np.ndarray, titles: Sequence[str], path: PathLike) -> None:
    """Draw misclassified images, the surest mistakes first.

    Args:
        images: uint8, (N, H, W) or (N, H, W, 3).
        titles: One for each image.
        path: PNG to write.
    """
    columns = min(6, len(images))
    with picture(path, max(3.0, 1.8 * columns), 2.35 * -(-len(images) // columns)) as figure:
        for axis, image, title in zip(panels(figure, len(images), columns), images, titles, strict=True):
            axis.set_axis_off()
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            axis.set_title(plain(title), fontsize=7.5, loc="center", fontweight="normal")


def few_shot_curves(table: Mapping[str, Mapping[str, Mapping[int, Any]]], path: PathLike, *, metric: str) -> None:
    """Draw means with 95 % intervals over sample sizes, a panel for each set.

    Args:
        table: By set, initialisation and sample size, as :func:`policy_noise.experiments.few_shot.summarise` gives it.
        path: PNG to write.
        metric: Name for the axis.
    """
    columns = min(3, len(table))
    with picture(path, max(4.6, 4.0 * columns), 3.3 * -(-len(table) // columns) + 0.4) as figure:
        axes = panels(figure, len(table), columns)
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
