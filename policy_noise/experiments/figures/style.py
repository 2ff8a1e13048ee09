"""Shared parts of all figures: colours, names, and matplotlib without a display."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

from ...utils.files import PathLike, write_atomic

__all__ = ["BARS", "COLOURS", "INK", "PathLike", "colours_of", "panels", "picture", "plain"]

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


def panels(figure: Any, count: int, columns: int, **options: Any) -> Any:
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
