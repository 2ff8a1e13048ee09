"""A compact index of image files on disk, shared by all kinds of sources."""

import dataclasses
import os
import warnings
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .images import TooDeep, Window, read_image

__all__ = ["FileSet", "FileSplit", "Index", "assemble"]


@dataclass(frozen=True)
class FileSplit:
    """Images on disk, indexed by one buffer of names and a few numbers per file, without a Python object per image.

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
        return os.path.join(self.root, self.below_root(index))

    def below_root(self, index: int) -> str:
        """The file's path without the root, with forward slashes."""
        start = self.ends[index - 1] if index else 0
        name = os.fsdecode(self.names[start : self.ends[index]].tobytes())
        return f"{self.folders[self.folder[index]]}/{name}".replace(os.sep, "/")

    def take(self, indices: np.ndarray) -> "FileSplit":
        """The files at these positions."""
        starts = np.concatenate([[0], self.ends[:-1]])[indices] if len(self.ends) else self.ends
        lengths = self.ends[indices] - starts
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
        return dataclasses.replace(
            self, folder=self.folder[indices], names=self.names[places], ends=ends, labels=self.labels[indices]
        )

    def sizes(self) -> np.ndarray:
        """Each file's size in bytes, (N,); one listing a folder, not one call a file."""
        sizes = np.zeros(len(self), dtype=np.int64)
        for folder, positions in self._by_folder():
            place = os.path.join(self.root, self.folders[folder])
            with os.scandir(place) as entries:
                found = {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
            for index in positions:
                path = self.path(int(index))
                size = found.get(os.path.basename(path)) if os.path.dirname(path) == place else None
                sizes[index] = os.path.getsize(path) if size is None else size
        return sizes

    def content(self) -> Iterator[bytes | memoryview]:
        """What :func:`~policy_noise.experiments.data.fingerprint` hashes: each file's path, size in bytes and label."""
        sizes = self.sizes()
        yield "\0".join(self.folders).encode(errors="surrogateescape")
        for part in (self.folder.astype(np.int64), self.names, self.ends, self.labels, sizes):
            yield np.ascontiguousarray(part).data.cast("B")

    def _by_folder(self) -> Iterator[tuple[int, np.ndarray]]:
        """Each folder's number and its files' positions, so that each folder is listed only once."""
        order = np.argsort(self.folder, kind="stable")
        bounds = np.searchsorted(self.folder[order], np.arange(len(self.folders) + 1))
        for folder in range(len(self.folders)):
            yield folder, order[bounds[folder] : bounds[folder + 1]]

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode images.

        Returns:
            The readable images, uint8, (B, size, size) or (B, size, size, 3), and their positions.

        Raises:
            ValueError: If a file cannot be read and ``skip_corrupt`` is off. The message names the file.
        """
        from PIL import Image

        images, kept = [], []
        for index in indices:
            path = self.path(int(index))
            try:
                image = Image.fromarray(read_image(path, self.in_chans, self.window))
                images.append(np.asarray(image.resize((self.size, self.size), Image.Resampling.BILINEAR)))
                kept.append(int(index))
            except TooDeep:
                raise
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                self.refuse_unless_skipped(path, error)
                warnings.warn(f"{path} is left out: it cannot be read as an image ({error})", stacklevel=2)
        shape = (0, self.size, self.size) + ((3,) if self.in_chans == 3 else ())
        return (np.stack(images) if images else np.zeros(shape, np.uint8)), np.array(kept, dtype=np.int64)

    def refuse_unless_skipped(self, path: str, error: Exception) -> None:
        """Refuse a file that could not be read, unless such files are left out.

        Raises:
            ValueError: With the file's name.
        """
        if not self.skip_corrupt:
            raise ValueError(
                f"{path} cannot be read as an image ({error}); --skip-bad-files leaves such files out"
            ) from error


@dataclass(frozen=True)
class FileSet:
    """A data set on disk, with the attributes of :class:`policy_noise.experiments.data.ImageSet` and ``notes``.

    Notes are messages about the files found and left out, to be printed at the start.
    """

    name: str
    train: FileSplit
    val: FileSplit
    test: FileSplit
    class_names: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    notes: tuple[str, ...] = ()
    multi_label: bool = False
    excluded: int = 0
    files_missing: int = 0

    def image_name(self, split: str, index: int) -> str:
        """An image's name in lists: its path below the root."""
        part: FileSplit = getattr(self, split)
        return part.below_root(index)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def in_chans(self) -> int:
        """Channels as which the images are read."""
        return self.train.in_chans


class Index:
    """Builder of the compact arrays of a :class:`FileSplit`, file by file."""

    def __init__(self) -> None:
        self.folders: dict[str, int] = {}
        self.folder = array("I")
        self.names = bytearray()
        self.ends = array("Q")

    def __len__(self) -> int:
        return len(self.ends)

    def extend(self, files: Iterable[tuple[str, str]]) -> None:
        """Add files by folder and name."""
        for folder, name in files:
            self.folder.append(self.folders.setdefault(folder, len(self.folders)))
            self.names += os.fsencode(name)
            self.ends.append(len(self.names))

    def split(
        self, root: Path, label_of: np.ndarray, *, size: int, in_chans: int, skip_bad_files: bool, window: Window
    ) -> FileSplit:
        """All files as a split; ``label_of`` holds each folder's label."""
        wide = np.uint16 if len(self.folders) < 65536 else np.uint32
        folder = np.frombuffer(self.folder, dtype=np.uint32).astype(wide)
        return FileSplit(
            root=str(root),
            folders=tuple(self.folders),
            folder=folder,
            names=np.frombuffer(bytes(self.names), dtype=np.uint8),
            ends=np.frombuffer(self.ends, dtype=np.uint64).astype(np.int64),
            labels=label_of[folder],
            size=size,
            in_chans=in_chans,
            skip_corrupt=skip_bad_files,
            window=window,
        )


def assemble(
    name: str,
    root: Path,
    builders: Mapping[str, Index],
    kind: Callable[[str], tuple[str, str, str]],
    *,
    size: int,
    in_chans: int,
    skip_bad_files: bool,
    window: Window,
    notes: Sequence[str] = (),
    excluded: Collection[str] = (),
) -> tuple[FileSet, list[str]]:
    """Make a data set of indexed files and run the checks that all sources of files share.

    A path that is repeated within a split is used once, and a note says so.

    Args:
        name: Of the set.
        root: Folder that the index starts from.
        builders: The files of train, val and test.
        kind: From a folder to its class, modality and anatomy; the latter two may be empty.
        size: See :class:`FileSplit`.
        in_chans: See :class:`FileSplit`.
        skip_bad_files: Leave out files that are missing or corrupt.
        window: See :class:`FileSplit`.
        notes: Of the set.
        excluded: Paths below the root of images to leave out, before anything is checked.

    Returns:
        The set, and the files that are missing.

    Raises:
        FileNotFoundError: If files are missing, and ``skip_bad_files`` is off.
        ValueError: If a file is in two splits, or a split lacks a class.
    """
    kinds = {folder: kind(folder) for builder in builders.values() for folder in builder.folders}
    classes = sorted(set(kinds.values()))
    number = {entry: label for label, entry in enumerate(classes)}
    splits, missing, left_out = {}, [], 0
    for split, builder in builders.items():
        label_of = np.array([number[kinds[folder]] for folder in builder.folders], dtype=np.int64)
        own: dict[str, Any] = {"size": size, "in_chans": in_chans, "skip_bad_files": skip_bad_files, "window": window}
        whole = builder.split(root, label_of, **own)
        if excluded:
            kept = [index for index in range(len(whole)) if whole.below_root(index) not in excluded]
            left_out += len(whole) - len(kept)
            whole = whole.take(np.array(kept, dtype=np.int64))
        absent = _missing(whole)
        missing += [whole.path(index) for index in absent]
        splits[split] = whole.take(np.setdiff1d(np.arange(len(whole)), absent)) if len(absent) else whole
    splits, twice = _once(splits)
    if missing and not skip_bad_files:
        what = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
        raise FileNotFoundError(
            f"{what} missing below {root}, such as {missing[:5]}; --skip-bad-files leaves such files out"
        )
    for split, files in splits.items():
        counts = np.bincount(files.labels, minlength=len(classes))
        absent_classes = [classes[label][0] for label in np.flatnonzero(counts == 0)]
        if absent_classes:
            raise ValueError(f"{root}: the {split} split has no image of {absent_classes[:10]}")
    groups = {"modality": tuple(entry[1] for entry in classes), "anatomy": tuple(entry[2] for entry in classes)}
    groups = {key: values for key, values in groups.items() if any(values)}
    names = tuple(entry[0] for entry in classes)
    notes = (*notes, *twice)
    parts = (splits["train"], splits["val"], splits["test"])
    return FileSet(name, *parts, names, groups, notes, excluded=left_out, files_missing=len(missing)), missing


def _once(splits: dict[str, FileSplit]) -> tuple[dict[str, FileSplit], list[str]]:
    """Remove repeated paths within splits, with notes, and refuse paths in two splits. Keeps 8 bytes per file."""
    hashes = {
        split: np.array([hash(os.path.normpath(files.path(i))) for i in range(len(files))], np.int64)
        for split, files in splits.items()
    }
    values, counts = np.unique(np.concatenate(list(hashes.values())), return_counts=True)
    again = values[counts > 1]
    seen: dict[str, str] = {}
    shared, notes = [], []
    for split, files in splits.items():
        repeated = []
        for index in np.flatnonzero(np.isin(hashes[split], again)):
            path = os.path.normpath(files.path(int(index)))
            if seen.get(path, split) != split:
                shared.append(f"{path} is in {seen[path]} and in {split}")
            elif path in seen:
                repeated.append(index)
            seen[path] = split
        if repeated:
            first = files.path(int(repeated[0]))
            rows = "1 row names" if len(repeated) == 1 else f"{len(repeated)} rows name"
            notes.append(f"{split}: {rows} a file again, such as {first}: each is taken once")
            splits[split] = files.take(np.setdiff1d(np.arange(len(files)), repeated))
    if shared:
        more = f" ({len(shared)} files in two splits in all)" if len(shared) > 1 else ""
        raise ValueError(f"{shared[0]}{more}: an image must belong to one split; --exclude leaves it out of both")
    return splits, notes


def _missing(files: FileSplit) -> np.ndarray:
    """Positions of missing files, found with one listing per folder instead of one call per file."""
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
