"""Parts of the benchmarks' pages: table rows and small figures."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any


def row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def head(cells: Iterable[str]) -> list[str]:
    cells = list(cells)
    return [row(cells), f"|{'---|' * len(cells)}"]


def save_plot(figure: Any, path: Path) -> None:
    """Write a small PNG and close the figure."""
    import matplotlib.pyplot as plt
    from PIL import Image

    figure.savefig(path, dpi=110)
    plt.close(figure)
    with Image.open(path) as image:  # 256 colours are enough for a plot, and a third of the file
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
