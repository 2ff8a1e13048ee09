"""Trees of image files with one folder per class."""

import os
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ..utils.files import PathLike
from .data import SPLITS
from .file_sets import FileSet, FileSplit, Index, assemble
from .images import Window

__all__ = ["EXTENSIONS", "load_image_folder", "load_test_folder"]

# torchvision's, and GIF
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")


def load_image_folder(
    root: PathLike,
    *,
    size: int,
    in_chans: int = 1,
    skip_bad_files: bool = False,
    window: Window = None,
    excluded: Collection[str] = (),
) -> tuple[FileSet, list[str]]:
    """Index a tree ``{train,val,test}/<class>/<image>``; classes ``MR__knee__acl`` name modality and anatomy.

    Args:
        root: Folder of the three splits.
        size: Side in pixels to which images are resized when read.
        in_chans: 1 for grey, or 3 for RGB.
        skip_bad_files: Leave out files that are missing or corrupt.
        window: For images of more than 8 bits.
        excluded: Paths below the root of images to leave out.

    Raises:
        FileNotFoundError: If the root or a split is missing.
        ValueError: If a split or a class's folder is empty, or a split lacks a class.
    """
    root = Path(root)
    builders = {split: Index() for split in SPLITS}
    found = _Found()
    for split in SPLITS:
        if not (root / split).is_dir():
            raise FileNotFoundError(f"{root / split} does not exist: an image folder needs train, val and test")
        folders = sorted(entry.name for entry in os.scandir(root / split) if entry.is_dir() and not found.hides(entry))
        for folder in folders:
            files = found.walk(root / split / folder)
            if not files:
                raise ValueError(f"{root / split / folder} holds no images ({', '.join(EXTENSIONS)})")
            builders[split].extend((f"{split}/{folder}", name) for name in files)
        if not folders:
            raise ValueError(f"{root / split} is empty: it must hold a folder of images for each class")
    own: dict[str, Any] = {"size": size, "in_chans": in_chans, "skip_bad_files": skip_bad_files, "window": window}
    return assemble(root.name, root, builders, _kind, **own, notes=[f"{root}: {found}"], excluded=excluded)


def load_test_folder(
    root: PathLike, *, size: int, in_chans: int = 1, skip_bad_files: bool = False, window: Window = None
) -> tuple[FileSplit, tuple[str, ...], list[str]]:
    """Index a tree that is only tested on: ``<class>/<image>``, or the same below any of train, val and test.

    Args:
        root: The folder.
        size: Side in pixels to which images are resized when read.
        in_chans: 1 for grey, or 3 for RGB.
        skip_bad_files: Leave out files that are corrupt.
        window: For images of more than 8 bits.

    Returns:
        All images as one split, the classes' names, and a note on what was found.

    Raises:
        FileNotFoundError: If the root is missing.
        ValueError: If there are no folders of images, or one is empty.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist: it must be a folder with a folder of images for each class")
    found, index = _Found(), Index()
    below = [split for split in SPLITS if (root / split).is_dir()]
    for place in below or ["."]:
        folders = sorted(e.name for e in os.scandir(root / place) if e.is_dir() and not found.hides(e))
        for folder in folders:
            files = found.walk(root / place / folder)
            if not files:
                raise ValueError(f"{root / place / folder} holds no images ({', '.join(EXTENSIONS)})")
            index.extend((os.path.normpath(f"{place}/{folder}"), name) for name in files)
    if not len(index):
        raise ValueError(f"{root} must hold a folder of images for each class, got none")
    names = tuple(sorted({os.path.basename(folder) for folder in index.folders}))
    labels = np.array([names.index(os.path.basename(folder)) for folder in index.folders], dtype=np.int64)
    own: dict[str, Any] = {"size": size, "in_chans": in_chans, "skip_bad_files": skip_bad_files, "window": window}
    return index.split(root, labels, **own), names, [f"{root}: {found}"]


class _Found:
    """Walks the class folders and counts the files used and left out."""

    def __init__(self) -> None:
        self.taken = 0
        self.others: Counter[str] = Counter()
        self.hidden = 0

    def __str__(self) -> str:
        others = ", ".join(f"{count} {ending}" for ending, count in self.others.most_common())
        parts = [f"{self.taken + self.others.total()} files found", f"{self.taken} taken"]
        parts += [f"left out by ending: {others}"] if others else []
        parts += [f"{self.hidden} hidden files and folders passed over"] if self.hidden else []
        return ", ".join(parts)

    def hides(self, entry: "os.DirEntry[str]") -> bool:
        """Whether an entry of a split's folder is a hidden or system entry; if so, it is counted."""
        litter = _is_litter(entry.name)
        self.hidden += litter
        return litter

    def walk(self, folder: Path) -> list[str]:
        """Images in a class's folder and below, relative to it, sorted; links to folders are followed once."""
        found, visited = [], set()
        for place, folders, names in os.walk(folder, followlinks=True):
            real = os.path.realpath(place)
            if real in visited:
                folders.clear()
                continue
            visited.add(real)
            shown = [name for name in names if not _is_litter(name)]
            inner = [name for name in folders if not _is_litter(name)]
            self.hidden += len(names) - len(shown) + len(folders) - len(inner)
            folders[:] = inner
            taken = [name for name in shown if name.lower().endswith(EXTENSIONS)]
            self.others.update(
                os.path.splitext(name)[1].lower() or "without one"
                for name in shown
                if not name.lower().endswith(EXTENSIONS)
            )
            found += [os.path.relpath(os.path.join(place, name), folder) for name in taken]
        self.taken += len(found)
        return sorted(found)


def _is_litter(name: str) -> bool:
    """Whether a name is hidden, such as ``._name.png`` or ``.ipynb_checkpoints``, or added by the operating system."""
    return name.startswith(".") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


def _kind(folder: str) -> tuple[str, str, str]:
    name = folder.rpartition("/")[2]
    parts = name.split("__")
    return name, parts[0] if len(parts) == 3 else "", parts[1] if len(parts) == 3 else ""
