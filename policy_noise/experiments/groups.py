"""What belongs together, such as all images of a patient, and must not be in several splits."""

import re
from collections import defaultdict

import numpy as np

from .data import ImageSet

__all__ = ["Groups", "crossing", "crossing_note"]


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
