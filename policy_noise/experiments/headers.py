"""A check of every file's header before training. It finds images that would be read wrongly, within seconds."""

import dataclasses
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .data import ImageSet, Split
from .file_sets import Files
from .images import Reading, TooDeep, count_unfinite, pixels, read_header, read_image
from .processes import in_threads

__all__ = ["in_colour", "look_over", "refuse_masks", "size_notes"]

CHUNK = 256
SAID = {
    "alpha": "transparency, such as {}: it is dropped, and pixels keep the colour under it",
    "frames": "several frames or pages, such as {}: only the first is read",
    "unfinite": "values that are not finite, such as {}: NaN and -inf become black, +inf white",
}
"""What is said of files, with the name of the first."""


def look_over(parts: Sequence[Files]) -> list[str]:
    """Look at the header of every file of a set's splits.

    Returns:
        Notes for the user on what is dropped or changed when the images are read.

    Raises:
        TooDeep: If a file has more than 8 bits and there is no window.
        ValueError: If a file cannot be read and the data set does not leave out such files.
    """
    counts: Counter[Any] = Counter()
    first: dict[Any, str] = {}
    chunks = [(part, range(len(part))[start : start + CHUNK]) for part in parts for start in range(0, len(part), CHUNK)]
    for found in in_threads(lambda chunk: _look(*chunk), chunks, desc="looking at headers", unit=f" x {CHUNK} files"):
        for what, path in found:
            counts[what] += 1
            first.setdefault(what, path)
    notes = []
    for what, text in SAID.items():
        if counts[what]:
            few = "1 image has" if counts[what] == 1 else f"{counts[what]} images have"
            notes.append(f"{few} {text.format(first[what])}")
    sizes = {what: count for what, count in counts.items() if isinstance(what, tuple)}
    return notes + size_notes(sizes, parts[0].reading)


def _look(part: Files, indices: range) -> list[tuple[Any, str]]:
    """What each file's header shows: its size, and the keys of :data:`SAID` that hold."""
    from PIL import Image

    found: list[tuple[Any, str]] = []
    for index in indices:
        path = part.path(index)
        try:
            header = read_header(path)
            if header.deep and part.reading.window is None:
                read_image(path, 1)  # its values may still lie in 0..255
            if header.floats and count_unfinite(pixels(path)):
                found.append(("unfinite", path))
        except TooDeep:
            raise
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            part.refuse_unless_skipped(path, error)
            continue
        found.append((header.size, path))
        found += [("alpha", path)] if header.alpha else []
        found += [("frames", path)] if header.frames > 1 else []
    return found


def size_notes(sizes: Mapping[tuple[int, int], int], reading: Reading) -> list[str]:
    """Say what becomes of images that are not square, and of those that are larger than they are read.

    Args:
        sizes: How many images have each width and height.
        reading: How they are read.
    """
    total, notes = sum(sizes.values()), []
    several = Counter({size: count for size, count in sizes.items() if size[0] != size[1]})
    if several:
        done = {"stretch": "stretched to a square", "crop": "cropped to their middle", "pad": "padded with black"}
        more = "; --fit crop or --fit pad keeps proportions" if reading.fit == "stretch" else ""
        wide, high = several.most_common(1)[0][0]
        notes.append(
            f"{several.total()} of {total} images are not square, most of them {wide} x {high} pixels: they are "
            f"{done[reading.fit]}{more}"
        )
    larger = Counter({size: count for size, count in sizes.items() if min(size) > reading.size})
    if larger:
        wide, high = larger.most_common(1)[0][0]
        notes.append(
            f"{larger.total()} of {total} images are larger than {reading.size} x {reading.size} pixels, most of them "
            f"{wide} x {high}: they are reduced"
        )
    return notes


def first_of_each_class(data: ImageSet) -> np.ndarray:
    """The first image of every class as RGB, of those that can be read. Usually they are training images."""
    part = _first_split(data)
    reading = dataclasses.replace(part.images.reading, in_chans=3, skip_bad_files=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unreadable files are reported later
        firsts = np.unique(part.labels, return_index=True)[1]
        return dataclasses.replace(part.images, reading=reading).read(firsts)[0]


def _first_split(data: ImageSet) -> Split:
    """The first split that has images: a set that is only tested on may have no training split."""
    return next(part for part in data.parts.values() if len(part))


def in_colour(data: ImageSet) -> bool:
    """Whether the first image of any class is in colour. Grayscale stored as RGB is not."""
    spans = np.ptp(first_of_each_class(data).astype(np.int16), axis=3)
    return bool(((spans > 8).mean((1, 2)) > 0.01).any())


def refuse_masks(data: ImageSet) -> None:
    """Refuse images of 0 and 1, which are masks or labels and would be black.

    Raises:
        ValueError: If the first image of every class is such a one.
    """
    images = first_of_each_class(data)
    if images.size and images.max() == 1:
        raise ValueError(
            f"{data.name}: images such as {_first_split(data).images.path(0)} hold nothing but 0 and 1, which is "
            "black: save them as 0 and 255"
        )
