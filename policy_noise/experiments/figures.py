"""The experiments' pictures, drawn by matplotlib without a display."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..masks import PolicyNoiseMask

__all__ = [
    "COLOURS",
    "LABELS",
    "class_histogram",
    "confusion_matrix",
    "few_shot_curves",
    "intensity_histogram",
    "mask_gallery",
    "training_diagnostics",
]

PathLike = str | os.PathLike[str]

# Okabe and Ito's palette, which colour-blind readers can tell apart.
COLOURS = {
    "conventional": "#6b6b6b",
    "frozen": "#e69f00",
    "policy": "#0072b2",
    "random": "#cc79a7",
    "imagenet": "#009e73",
}
BARS = [COLOURS[name] for name in ("policy", "frozen", "imagenet", "random", "conventional")]
LABELS = {
    "conventional": "conventional",
    "frozen": "frozen noise",
    "policy": "policy noise",
    "random": "from scratch",
    "imagenet": "ImageNet",
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


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # not pyplot: no backend, no global state

    return Figure(figsize=(width, height), layout="constrained")


def _style() -> Any:
    import matplotlib

    return matplotlib.rc_context(STYLE)  # type: ignore[arg-type]


@torch.no_grad()
def mask_gallery(
    mask: PolicyNoiseMask,
    images: Tensor,
    titles: Sequence[str],
    path: PathLike,
    *,
    mean: float,
    std: float,
    seed: int = 0,
    heading: str | None = None,
) -> None:
    """Draw what the policy does to a few images: image, alpha / (alpha + beta), mask, masked image.

    Args:
        mask: The mask; every image is masked here, whatever its ``p``.
        images: Normalised images.
        titles: One for each image.
        path: PNG to write.
        mean: Of the normalisation.
        std: Of the normalisation.
        seed: Of the drawn masks. The global random state is left as it was.
        heading: Above all.

    Shape:
        - images: (B, C, H, W).
    """
    from matplotlib.colors import TwoSlopeNorm

    generator = torch.Generator(images.device).manual_seed(seed)
    training = mask.training
    sample = mask.eval().sample(images, generator)  # eval: a backbone policy's statistics stay as they are
    sample = replace(sample, applied=torch.ones_like(sample.applied))
    factor = mask.render(sample, images.shape[2:])
    masked = mask(images, sample)
    mask.train(training)
    expected = sample.concentration1 / (sample.concentration1 + sample.concentration0)

    def shown(batch: Tensor) -> np.ndarray:
        picture = (batch.float().cpu() * std + mean).clamp(0, 1)
        return picture.permute(0, 2, 3, 1).squeeze(-1).numpy()

    low, high = float(expected.min()), float(expected.max())
    room = max(0.0, 0.1 - (high - low)) / 2  # a policy that has not moved shows as flat, not as rounding noise
    low = min(max(0.0, low - room), 0.9)
    high = max(low + 0.1, min(1.0, high + room))
    # White is a factor of 1. A mask that lost nearly all its cells lifts the rest by far more than it can darken.
    depth = max(0.05, float((factor - 1).abs().max()))
    colours = TwoSlopeNorm(1.0, vmin=max(0.0, 1 - depth), vmax=1 + depth)
    rows: list[tuple[str, np.ndarray, dict[str, Any]]] = [
        ("image", shown(images), {"cmap": "gray", "vmin": 0, "vmax": 1}),
        (
            "policy\n" + r"$\alpha\,/\,(\alpha+\beta)$",
            expected[:, 0].cpu().numpy(),
            {"cmap": "viridis", "vmin": low, "vmax": high},
        ),
        (
            "mask\n(factor)",
            factor[:, 0].cpu().numpy(),
            {"cmap": "RdBu_r", "norm": colours} if mask.mean_preserving else {"cmap": "viridis", "vmin": 0, "vmax": 1},
        ),
        ("masked\nimage", shown(masked), {"cmap": "gray", "vmin": 0, "vmax": 1}),
    ]
    with _style():
        columns = len(images)
        figure = _figure(1.25 * columns + 1.4, 5.6 if heading else 5.3)
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for row, (name, pictures, options) in enumerate(rows):
            for column, axis in enumerate(axes[row]):
                drawn = axis.imshow(pictures[column], interpolation="nearest", **options)
                axis.set(xticks=[], yticks=[])
                axis.grid(False)
                axis.spines[:].set_visible(False)
                if row == 0:
                    axis.set_title(titles[column], fontsize=9, loc="center", fontweight="normal")
            axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8, fontweight="bold")
            if row in (1, 2):
                figure.colorbar(drawn, ax=axes[row].tolist(), fraction=0.02, pad=0.01, aspect=9)
        if heading:
            figure.suptitle(heading, fontweight="bold", fontsize=11)
        figure.savefig(path)


def training_diagnostics(
    histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    path: PathLike,
    *,
    heading: str | None = None,
    panels: Mapping[str, str] | None = None,
) -> None:
    """Draw curves over training: thin lines for single seeds, a thick one for their mean.

    Args:
        histories: For each method and seed the log: entries with ``epoch`` and any of the panels' values.
        path: PNG to write.
        heading: Above all.
        panels: Values to draw and their titles; by default losses, validation and the policy's diagnostics.
    """
    panels = panels or {
        "loss": "training loss",
        "val_balanced_accuracy": "validation: balanced accuracy",
        "reward": "reward (minus loss), masked images",
        "entropy": "entropy of the policy, nats an image",
        "mask_std": "mask: standard deviation",
        "policy_grad_norm": "policy: gradient norm",
    }
    with _style():
        figure = _figure(10.5, 5.8)
        axes = figure.subplots(2, -(-len(panels) // 2)).ravel()
        for axis, (value, title) in zip(axes, panels.items(), strict=False):
            for method, logs in histories.items():
                curves = [
                    np.array([(entry["epoch"], entry[value]) for entry in log if entry.get(value) is not None])
                    for log in logs
                ]
                curves = [curve for curve in curves if len(curve)]
                if not curves:
                    continue
                length = min(map(len, curves))
                for curve in curves:
                    axis.plot(curve[:, 0], curve[:, 1], color=COLOURS.get(method), alpha=0.25, linewidth=0.9)
                average = np.mean([curve[:length] for curve in curves], axis=0)
                point = "o" if length == 1 else None  # a line of one point is none
                axis.plot(average[:, 0], average[:, 1], color=COLOURS.get(method), linewidth=2.2, marker=point)
            axis.set_title(title)
            axis.margins(x=0.02)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis in axes[max(0, len(panels) - len(axes) // 2) :]:
            axis.set_xlabel("epoch")
        handles = [
            axes[0].plot([], [], color=COLOURS.get(method), linewidth=2.2, label=LABELS.get(method, method))[0]
            for method in histories
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        if heading:
            figure.suptitle(heading, fontweight="bold", fontsize=11)
        figure.savefig(path)


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
    with _style():
        sizes = [max(3, len(name) // 4, int((kinds == name).sum())) for name in names]
        figure = _figure(min(16.0, 2.5 + 0.34 * sum(sizes)), 4.2)
        axes = figure.subplots(1, len(names), sharey=True, squeeze=False, width_ratios=sizes)[0]
        for position, (axis, name) in enumerate(zip(axes, names, strict=True)):
            members = np.flatnonzero(kinds == name)
            members = members[np.argsort(-counts[members], kind="stable")]
            axis.bar(range(len(members)), counts[members], color=BARS[position % len(BARS)], width=0.75)
            unit = "images" if labels.ndim == 1 else "labels"
            axis.set_title(f"{name or 'other'}\n{int(counts[members].sum())} {unit}", fontsize=9)
            axis.grid(axis="x", visible=False)
            texts = [data.class_names[label].rpartition("/")[2].replace("_", " ")[:22] for label in members]
            many = len(members) > 40  # 116 classes: names would be a smear
            axis.set_xticks([] if many else range(len(members)), None if many else texts, rotation=60, ha="right")
            if many:
                axis.set_xlabel(f"{len(members)} classes")
        if counts.max() > 20 * max(1, counts.min()):
            axes[0].set_yscale("log")
        axes[0].set_ylabel("training images")
        figure.savefig(path)


def _kinds(data: Any) -> np.ndarray:
    """The modality of each class, or the set that it came from; the data set's name where neither is known."""
    kinds = next((data.groups[name] for name in ("modality", "set") if name in data.groups), None)
    return np.array(kinds if kinds is not None else [data.name] * data.num_classes)


def intensity_histogram(data: Any, path: PathLike, *, images: int = 256) -> None:
    """Draw how often each grey value occurs in the training split, a panel for each modality.

    A dotted line marks the mean, from which multiplication in normalised values moves grey values away or to it.

    Args:
        data: The set; without modalities one panel shows all.
        path: PNG to write.
        images: Read for each modality, evenly over its images.
    """
    kinds, labels = _kinds(data), data.train.labels
    names = list(dict.fromkeys(kinds))
    with _style():
        columns = min(4, len(names))
        rows = -(-len(names) // columns)
        figure = _figure(max(4.6, 2.9 * columns), 2.5 * rows)
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for position, (axis, name) in enumerate(zip(axes, names, strict=False)):
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
            axis.set_title(f"{name or 'other'}\nmean {mean:.3f}, std {std:.3f}", fontsize=9)
            axis.axvline(mean, color=INK, linestyle=":", linewidth=1)
        for axis in axes[len(names) :]:
            axis.set_visible(False)
        for axis in axes[max(0, len(names) - columns) : len(names)]:
            axis.set_xlabel("grey value")
            axis.tick_params(labelbottom=True)
        for axis in axes[::columns]:
            axis.set_ylabel("share of pixels")
        figure.savefig(path)


def confusion_matrix(counts: Sequence[Sequence[int]], class_names: Sequence[str], path: PathLike) -> None:
    """Draw a confusion matrix as shares of each true class.

    Args:
        counts: Row the true class, column the predicted one.
        class_names: One for each class.
        path: PNG to write.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    shares = matrix / np.maximum(1, matrix.sum(1, keepdims=True))
    classes = len(matrix)
    with _style():
        texts = [name.replace("_", " ")[:28] for name in class_names] if classes <= 30 else []
        side = min(13.0, 2.6 + 0.38 * classes) + 0.06 * max(map(len, texts), default=0)
        figure = _figure(side + 0.6, side)
        axis = figure.subplots()
        drawn = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        axis.grid(False)
        axis.spines[:].set_visible(False)
        if texts:
            axis.set_xticks(range(classes), texts, rotation=60, ha="right")
            axis.set_yticks(range(classes), texts)
            for row, column in np.argwhere(shares >= 0.005):
                colour = "white" if shares[row, column] > 0.55 else INK
                text = f"{100 * shares[row, column]:.0f}"
                axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
        axis.set(xlabel="predicted", ylabel="true class")
        axis.set_title("confusion, % of each true class")
        figure.colorbar(drawn, ax=axis, fraction=0.04, pad=0.02)
        figure.savefig(path)


def few_shot_curves(table: Mapping[str, Mapping[str, Mapping[int, Any]]], path: PathLike, *, metric: str) -> None:
    """Draw means with 95 % intervals over sample sizes, a panel for each set.

    Args:
        table: By set, initialisation and sample size, as :func:`policy_noise.experiments.transfer.summarise` gives it.
        path: PNG to write.
        metric: Name for the axis.
    """
    with _style():
        columns = min(3, len(table))
        rows = -(-len(table) // columns)
        figure = _figure(max(4.6, 4.0 * columns), 3.3 * rows + 0.4)
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        spare = iter(("#56b4e9", "#d55e00", "#000000"))
        labels = list(dict.fromkeys(init for entry in table.values() for init in entry))
        colours = {label: COLOURS.get(label) or next(spare, None) for label in labels}
        for axis, (name, entries) in zip(axes, table.items(), strict=False):
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
            axis.set_title(name)
            axis.set_xlabel("images to learn from")
        for axis in axes[len(table) :]:
            axis.set_visible(False)
        for axis in axes[::columns]:
            axis.set_ylabel(metric)
        handles = [
            axes[0].plot([], [], color=colours[label], marker="o", markersize=3.5, label=LABELS.get(label, label))[0]
            for label in labels
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
        figure.savefig(path)
