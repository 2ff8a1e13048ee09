"""Pictures of a data set: how many images of each class, and what grey values they have."""

from typing import Any

import numpy as np

from .style import BARS, INK, PathLike, panels, picture, plain

__all__ = ["class_histogram", "intensity_histogram"]


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
        axes = panels(figure, len(names), len(names), sharey=True, width_ratios=sizes)
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
        axes = panels(figure, len(names), columns, sharex=True, sharey=True)
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
