"""Pictures of a training: masks over time, and curves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...masks import PolicyNoiseMask
from .style import LABELS, PathLike, colours_of, plain, save, style
from .style import figure as new_figure

__all__ = ["mask_gallery", "training_diagnostics"]


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
    with style():
        columns = len(images)
        figure = new_figure(1.25 * columns + 1.4, 5.6 if heading else 5.3)
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for row, (name, pictures, options) in enumerate(rows):
            for column, axis in enumerate(axes[row]):
                drawn = axis.imshow(pictures[column], interpolation="nearest", **options)
                axis.set(xticks=[], yticks=[])
                axis.grid(False)
                axis.spines[:].set_visible(False)
                if row == 0:
                    axis.set_title(plain(titles[column]), fontsize=9, loc="center", fontweight="normal")
            axes[row, 0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8, fontweight="bold")
            if row in (1, 2):
                figure.colorbar(drawn, ax=axes[row].tolist(), fraction=0.02, pad=0.01, aspect=9)
        if heading:
            figure.suptitle(plain(heading), fontweight="bold", fontsize=11)
        save(figure, path)


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
        "loss": "loss: training, dashed on validation",
        "val_balanced_accuracy": "validation: balanced accuracy",
        "reward": "reward (minus loss), masked images",
        "entropy": "entropy of the policy, nats an image",
        "mask_std": "mask: standard deviation",
        "policy_grad_norm": "policy: gradient norm",
    }
    colours = colours_of(histories)
    with style():
        figure = new_figure(10.5, 5.8)
        axes = figure.subplots(2, -(-len(panels) // 2)).ravel()
        for axis, (value, title) in zip(axes, panels.items(), strict=False):
            for method, logs in histories.items():
                _curves(axis, logs, value, colours[method], "-")
                if value == "loss":
                    _curves(axis, logs, "val_loss", colours[method], "--")
            axis.set_title(title)
            axis.margins(x=0.02)
        for axis in axes[len(panels) :]:
            axis.set_visible(False)
        for axis in axes[max(0, len(panels) - len(axes) // 2) :]:
            axis.set_xlabel("epoch")
        handles = [
            axes[0].plot([], [], color=colours[method], linewidth=2.2, label=plain(LABELS.get(method, method)))[0]
            for method in histories
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
        if heading:
            figure.suptitle(plain(heading), fontweight="bold", fontsize=11)
        save(figure, path)


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
