"""Lists of images to leave out."""

import csv
import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np

from ..utils.files import PathLike
from .data import SPLITS

__all__ = ["exclude", "read_exclusions"]


def read_exclusions(path: PathLike) -> frozenset[str]:
    """Read a list of images to leave out.

    Args:
        path: File with one name per line (lines that begin with # are ignored), or a table like that of
            ``check-data`` with the column ``image`` and optionally ``exclude`` (yes or no).

    Returns:
        The names: paths below the root, or ``set/split/position`` for sets in memory.

    Raises:
        ValueError: If ``exclude`` is neither yes nor no.
    """
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:  # as file names are
        lines = file.read().splitlines()
    header = next(csv.reader(lines[:1]), [])
    if "image" not in header:
        return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    names = set()
    for number, row in enumerate(csv.DictReader(lines), start=2):
        wanted = (row.get("exclude", "yes") or "").strip().lower()
        if wanted not in ("yes", "no") or not row["image"]:
            raise ValueError(f"{path}, row {number}: needs an image and yes or no in the column exclude, got {row}")
        if wanted == "yes":
            names.add(row["image"])
    return frozenset(names)


def exclude(data: Any, names: Collection[str]) -> Any:
    """Remove the images of these names from a data set. Its ``excluded`` counts them."""
    parts, count = {}, 0
    for split in SPLITS:
        part = getattr(data, split)
        kept = np.array([i for i in range(len(part)) if data.image_name(split, i) not in names], dtype=np.int64)
        count += len(part) - len(kept)
        parts[split] = part.take(kept)
    return dataclasses.replace(data, **parts, excluded=data.excluded + count)
