"""What belongs together, such as all images of a patient, and must not be in several splits."""

import re
from collections import defaultdict

import numpy as np

from .data import ImageSet

__all__ = ["Groups", "crossing", "crossing_note", "likely_note"]

LIKELY = re.compile(r"(?<![a-z0-9])(?:patient|pat|subject|sub|case|p)[_-]?\d+(?=[_/-])", re.IGNORECASE)
"""What a patient looks like in a path."""


class Groups:
    r"""Reads groups out of paths.

    Args:
        pattern: Regular expression with one group in parentheses, such as ``(p\\d+)_``.

    Raises:
        ValueError: If it is none.
    """

    def __init__(self, pattern: str) -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"--group {pattern!r} is no regular expression: {error}") from error
        if self.pattern.groups != 1:
            raise ValueError(rf"--group must have one part in parentheses, such as '(p\d+)_', got {pattern!r}")

    def of(self, path: str) -> str:
        """The group of a path.

        Raises:
            ValueError: If the pattern does not match.
        """
        found = self.pattern.search(path)
        if not found:
            raise ValueError(f"--group {self.pattern.pattern!r} does not match {path}")
        return str(found[1])


def crossing(data: ImageSet) -> dict[str, tuple[str, ...]]:
    """The groups that are in several splits, each with its splits. Empty if the data set has no groups."""
    places: dict[str, list[str]] = defaultdict(list)
    for split, part in data.parts.items():
        for name in [] if part.groups is None else np.unique(part.groups):
            places[str(name)].append(split)
    return {name: tuple(splits) for name, splits in places.items() if len(splits) > 1}


def crossing_note(data: ImageSet) -> list[str]:
    """Say in a line whether groups are in several splits."""
    shared = crossing(data)
    if not shared:
        return []
    name, splits = next(iter(shared.items()))
    total = len(np.unique(np.concatenate([part.groups for part in data.parts.values()])))
    return [
        f"{data.name}: {len(shared)} of {total} groups are in several splits, such as {name!r} in "
        f"{' and '.join(splits)}: scores there say less about new ones; check-data lists their images"
    ]


def likely_note(data: ImageSet) -> list[str]:
    """Say in a line whether files of a set without groups look like those of patients in several splits."""
    if not data.on_disk or data.train.groups is not None:
        return []
    found = [
        {match[0] for index in range(len(part)) if (match := LIKELY.search(part.images.below_root(index)))}
        for part in data.parts.values()
    ]
    shared = sorted((found[0] & found[1]) | (found[0] & found[2]) | (found[1] & found[2]))
    if not shared:
        return []
    return [
        f"{data.name}: {shared[0]!r} is in the paths of several splits, as are {len(shared) - 1} others like it; if "
        r"these are patients, --group says so, such as --group '(p\d+)_'"
    ]
