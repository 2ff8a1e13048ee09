"""Image files on disk as one compact index: RadImageNet in its own layout, and ImageFolder trees."""

import csv
import os
import warnings
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .data import SPLITS
from .images import NeedsWindow, Window, read_image

__all__ = ["FileSet", "FileSplit", "load_image_folder", "load_radimagenet"]

PathLike = str | os.PathLike[str]

ACCESS = (
    "RadImageNet is given out on request and under a signed agreement: ask for it at https://www.radimagenet.com, then "
    "unpack it so that the folder holds radiology_ai/ and RadiologyAI_train.csv, RadiologyAI_val.csv and "
    "RadiologyAI_test.csv. This code never downloads it."
)
EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".ppm",
    ".bmp",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
    ".gif",
)  # torchvision's, and GIF


@dataclass(frozen=True)
class FileSplit:
    """Images on disk: one buffer of names and two numbers a file, no Python object an image.

    Args:
        root: Folder that the names start from.
        folders: Distinct folders, relative to the root.
        folder: Index into ``folders`` of each file, (N,).
        names: All file names, one after the other, UTF-8.
        ends: Where each name ends in ``names``, (N,).
        labels: (N,) int64.
        size: Side in pixels to which images are resized.
        in_chans: 1 or 3 channels.
        skip_corrupt: Leave out files that cannot be read, each named in a warning, instead of raising.
        window: For images of more than 8 bits, see :func:`~policy_noise.experiments.images.read_image`.
    """

    root: str
    folders: tuple[str, ...]
    folder: np.ndarray
    names: np.ndarray
    ends: np.ndarray
    labels: np.ndarray
    size: int
    in_chans: int
    skip_corrupt: bool = False
    window: Window = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Memory of the index in bytes."""
        return sum(part.nbytes for part in (self.folder, self.names, self.ends, self.labels))

    def path(self, index: int) -> str:
        """The file's path."""
        start = self.ends[index - 1] if index else 0
        name = self.names[start : self.ends[index]].tobytes()
        return os.path.join(self.root, self.folders[self.folder[index]], os.fsdecode(name))

    def content(self) -> Iterator[bytes | memoryview]:
        """What :func:`~policy_noise.experiments.data.fingerprint` hashes: each file's path, size in bytes and label."""
        sizes = np.zeros(len(self), dtype=np.int64)
        for folder, positions in self._by_folder():
            place = os.path.join(self.root, self.folders[folder])
            with os.scandir(place) as entries:
                found = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
            for index in positions:
                path = self.path(int(index))
                size = found.get(os.path.basename(path)) if os.path.dirname(path) == place else None
                sizes[index] = os.path.getsize(path) if size is None else size
        yield "\0".join(self.folders).encode(errors="surrogateescape")
        for part in (self.folder.astype(np.int64), self.names, self.ends, self.labels, sizes):
            yield memoryview(np.ascontiguousarray(part)).cast("B")

    def _by_folder(self) -> Iterator[tuple[int, np.ndarray]]:
        """Each folder's number and its files' positions: one listing a folder serves all of them."""
        order = np.argsort(self.folder, kind="stable")
        bounds = np.searchsorted(self.folder[order], np.arange(len(self.folders) + 1))
        for folder in range(len(self.folders)):
            yield folder, order[bounds[folder] : bounds[folder + 1]]

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode images.

        Returns:
            uint8 images (B, size, size) or (B, size, size, 3), and the positions of those that could be read.

        Raises:
            ValueError: If a file cannot be read and ``skip_corrupt`` is off; it is named.
        """
        from PIL import Image

        images, kept = [], []
        for index in indices:
            path = self.path(int(index))
            try:
                image = Image.fromarray(read_image(path, self.in_chans, self.window))
                images.append(np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR)))
                kept.append(int(index))
            except NeedsWindow:
                raise
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                if not self.skip_corrupt:
                    raise ValueError(
                        f"{path} cannot be read as an image ({error}); --skip-bad-files leaves such files out"
                    ) from error
                warnings.warn(f"{path} is left out: it cannot be read as an image ({error})", stacklevel=2)
        shape = (0, self.size, self.size) + ((3,) if self.in_chans == 3 else ())
        return (np.stack(images) if images else np.zeros(shape, np.uint8)), np.array(kept, dtype=np.int64)


@dataclass(frozen=True)
class FileSet:
    """A data set on disk; the same attributes as :class:`policy_noise.experiments.data.ImageSet`."""

    name: str
    train: FileSplit
    val: FileSplit
    test: FileSplit
    class_names: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    multi_label: bool = False

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def in_chans(self) -> int:
        """Channels as which the images are read."""
        return self.train.in_chans


def load_radimagenet(
    root: PathLike, *, size: int, in_chans: int = 1, skip_bad_files: bool = False, window: Window = None
) -> tuple[FileSet, list[str]]:
    """Index RadImageNet in its own layout: ``radiology_ai/...`` and ``RadiologyAI_{train,val,test}.csv``.

    A class is a folder, ``modality/anatomy/label``: labels of the same name in two anatomies stay two classes.

    Args:
        root: Folder that holds both.
        size: Side in pixels to which images are resized when read.
        in_chans: 1, or 3 for grey images repeated.
        skip_bad_files: Leave out files that are missing or corrupt.
        window: For images of more than 8 bits.

    Returns:
        The set, and the files that the tables name and the disk lacks.

    Raises:
        FileNotFoundError: If something is missing; the message says how to ask for access.
        ValueError: If a table has other columns, or a class is absent from a split.
    """
    root = Path(root)
    tables = {split: root / f"RadiologyAI_{split}.csv" for split in SPLITS}
    for path in (root, root / "radiology_ai", *tables.values()):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist. {ACCESS}")
    builders = {split: _Index() for split in SPLITS}
    for split, table in tables.items():
        builders[split].extend(_rows(table))
    return _assemble("radimagenet", root, builders, size, in_chans, skip_bad_files, window, _radimagenet_kind)


def load_image_folder(
    root: PathLike, *, size: int, in_chans: int = 1, skip_bad_files: bool = False, window: Window = None
) -> tuple[FileSet, list[str]]:
    """Index a tree ``{train,val,test}/<class>/<image>``; classes ``MR__knee__acl`` name modality and anatomy.

    Args:
        root: Folder of the three splits.
        size: See :func:`load_radimagenet`.
        in_chans: See :func:`load_radimagenet`.
        skip_bad_files: See :func:`load_radimagenet`.
        window: See :func:`load_radimagenet`.

    Raises:
        FileNotFoundError: If the root or a split is missing.
        ValueError: If a split or a class's folder is empty, or a split lacks a class.
    """
    root = Path(root)
    builders = {split: _Index() for split in SPLITS}
    for split in SPLITS:
        if not (root / split).is_dir():
            raise FileNotFoundError(f"{root / split} does not exist: an image folder needs train, val and test")
        folders = sorted(e.name for e in os.scandir(root / split) if e.is_dir() and not _is_litter(e.name))
        for folder in folders:
            files = _walk(root / split / folder)
            if not files:
                raise ValueError(f"{root / split / folder} holds no images ({', '.join(EXTENSIONS)})")
            builders[split].extend((f"{split}/{folder}", name) for name in files)
        if not folders:
            raise ValueError(f"{root / split} is empty: it must hold a folder of images for each class")
    return _assemble(root.name, root, builders, size, in_chans, skip_bad_files, window, _folder_kind)


def _is_litter(name: str) -> bool:
    """Hidden files and folders, such as ``._name.png`` and ``.ipynb_checkpoints``, and what macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"


def _walk(folder: Path) -> list[str]:
    """Images in a class's folder and below, relative to it, sorted; links to folders are followed once."""
    found, visited = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not _is_litter(name)]
        taken = [name for name in names if name.lower().endswith(EXTENSIONS) and not _is_litter(name)]
        found += [os.path.relpath(os.path.join(place, name), folder) for name in taken]
    return sorted(found)


class _Index:
    """Grows the compact arrays file by file."""

    def __init__(self) -> None:
        self.folders: dict[str, int] = {}
        self.folder = array("I")
        self.names = bytearray()
        self.ends = array("Q")

    def __len__(self) -> int:
        return len(self.ends)

    def extend(self, files: Iterable[tuple[str, str]]) -> None:
        for folder, name in files:
            self.folder.append(self.folders.setdefault(folder, len(self.folders)))
            self.names += os.fsencode(name)
            self.ends.append(len(self.names))


def _rows(table: Path) -> Iterator[tuple[str, str]]:
    try:
        yield from _decoded_rows(table)
    except UnicodeDecodeError as error:
        raise ValueError(f"{table} must be UTF-8, and is not ({error}): save it as UTF-8") from error
    except csv.Error as error:
        raise ValueError(f"{table} cannot be read as a table ({error})") from error


def _decoded_rows(table: Path) -> Iterator[tuple[str, str]]:
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        header = [column.strip() for column in next(rows, [])]
        if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
            raise ValueError(f"{table} must be separated by commas, got the first line {header[0]!r}")
        if "filename" not in header or "label" not in header:
            raise ValueError(f"{table} must have the columns filename and label, got {header}")
        column = header.index("filename")
        empty = True
        for number, row in enumerate(rows, start=2):
            if not any(cell.strip() for cell in row):
                continue
            if len(row) != len(header):
                raise ValueError(f"{table}, line {number}: {len(header)} columns expected, got {len(row)}")
            folder, _, name = row[column].strip().replace("\\", "/").rpartition("/")
            if not folder or not name or folder == "radiology_ai":
                raise ValueError(f"{table}, line {number}: filename must be a path below the root, got {row[column]!r}")
            empty = False
            yield folder, name
        if empty:
            raise ValueError(f"{table} names no files")


def _radimagenet_kind(folder: str) -> tuple[str, str, str]:
    """Class name, modality and anatomy of ``radiology_ai/MR/knee/acl``; ultrasound has no folder for the anatomy."""
    parts = folder.split("/")
    parts = parts[parts.index("radiology_ai") + 1 :] if "radiology_ai" in parts else parts
    if len(parts) >= 3:
        return "/".join(parts), parts[0], {"abd": "abdomen"}.get(parts[1], parts[1])  # CT and MR say abd
    modality, label = parts[0], parts[-1]
    return "/".join(parts), modality, "thyroid" if "thyroid" in label.lower() else "abdomen"


def _folder_kind(folder: str) -> tuple[str, str, str]:
    name = folder.rpartition("/")[2]
    parts = name.split("__")
    return name, parts[0] if len(parts) == 3 else "", parts[1] if len(parts) == 3 else ""


def _assemble(
    name: str,
    root: Path,
    builders: dict[str, _Index],
    size: int,
    in_chans: int,
    skip: bool,
    window: Window,
    kind: Callable[[str], tuple[str, str, str]],
) -> tuple[FileSet, list[str]]:
    kinds = {folder: kind(folder) for builder in builders.values() for folder in builder.folders}
    classes = sorted(set(kinds.values()))
    number = {entry: label for label, entry in enumerate(classes)}
    splits, missing = {}, []
    for split, builder in builders.items():
        folders = tuple(builder.folders)
        label_of = np.array([number[kinds[folder]] for folder in folders], dtype=np.int64)
        folder = np.frombuffer(builder.folder, dtype=np.uint32).astype(np.uint16 if len(folders) < 65536 else np.uint32)
        whole = FileSplit(
            root=str(root),
            folders=folders,
            folder=folder,
            names=np.frombuffer(bytes(builder.names), dtype=np.uint8),
            ends=np.frombuffer(builder.ends, dtype=np.uint64).astype(np.int64),
            labels=label_of[folder],
            size=size,
            in_chans=in_chans,
            skip_corrupt=skip,
            window=window,
        )
        absent = _missing(whole)
        missing += [whole.path(index) for index in absent]
        splits[split] = _without(whole, absent) if len(absent) else whole
    _refuse_leaks(splits)
    if missing and not skip:
        raise FileNotFoundError(
            f"{len(missing)} files are missing below {root}, such as {missing[:5]}; --skip-bad-files leaves them out"
        )
    for split, files in splits.items():
        counts = np.bincount(files.labels, minlength=len(classes))
        absent_classes = [classes[label][0] for label in np.flatnonzero(counts == 0)]
        if absent_classes:
            raise ValueError(f"{root}: the {split} split has no image of {absent_classes[:10]}")
    groups = {"modality": tuple(entry[1] for entry in classes), "anatomy": tuple(entry[2] for entry in classes)}
    groups = {key: values for key, values in groups.items() if any(values)}
    names = tuple(entry[0] for entry in classes)
    return FileSet(name, splits["train"], splits["val"], splits["test"], names, groups), missing


def _refuse_leaks(splits: dict[str, FileSplit]) -> None:
    """No path may stand in two splits, nor twice in one. 8 bytes a file are held, not its name."""
    hashes = {
        split: np.array([hash(os.path.normpath(files.path(i))) for i in range(len(files))], np.int64)
        for split, files in splits.items()
    }
    values, counts = np.unique(np.concatenate(list(hashes.values())), return_counts=True)
    again = values[counts > 1]
    seen: dict[str, str] = {}
    for split, files in splits.items():
        for index in np.flatnonzero(np.isin(hashes[split], again)):
            path = os.path.normpath(files.path(int(index)))
            if path in seen:
                where = f"twice in {split}" if seen[path] == split else f"in {seen[path]} and in {split}"
                raise ValueError(f"{path} stands {where}: an image must belong to one split, once")
            seen[path] = split


def _missing(files: FileSplit) -> np.ndarray:
    """Positions of files that are not there: one listing a folder, not one call a file."""
    absent = []
    for folder, positions in files._by_folder():
        path = os.path.join(files.root, files.folders[folder])
        present = set(os.listdir(path)) if os.path.isdir(path) else set()
        for index in positions:
            file = files.path(int(index))
            listed = os.path.dirname(file) == path  # else it lies in a folder of the class's folder
            if os.path.basename(file) not in present if listed else not os.path.exists(file):
                absent.append(int(index))
    return np.array(sorted(absent), dtype=np.int64)


def _without(files: FileSplit, absent: np.ndarray) -> FileSplit:
    kept = np.setdiff1d(np.arange(len(files)), absent)
    rest = _Index()
    rest.folders = {folder: position for position, folder in enumerate(files.folders)}
    for index in kept:
        folder = files.folders[files.folder[index]]
        rest.extend([(folder, os.path.relpath(files.path(int(index)), os.path.join(files.root, folder)))])
    return FileSplit(
        root=files.root,
        folders=files.folders,
        folder=files.folder[kept],
        names=np.frombuffer(bytes(rest.names), dtype=np.uint8),
        ends=np.frombuffer(rest.ends, dtype=np.uint64).astype(np.int64),
        labels=files.labels[kept],
        size=files.size,
        in_chans=files.in_chans,
        skip_corrupt=files.skip_corrupt,
        window=files.window,
    )
