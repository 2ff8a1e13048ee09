"""Pictures of a training: its curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .style import PathLike, colours_of, picture, plain
from .style import panels as panels_of

__all__ = ["training_diagnostics"]


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
        axes = panels_of(figure, len(panels), columns)
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
