"""Trees of image files with one folder per class."""

import os
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torchvision.datasets.folder import IMG_EXTENSIONS

from ..utils.files import PathLike
from .data import SPLITS, ImageSet
from .file_sets import Kind, assemble
from .groups import Groups
from .images import Reading

__all__ = ["EXTENSIONS", "load_image_folder"]

EXTENSIONS = (*IMG_EXTENSIONS, ".gif")


def load_image_folder(
    root: PathLike,
    reading: Reading,
    *,
    excluded: Collection[str] = (),
    group: str | None = None,
    tested: bool = False,
) -> ImageSet:
    """Index a tree ``{train,val,test}/<class>/<image>``; classes ``MR__knee__acl`` name modality and anatomy.

    Args:
        root: Folder of the three splits.
        reading: How files become pixels.
        excluded: Paths below the root of images to leave out.
        group: Pattern for what belongs together, searched in the paths below the root.
        tested: Whether the tree is only tested on. Then it may lack splits, and classes in them, and without any split
            it may be ``<class>/<image>``, which are test images.

    Raises:
        FileNotFoundError: If the root or a split is missing.
        ValueError: If a split or a class's folder is empty, a split lacks a class, links make one file two, or a tree
            has both layouts.
    """
    root = Path(root)
    if tested and not root.is_dir():
        raise FileNotFoundError(f"{root} does not exist: it must be a folder with a folder of images for each class")
    there = [split for split in SPLITS if (root / split).is_dir()]
    for split in SPLITS:
        if split not in there and not tested:
            raise FileNotFoundError(f"{root / split} does not exist: an image folder needs train, val and test")
    found = _Found(root, group)
    beside = sorted(found.stray(".", SPLITS)) if there else []
    if beside and tested:
        raise ValueError(
            f"{root} holds folders of images beside {there[0]}/, such as {beside[0]}/: it must be CLASS/IMAGE, or the "
            "same below train, val and test, not both"
        )
    files = found.table(there or ["."])
    files["split"] = files["split"].replace(".", "test")
    notes = [f"{root}: {found}"]
    return assemble(root.name, root, files, reading, notes=notes, excluded=excluded, linked=found.linked, tested=tested)


class _Found:
    """Walks the class folders and counts the files used and left out.

    torchvision's ``find_classes`` and ``make_dataset`` are not used: they take hidden folders for classes, count
    nothing that they leave out, and follow links in circles.
    """

    def __init__(self, root: Path, group: str | None) -> None:
        self.root = root
        self.group = Groups(group) if group else None
        self.taken = 0
        self.others: Counter[str] = Counter()
        self.hidden = 0
        self.hidden_folders: list[str] = []
        self.outside: list[str] = []
        self.linked = False

    def __str__(self) -> str:
        others = ", ".join(f"{count} {ending}" for ending, count in self.others.most_common())
        total = self.taken + self.others.total() + len(self.outside)
        parts = [f"{total} files found", f"{self.taken} taken"]
        parts += [f"left out by ending: {others}"] if others else []
        such = f"outside the class folders: {len(self.outside)}, such as {self.outside[0]}" if self.outside else ""
        parts += [such] if such else []
        such = f", such as the folder {self.hidden_folders[0]}" if self.hidden_folders else ""
        parts += [f"{self.hidden} hidden files and folders passed over{such}"] if self.hidden else []
        return ", ".join(parts)

    def stray(self, place: str, expected: Collection[str] = ()) -> list[str]:
        """Count images that lie directly in a folder. Returns its visible folders that are not expected."""
        folders = []
        for entry in os.scandir(self.root / place):
            if entry.is_dir():
                self.linked |= entry.is_symlink()
                if _is_litter(entry.name):
                    self.hidden += 1
                    self.hidden_folders.append(os.path.normpath(f"{place}/{entry.name}"))
                elif entry.name not in expected:
                    folders.append(entry.name)
            elif entry.name.lower().endswith(EXTENSIONS) and not _is_litter(entry.name):
                self.outside.append(os.path.normpath(f"{place}/{entry.name}"))
        return folders

    def table(self, places: Sequence[str]) -> Any:
        """The images of the class folders of some places as a table for :func:`~.file_sets.assemble`."""
        import pandas as pd

        rows = []
        for place in places:
            folders = sorted(self.stray(place))
            if not folders:
                raise ValueError(
                    f"{os.path.normpath(self.root / place)} is empty: it must hold a folder of images for each class"
                )
            for folder in folders:
                names = self._walk(self.root / place / folder)
                if not names:
                    raise ValueError(f"{self.root / place / folder} holds no images ({', '.join(EXTENSIONS)})")
                below, kind = os.path.normpath(f"{place}/{folder}"), _kind(folder)
                rows += [(place, below, name, kind) for name in names]
        files = pd.DataFrame(rows, columns=["split", "folder", "name", "kind"], dtype=object)
        paths = files["folder"] + "/" + files["name"]
        return files if self.group is None else files.assign(group=paths.map(self.group.of))

    def _walk(self, folder: Path) -> list[str]:
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
            self.linked = self.linked or any(os.path.islink(os.path.join(place, name)) for name in (*inner, *taken))
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


def _kind(folder: str) -> Kind:
    """A class by its folder. One name may be written in two ways in Unicode (macOS splits accents off)."""
    name = unicodedata.normalize("NFC", folder)
    parts = name.split("__")
    return name, parts[0] if len(parts) == 3 else "", parts[1] if len(parts) == 3 else ""
