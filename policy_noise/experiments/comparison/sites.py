"""Sites: other data of the same classes, used only for testing."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data import ImageSet, Split, fingerprint_of, require_each
from ..images import Reading
from ..sources import NAMED, open_tested
from ..tables import plain_name

__all__ = ["Pool", "Site", "among", "open_site", "site_of"]

FORMS = f"NAME=SOURCE with SOURCE {NAMED}; also a tree CLASS/IMAGE without splits"


@dataclass(frozen=True)
class Pool:
    """Chosen images of several splits.

    Args:
        parts: The splits.
        part: The number of each image's split, (N,).
        index: The position of each image in its split, (N,).
    """

    parts: tuple[Split, ...]
    part: np.ndarray
    index: np.ndarray

    @property
    def reading(self) -> Reading | None:
        """How files become pixels; None for images in memory."""
        return self.parts[0].reading

    def path(self, index: int) -> str:
        """The file's path."""
        return self.parts[self.part[index]].images.path(int(self.index[index]))

    def read(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The readable images at these ascending positions, and their positions."""
        images, kept = [], []
        for number in np.unique(self.part[positions]):
            mine = positions[self.part[positions] == number]
            found, readable = self.parts[number].read(self.index[mine])
            images.append(found)
            kept.append(mine[np.isin(self.index[mine], readable)])
        return np.concatenate(images), np.concatenate(kept)

    def content(self) -> Iterator[bytes | memoryview]:
        """The bytes that a fingerprint hashes: all of the splits, and the selection."""
        for part in self.parts:
            yield from part.content()
        for array in (self.part, self.index):
            yield np.ascontiguousarray(array).data.cast("B")


@dataclass(frozen=True)
class Site:
    """Data of one site.

    Args:
        name: The site's name in tables.
        images: The images of the shared classes, labelled 0 to K - 1 in the order of ``classes``.
        classes: The label of each shared class in the training set, (K,).
        unknown: Names of the site's classes that the training set does not have. Their images are left out.
        absent: Names of the training set's classes that the site does not have. They are never predicted here.
        left_out: Number of images of the unknown classes.
        notes: Messages for the user.
    """

    name: str
    images: Split
    classes: tuple[int, ...]
    unknown: tuple[str, ...]
    absent: tuple[str, ...]
    left_out: int
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """What is tested on, and what is left out, in words."""
        said = [f"site {self.name}: {len(self.images)} images of {len(self.classes)} shared classes, only tested on"]
        if self.unknown:
            said.append(f"  {self.left_out} images are left out, of classes not trained on: {names_of(self.unknown)}")
        if self.absent:
            said.append(f"  no images of {names_of(self.absent)}: predictions here are made among the shared classes")
        return said

    def describe(self, class_names: Sequence[str]) -> dict[str, Any]:
        """The site's entry in the record, with a hash of its images."""
        shared = [class_names[place] for place in self.classes]
        return {
            "name": self.name,
            "images": len(self.images),
            "classes": shared,
            "unknown": list(self.unknown),
            "absent": list(self.absent),
            "left_out": self.left_out,
            "fingerprint": fingerprint_of(shared, [self.images]),
        }


def names_of(values: Sequence[Any]) -> str:
    """Names as text, the first twelve of many."""
    shown = ", ".join(map(str, values[:12]))
    return shown if len(values) <= 12 else f"{shown} and {len(values) - 12} more"


def open_site(text: str, arguments: Any, data: Any, size: int) -> Site:
    """Open a site and match its classes by name with those of the training set.

    Case and the separators between words do not matter. If neither data set names its classes they are matched by
    number, and a note says so.

    Args:
        text: The option's value, see :data:`FORMS`.
        arguments: The parsed command line.
        data: The training set.
        size: Side in pixels to which images are resized.

    Raises:
        ValueError: If the text names no source, two classes of one data set have the same name, or fewer than two
            classes are shared.
        FileNotFoundError: If the source is missing.
    """
    name, separator, source = text.partition("=")
    if not separator or not name or not source:
        raise ValueError(f"--site must be {FORMS}, got {text!r}")
    return site_of(name, source, arguments, data, size)


def site_of(name: str, source: str, arguments: Any, data: Any, size: int) -> Site:
    """Open the site of a name and a source, see :func:`open_site`. Of ``data`` only its name and classes are used."""
    try:
        found = open_tested(source, arguments, size, data.in_chans)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"site {name}: {error}") from error
    class_names, notes = found.class_names, found.notes
    if found.multi_label != data.multi_label:
        raise ValueError(f"site {name}: it and {data.name} must both have one label per image, or both several")
    shared, unknown, absent = _match(name, class_names, data.class_names)
    if len(shared) < 2:
        raise ValueError(
            f"site {name} must share at least two classes with {data.name}, got {len(shared)}: it has "
            f"{list(class_names)[:10]}, {data.name} has {list(data.class_names)[:10]}"
        )
    if all(re.fullmatch(r"class \d+", class_names[own]) for own in shared):
        notes = (*notes, f"site {name}: its classes have no names and are matched by number")
    images = _pool(found, list(shared))
    require_each(images, [class_names[own] for own in shared], f"site {name}")
    left_out = sum(map(len, found.parts.values())) - len(images)
    return Site(name, images, tuple(shared.values()), unknown, absent, left_out, notes)


def among(probabilities: np.ndarray, classes: Sequence[int], *, renormalise: bool) -> np.ndarray:
    """Restrict probabilities, (N, K), to the classes that a site has."""
    chosen = probabilities[:, list(classes)].astype(np.float64)
    if not renormalise:
        return chosen
    chosen = chosen + np.finfo(np.float32).tiny  # avoids 0 / 0 where all of them are 0
    return chosen / chosen.sum(1, keepdims=True)


def _plain(name: str) -> str:
    """A class name in a form for comparison; ``MR__knee__acl`` equals ``MR/knee/acl``."""
    return plain_name(name.replace("__", "/"))


def _match(
    site: str, own: Sequence[str], trained: Sequence[str]
) -> tuple[dict[int, int], tuple[str, ...], tuple[str, ...]]:
    """Map the site's labels to those of the training set, and name the classes that only one of them has."""
    for whose, names in ((f"site {site}", own), ("the training set", trained)):
        if len({_plain(name) for name in names}) < len(names):
            raise ValueError(f"{whose} has class names that differ only in case or separators: {list(names)[:20]}")
    places = {_plain(name): place for place, name in enumerate(trained)}
    shared = {label: places[_plain(name)] for label, name in enumerate(own) if _plain(name) in places}
    shared = dict(sorted(shared.items(), key=lambda pair: pair[1]))
    unknown = tuple(name for label, name in enumerate(own) if label not in shared)
    absent = tuple(name for place, name in enumerate(trained) if place not in shared.values())
    return shared, unknown, absent


def _pool(data: ImageSet, shared: list[int]) -> Split:
    """The images of the shared classes."""
    parts = tuple(data.parts.values())
    if data.multi_label:
        labels = [part.labels[:, shared] for part in parts]
        kept = [np.arange(len(part)) for part in parts]
    else:
        new = np.full(data.num_classes, -1)
        new[shared] = np.arange(len(shared))
        labels = [new[part.labels] for part in parts]
        kept = [np.flatnonzero(part >= 0) for part in labels]
    numbers = np.concatenate([np.full(len(index), number) for number, index in enumerate(kept)])
    groups = [part.groups[index] for part, index in zip(parts, kept, strict=True) if part.groups is not None]
    return Split(
        Pool(parts, numbers, np.concatenate(kept)),
        np.concatenate([part[index] for part, index in zip(labels, kept, strict=True)]),
        np.concatenate(groups) if len(groups) == len(parts) else None,
    )
