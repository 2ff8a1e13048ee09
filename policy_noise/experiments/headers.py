"""A check of every file's header before training. It finds images that would be read wrongly, within seconds."""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .file_sets import FileSet, FileSplit
from .images import TooDeep, read_header, read_image
from .processes import in_threads

__all__ = ["in_colour", "look_over"]

CHUNK = 256


def look_over(parts: Sequence[FileSplit]) -> list[str]:
    """Look at the header of every file.

    Args:
        parts: Splits of a set.

    Returns:
        Notes for the user, if images have transparency, which is dropped.

    Raises:
        TooDeep: If a file has more than 8 bits and there is no window.
        ValueError: If a file cannot be read and the data set does not leave out such files.
    """
    transparent: list[str] = []
    total = 0
    for count, example in in_threads(
        lambda chunk: _look(*chunk), list(_chunks(parts)), desc="looking at headers", unit=f" x {CHUNK} files"
    ):
        total += count
        transparent += example
    if not total:
        return []
    few = "1 image has" if total == 1 else f"{total} images have"
    return [f"{few} transparency, such as {transparent[0]}: it is dropped, and pixels keep the colour under it"]


def _chunks(parts: Sequence[FileSplit]) -> Iterator[tuple[FileSplit, range]]:
    for part in parts:
        for start in range(0, len(part), CHUNK):
            yield part, range(start, min(start + CHUNK, len(part)))


def _look(part: FileSplit, indices: range) -> tuple[int, list[str]]:
    """How many have transparency, and the first of them."""
    from PIL import Image

    transparent = []
    for index in indices:
        path = part.path(index)
        try:
            header = read_header(path)
            if header.deep and part.window is None:
                read_image(path, 1)  # its values may still lie in 0..255
        except TooDeep:
            raise
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            part.refuse_unless_skipped(path, error)
            continue
        if header.alpha:
            transparent.append(path)
    return len(transparent), transparent[:1]


def in_colour(data: FileSet) -> bool:
    """Whether the first readable image of any class is in colour. Grayscale stored as RGB is not."""
    split: Any = dataclasses.replace(data.train, in_chans=3, skip_corrupt=True)
    for label in range(data.num_classes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # unreadable files are reported later
            images, _ = split.read(np.flatnonzero(split.labels == label)[:1])
        if len(images) and (np.ptp(images.astype(np.int16), axis=3) > 8).mean() > 0.01:
            return True
    return False
