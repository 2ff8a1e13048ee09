"""Find test images that are training images too. They make scores too good."""

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..data import SPLITS, resize
from ..file_sets import FileSplit
from ..image_check import Look, describe, look_at
from ..processes import in_threads
from .sites import Pool, Site

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
    """Chosen images of a split; ``name`` stands for the split where images have no paths."""

    name: str
    split: Any
    positions: np.ndarray

    def image(self, place: int) -> str:
        position = int(self.positions[place])
        return self.split.path(position) if isinstance(self.split, FileSplit) else f"{self.name}/{position}"


_Stage = Callable[[_Piece], np.ndarray]
"""A key of each image, (N,) uint64; equal images have equal keys, and 0 is left out."""


def find_overlaps(data: Any, sites: Sequence[Site], targets: Sequence[Any], size: int) -> dict[str, Overlap]:
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
    sets = {"val": [_whole(data, "val")], "clean": [_whole(data, "test")]}
    sets |= {f"site:{site.name}": _of_pool(site.name, site.images) for site in sites}
    sets |= {f"few-shot:{target.name}": [_whole(target, split) for split in SPLITS] for target in targets}
    train = _whole(data, "train")
    files = [key for key, pieces in sets.items() if isinstance(pieces[0].split, FileSplit)]
    alike = {key: sets[key] for key in files if isinstance(data.train, FileSplit)}
    others = {key: pieces for key, pieces in sets.items() if key not in alike}
    found: dict[str, Overlap] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what cannot be read is named when it is used
        found |= _compare(train, alike, (_sizes, _tails, _file_pixels))
        found |= _compare(train, others, (lambda piece: _pixels(piece, size),))
    return {key: found[key] for key in sets if key in found}


def _whole(data: Any, split: str) -> _Piece:
    part = data.parts[split]
    return _Piece(f"{data.name}/{split}", part, np.arange(len(part)))


def _of_pool(name: str, pool: Pool) -> list[_Piece]:
    """A tree without splits is one part, and its images have paths."""
    names = [f"{name}/{split}" for split in SPLITS] if len(pool.parts) > 1 else [name]
    return [
        _Piece(where, part, pool.index[pool.part == number])
        for number, (where, part) in enumerate(zip(names, pool.parts, strict=True))
    ]


def _compare(train: _Piece, sets: Mapping[str, list[_Piece]], stages: Iterable[_Stage]) -> dict[str, Overlap]:
    """Keep what has an equal on the other side, stage by stage."""
    totals = {key: sum(len(piece.positions) for piece in pieces) for key, pieces in sets.items()}
    left = [(key, piece) for key, pieces in sets.items() for piece in pieces]
    own, keys = np.zeros(0, np.uint64), []
    for stage in stages:
        if not left:
            return {}
        keys = [stage(piece) for _, piece in left]
        own = stage(train)
        shared = np.intersect1d(own, np.concatenate(keys))
        shared = shared[shared != 0]
        chosen = np.isin(own, shared)
        train, own = train._replace(positions=train.positions[chosen]), own[chosen]
        kept = [np.isin(part, shared) for part in keys]
        keys = [part[mine] for part, mine in zip(keys, kept, strict=True) if mine.any()]
        left = [
            (key, piece._replace(positions=piece.positions[mine]))
            for (key, piece), mine in zip(left, kept, strict=True)
            if mine.any()
        ]
    found: dict[str, Overlap] = {}
    for (key, piece), part in zip(left, keys, strict=True):
        original = train.image(int(np.flatnonzero(own == part[0])[0]))
        before = found.get(key, Overlap(0, totals[key], piece.image(0), original))
        found[key] = before._replace(shared=before.shared + len(part))
    return found


def _chunks(piece: _Piece) -> list[_Piece]:
    starts = range(0, len(piece.positions), CHUNK)
    return [piece._replace(positions=piece.positions[start : start + CHUNK]) for start in starts]


def _by_chunk(piece: _Piece, work: _Stage, what: str) -> np.ndarray:
    keys = in_threads(work, _chunks(piece), desc=what, unit=f" x {CHUNK} images")
    return np.concatenate([np.zeros(0, np.uint64), *keys])


def _sizes(piece: _Piece) -> np.ndarray:
    return piece.split.sizes[piece.positions].astype(np.uint64)


def _tails(piece: _Piece) -> np.ndarray:
    def work(chunk: _Piece) -> np.ndarray:
        return np.array([_tail(chunk.image(place)) for place in range(len(chunk.positions))], np.uint64)

    return _by_chunk(piece, work, "looking for training images among files")


def _tail(path: str) -> int:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL))
            return _number(hashlib.sha256(size.to_bytes(8, "big") + file.read()).hexdigest())
    except OSError:  # as of an image that cannot be read
        return 0


def _file_pixels(piece: _Piece) -> np.ndarray:
    def work(chunk: _Piece) -> np.ndarray:
        return _keys(look_at([chunk.image(place) for place in range(len(chunk.positions))]))

    return _by_chunk(piece, work, "comparing images with training images")


def _pixels(piece: _Piece, size: int) -> np.ndarray:
    split = piece.split
    if isinstance(split, FileSplit):
        split = dataclasses.replace(split, reading=dataclasses.replace(split.reading, size=size))

    def work(chunk: _Piece) -> np.ndarray:
        images, kept = split.read(chunk.positions)
        keys = np.zeros(len(chunk.positions), np.uint64)
        keys[np.isin(chunk.positions, kept)] = _keys([describe(image) for image in resize(images, size)])
        return keys

    return _by_chunk(piece, work, "looking for training images")


def _keys(looks: Sequence[Look]) -> np.ndarray:
    return np.array([0 if look.constant or look.error else _number(look.pixels) for look in looks], np.uint64)


def _number(digest: str) -> int:
    return int(digest[:16], 16)
