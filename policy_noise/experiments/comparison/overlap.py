"""Find test images that are training images too. They make scores too good."""

import dataclasses
import functools
import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from ..data import SPLITS, ImageSet, Split, resize
from ..image_check import Look, describe, look_at
from ..processes import in_threads
from .sites import Site

__all__ = ["Overlap", "find_overlaps", "sentence"]

CHUNK = 256
TAIL = 4096
"""Bytes at the end of a file that are hashed; in compressed images they depend on all pixels before."""


class Overlap(NamedTuple):
    """What a test set shares with the training split.

    Args:
        shared: Number of images that are training images too.
        images: Number of images.
        example: One of the shared images: a path, or ``set/split/position``.
        original: The training image that it equals.
    """

    shared: int
    images: int
    example: str
    original: str

    @property
    def instance(self) -> str:
        """The example in words."""
        same = self.example == self.original
        return f"such as {self.example}" + ("" if same else f", equal to {self.original}")


def sentence(key: str, overlap: Overlap, *, example: bool = False) -> str:
    """Say in a sentence what was found, and what it means for the scores.

    Args:
        key: The measure's key, see :func:`find_overlaps`.
        overlap: What the set shares with the training split.
        example: Whether to name an image.
    """
    kind, _, name = key.partition(":")
    whose = {"val": "validation images", "clean": "test images", "site": f"images of site {name}"}
    what = whose.get(kind, f"images of target {name}")
    verb = "is a training image" if overlap.shared == 1 else "are training images"
    said = f" ({overlap.instance})" if example else ""
    return f"{overlap.shared} of the {overlap.images} {what} {verb} too{said}: scores there say less about new images."


class _Piece(NamedTuple):
    """Chosen images of a split, the measure's key, and a name for the split where images have no paths."""

    key: str
    name: str
    split: Split
    positions: np.ndarray

    def image(self, place: int) -> str:
        position = int(self.positions[place])
        return f"{self.name}/{position}" if self.split.in_memory else self.split.images.path(position)

    @property
    def images(self) -> list[str]:
        return [self.image(place) for place in range(len(self.positions))]


_Stage = tuple[Callable[[_Piece], np.ndarray], str]
"""A function that gives a key of each image, (N,) uint64, and its name. Equal images have equal keys, 0 is left out."""


def find_overlaps(data: ImageSet, sites: Sequence[Site], targets: Sequence[ImageSet], size: int) -> dict[str, Overlap]:
    """Look for training images among all other images that a comparison uses.

    Files are compared with files in three steps: by size; if the sizes agree, by their last 4 KiB; if these agree too,
    by decoded pixels. So few files are read whole. A copy in another format is not found. Everything else is compared
    by its pixels at one size, and files are decoded once for that. Images of a single value are not counted. Each step
    takes 8 bytes of memory per image.

    Args:
        data: The training set, with its validation and test images.
        sites: Sets that are only tested on.
        targets: Sets for few-shot transfer. All their splits count.
        size: Side in pixels at which images in memory are compared.

    Returns:
        What was found, by the measure's key: ``"val"``, ``"clean"``, ``"site:NAME"`` or ``"few-shot:NAME"``.
    """
    train = _whole("train", data, "train")
    others = [_whole("val", data, "val"), _whole("clean", data, "test")]
    for site in sites:
        pool = site.images.images
        for number, (split, part) in enumerate(zip(SPLITS, pool.parts, strict=True)):
            chosen = pool.index[pool.part == number]
            others.append(_Piece(f"site:{site.name}", f"{site.name}/{split}", part, chosen))
    others += [_whole(f"few-shot:{target.name}", target, split) for target in targets for split in SPLITS]
    alike = [piece for piece in others if not (piece.split.in_memory or train.split.in_memory)]
    unlike = [piece for piece in others if piece.split.in_memory or train.split.in_memory]
    what = "looking for training images"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cannot be read is named when it is used
        steps = [(_sizes, ""), (_tails, f"{what} among files"), (_file_pixels, "comparing images with training images")]
        found = _compare(train, alike, steps)
        found |= _compare(train, unlike, [(functools.partial(_pixels, size), what)])
    return {key: found[key] for key in dict.fromkeys(piece.key for piece in others) if key in found}


def _whole(key: str, data: ImageSet, split: str) -> _Piece:
    part = data.parts[split]
    return _Piece(key, f"{data.name}/{split}", part, np.arange(len(part)))


def _compare(train: _Piece, others: Sequence[_Piece], stages: Iterable[_Stage]) -> dict[str, Overlap]:
    """Keep what has an equal on the other side, stage by stage."""
    if not others:
        return {}
    totals = Counter[str]()
    for piece in others:
        totals[piece.key] += len(piece.positions)
    left = [train, *others]
    keys: list[np.ndarray] = []
    for work, what in stages:
        keys = [_by_chunk(piece, work, what) for piece in left]
        shared = np.intersect1d(keys[0], np.concatenate(keys[1:]))
        kept = [np.isin(part, shared[shared != 0]) for part in keys]
        left = [piece._replace(positions=piece.positions[mine]) for piece, mine in zip(left, kept, strict=True)]
        keys = [part[mine] for part, mine in zip(keys, kept, strict=True)]
    found: dict[str, Overlap] = {}
    for piece, part in zip(left[1:], keys[1:], strict=True):
        if len(part):
            original = left[0].image(int(np.flatnonzero(keys[0] == part[0])[0]))
            before = found.get(piece.key, Overlap(0, totals[piece.key], piece.image(0), original))
            found[piece.key] = before._replace(shared=before.shared + len(part))
    return found


def _by_chunk(piece: _Piece, work: Callable[[_Piece], np.ndarray], what: str) -> np.ndarray:
    starts = range(0, len(piece.positions), CHUNK)
    chunks = [piece._replace(positions=piece.positions[start : start + CHUNK]) for start in starts]
    keys = in_threads(work, chunks, desc=what, unit=f" x {CHUNK} images")
    return np.concatenate([np.zeros(0, np.uint64), *keys])


def _sizes(chunk: _Piece) -> np.ndarray:
    return chunk.split.images.sizes[chunk.positions].astype(np.uint64)


def _tails(chunk: _Piece) -> np.ndarray:
    return np.array([_tail(path) for path in chunk.images], np.uint64)


def _tail(path: str) -> int:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            return _number(hashlib.sha256(size.to_bytes(8, "big") + file.read()).hexdigest())
    except OSError:  # as of an image that cannot be read
        return 0


def _file_pixels(chunk: _Piece) -> np.ndarray:
    return _keys(look_at(chunk.images))


def _pixels(size: int, chunk: _Piece) -> np.ndarray:
    split = chunk.split
    if not split.in_memory:
        reading = dataclasses.replace(split.images.reading, size=size)
        split = dataclasses.replace(split, images=dataclasses.replace(split.images, reading=reading))
    images, kept = split.read(chunk.positions)
    keys = np.zeros(len(chunk.positions), np.uint64)
    keys[np.isin(chunk.positions, kept)] = _keys([describe(image) for image in resize(images, size)])
    return keys


def _keys(looks: Sequence[Look]) -> np.ndarray:
    return np.array([0 if look.constant or look.error else _number(look.pixels) for look in looks], np.uint64)


def _number(digest: str) -> int:
    return int(digest[:16], 16)
