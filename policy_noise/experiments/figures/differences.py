"""Pictures of a comparison: differences with their intervals, and what each method does to images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .style import COLOURS, INK, PathLike, picture, plain
from .style import panels as panels_of

__all__ = ["forest", "rows_of_images"]

PANELS = 4
"""Side by side."""


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
    columns = min(PANELS, len(panels))
    lines = -(-len(panels) // columns)
    width, height = 1.2 + 0.065 * max(map(len, rows)) + 2.3 * columns, 0.4 + lines * (0.7 + 0.34 * len(rows))
    with picture(path, width, height) as figure:
        axes = panels_of(figure, len(panels), columns, sharey=True)
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
        for axis, (name, strip) in zip(panels_of(figure, len(rows), 1), rows.items(), strict=True):
            axis.imshow(strip, cmap="gray", vmin=0, vmax=255, aspect="equal", interpolation="nearest")
            axis.set_title(plain(name), fontsize=9, fontweight="normal", pad=2)
            axis.set_axis_off()
