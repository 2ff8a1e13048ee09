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
    "calibration_curve",
    "class_histogram",
    "confusion_matrix",
    "few_shot_curves",
    "forest",
    "intensity_histogram",
    "mistakes_gallery",
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
BARS = [COLOURS[name] for name in ("learned", "random", "imagenet", "scratch", "plain")]
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
    histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    path: PathLike,
    *,
    panels: Mapping[str, str] | None = None,
) -> None:
    """Draw curves over training: thin lines for single seeds, a thick one for their mean.

    A dotted line marks where masks end and training goes on without them.

    Args:
        histories: For each method and seed the log: entries with ``epoch`` and any of the panels' values.
        path: PNG to write.
        panels: Values to draw and their titles; by default losses, validation and the policy's diagnostics.
    """
    panels = panels or {
        "loss": "loss: training, dashed on validation",
        "val_balanced_accuracy": "validation: balanced accuracy",
        "reward": "reward (minus loss), masked images",
        "entropy": "entropy of the policy, nats per image",
        "mask_std": "mask: standard deviation",
        "policy_grad_norm": "policy: gradient norm",
    }
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


def class_histogram(data: Any, path: PathLike) -> None:
    """Draw images of each class in the training split, largest first, a panel for each modality.

    Args:
        data: The set; without modalities one panel shows all classes.
        path: PNG to write.
    """
    labels = data.train.labels
    counts = labels.sum(0) if labels.ndim == 2 else np.bincount(labels, minlength=data.num_classes)
    kinds = _kinds(data)
    names = list(dict.fromkeys(kinds))
    sizes = [max(3, len(name) // 4, int((kinds == name).sum())) for name in names]
    with picture(path, min(16.0, 2.5 + 0.34 * sum(sizes)), 4.2) as figure:
        axes = axes_of(figure, len(names), len(names), sharey=True, width_ratios=sizes)
        for position, (axis, name) in enumerate(zip(axes, names, strict=True)):
            members = np.flatnonzero(kinds == name)
            members = members[np.argsort(-counts[members], kind="stable")]
            axis.bar(range(len(members)), counts[members], color=BARS[position % len(BARS)], width=0.75)
            unit = "images" if labels.ndim == 1 else "labels"
            axis.set_title(f"{plain(name) or 'other'}\n{int(counts[members].sum())} {unit}", fontsize=9)
            axis.grid(axis="x", visible=False)
            if len(members) > 40:  # 116 classes: names would be a smear
                axis.set_xticks([])
                axis.set_xlabel(f"{len(members)} classes")
            else:
                texts = [plain(data.class_names[label].rpartition("/")[2].replace("_", " ")[:22]) for label in members]
                axis.set_xticks(range(len(members)), texts, rotation=60, ha="right")
        if counts.max() > 20 * max(1, counts.min()):
            axes[0].set_yscale("log")
        axes[0].set_ylabel("training images")


def _kinds(data: Any) -> np.ndarray:
    """The modality of each class, or the set that it came from; the data set's name where neither is known."""
    kinds = next((data.groups[name] for name in ("modality", "set") if name in data.groups), None)
    return np.array(kinds if kinds is not None else [data.name] * data.num_classes)


def intensity_histogram(data: Any, path: PathLike, *, images: int = 256) -> None:
    """Draw how often each grey value occurs in the training split, a panel for each modality.

    A dotted line marks the mean. Multiplying normalized values moves grey values towards it or away from it.

    Args:
        data: The set; without modalities one panel shows all.
        path: PNG to write.
        images: Read for each modality, evenly over its images.
    """
    kinds, labels = _kinds(data), data.train.labels
    names = list(dict.fromkeys(kinds))
    columns = min(4, len(names))
    with picture(path, max(4.6, 2.9 * columns), 2.5 * -(-len(names) // columns)) as figure:
        axes = axes_of(figure, len(names), columns, sharex=True, sharey=True)
        for position, (axis, name) in enumerate(zip(axes, names, strict=True)):
            members = np.arange(len(labels)) if labels.ndim == 2 else np.flatnonzero(kinds[labels] == name)
            chosen = members[np.linspace(0, len(members) - 1, min(images, len(members))).round().astype(int)]
            counts = np.bincount(data.train.read(chosen)[0].ravel(), minlength=256)
            shares = counts / max(1, counts.sum())
            grey = np.arange(256) / 255
            mean = float(shares @ grey)
            std = float(np.sqrt(shares @ (grey - mean) ** 2))
            colour = BARS[position % len(BARS)]
            axis.stairs(shares.reshape(64, 4).sum(1), np.linspace(0, 1, 65), fill=True, color=colour, alpha=0.85)
            axis.set_yscale("log")  # black background would hide all else
            axis.set_title(f"{plain(name) or 'other'}\nmean {mean:.3f}, std {std:.3f}", fontsize=9)
            axis.axvline(mean, color=INK, linestyle=":", linewidth=1)
        for axis in axes[-columns:]:
            axis.set_xlabel("grey value")
            axis.tick_params(labelbottom=True)
        for axis in axes[::columns]:
            axis.set_ylabel("share of pixels")


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
        for axis, image, title in zip(axes_of(figure, len(images), columns), images, titles, strict=True):
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
