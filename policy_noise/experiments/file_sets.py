"""Image files on disk as a data set: an index of few bytes an image, and the checks that all sources of files share."""

import contextlib
import dataclasses
import os
import posixpath
import stat
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .data import SPLITS, ImageSet, Split
from .images import Reading, TooDeep, as_square, read_image
from .processes import in_threads

__all__ = ["Files", "Kind", "assemble", "split_of"]

CHUNK = 1000
Kind = tuple[str, str, str]
"""A class's name, modality and anatomy; the latter two may be empty."""


@dataclass(frozen=True)
class Files:
    """Images on disk, without a Python object per image.

    Args:
        root: Folder that the names start from.
        folders: Distinct folders, relative to the root.
        folder: Index into ``folders`` of each file, (N,).
        names: The files' names below their folders, (N,) bytes.
        sizes: The files' sizes in bytes, (N,); -1 for a missing file.
        reading: How files become pixels.
    """

    root: str
    folders: tuple[str, ...]
    folder: np.ndarray
    names: np.ndarray
    sizes: np.ndarray
    reading: Reading

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, indices: np.ndarray) -> "Files":
        parts = {name: getattr(self, name)[indices] for name in ("folder", "names", "sizes")}
        return dataclasses.replace(self, **parts)

    @property
    def nbytes(self) -> int:
        """Memory of the index in bytes."""
        return sum(part.nbytes for part in (self.folder, self.names, self.sizes))

    def path(self, index: int) -> str:
        """The file's path."""
        return os.path.join(self.root, self.below_root(index))

    def below_root(self, index: int) -> str:
        """The file's path without the root, with forward slashes."""
        return f"{self.folders[self.folder[index]]}/{os.fsdecode(self.names[index])}".replace(os.sep, "/")

    def content(self) -> Iterator[bytes | memoryview]:
        """What :func:`~policy_noise.experiments.data.fingerprint` hashes: each file's path and size in bytes."""
        yield "\0".join(self.folders).encode(errors="surrogateescape")
        names = np.frombuffer(b"".join(self.names.tolist()), np.uint8)
        ends = np.cumsum(np.char.str_len(self.names))
        for part in (self.folder.astype(np.int64), names, ends, self.sizes):
            yield np.ascontiguousarray(part).data.cast("B")

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Decode images to uint8, (B, size, size) or (B, size, size, 3); see :meth:`~.data.Split.read`."""
        from PIL import Image

        how, images, kept = self.reading, [], []
        for index in indices:
            path = self.path(int(index))
            try:
                image = Image.fromarray(as_square(read_image(path, how.in_chans, how.window), how.fit))
                images.append(np.asarray(image.resize((how.size, how.size), Image.Resampling.BILINEAR)))
                kept.append(int(index))
            except TooDeep:
                raise
            except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
                self.refuse_unless_skipped(path, error)
                warnings.warn(f"{path} is left out: it cannot be read as an image ({error})", stacklevel=2)
        shape = (0, how.size, how.size) + ((3,) if how.in_chans == 3 else ())
        return (np.stack(images) if images else np.zeros(shape, np.uint8)), np.array(kept, dtype=np.int64)

    def refuse_unless_skipped(self, path: str, error: Exception) -> None:
        """Refuse a file that could not be read, unless such files are left out.

        Raises:
            ValueError: With the file's name.
        """
        if not self.reading.skip_bad_files:
            raise ValueError(
                f"{path} cannot be read as an image ({error}); --skip-bad-files leaves such files out"
            ) from error


def split_of(files: Any, root: Path, classes: Sequence[Kind], reading: Reading) -> Split:
    """Index files, with their sizes on disk.

    Args:
        files: DataFrame with the columns ``folder`` (below the root), ``name`` (below the folder), ``kind`` (see
            :data:`Kind`) and optionally ``group``.
        root: Folder that the files' folders start from.
        classes: The kinds in the order of their labels.
        reading: How files become pixels.
    """
    import pandas as pd

    folder, folders = pd.factorize(files["folder"])
    folder = folder.astype(np.uint16 if len(folders) < 65536 else np.uint32)
    names = np.array([os.fsencode(name) for name in files["name"]], dtype=bytes)
    label_of = {kind: label for label, kind in enumerate(classes)}
    labels = np.array([label_of[kind] for kind in files["kind"]], dtype=np.int64)  # map takes tuples for two indices
    groups = files["group"].to_numpy(dtype=str) if "group" in files else None
    unknown = Files(str(root), tuple(folders), folder, names, np.full(len(names), -1, np.int64), reading)
    return Split(dataclasses.replace(unknown, sizes=_sizes(unknown)), labels, groups)


def _sizes(files: Files) -> np.ndarray:
    """Each file's size in bytes, -1 if it is missing."""

    def size(index: int) -> int:
        with contextlib.suppress(OSError):
            found = os.stat(files.path(index))
            return found.st_size if stat.S_ISREG(found.st_mode) else -1
        return -1

    chunks = [range(start, min(start + CHUNK, len(files))) for start in range(0, len(files), CHUNK)]
    found = in_threads(lambda chunk: [size(index) for index in chunk], chunks, desc="looking for files", unit="k files")
    return np.array([one for several in found for one in several], dtype=np.int64)


def assemble(
    name: str,
    root: Path,
    files: Any,
    reading: Reading,
    *,
    notes: Sequence[str] = (),
    excluded: Collection[str] = (),
    linked: bool = False,
    tested: bool = False,
) -> ImageSet:
    """Make a data set of listed files and run the checks that all sources of files share.

    A path that is repeated within a split is used once, and a note says so.

    Args:
        name: Of the set.
        root: Folder that the files' folders start from.
        files: DataFrame as for :func:`split_of`, with the column ``split``.
        reading: How files become pixels.
        notes: Of the set.
        excluded: Paths below the root of images to leave out, before anything is checked.
        linked: Whether there are links, so that two paths may be one file.
        tested: Whether the set is only tested on. Then splits may lack classes.

    Raises:
        FileNotFoundError: If files are missing, and such files are not left out.
        ValueError: If a file is in two splits or two classes, or a split lacks a class.
    """
    classes = sorted(set(files["kind"]))
    paths = (files["folder"] + "/" + files["name"]).str.replace(os.sep, "/")
    left_out = paths.isin(excluded)
    files, paths = files[~left_out], paths[~left_out]
    files, twice = _once(root, files, paths, linked=linked)
    splits, missing = {}, []
    for split in SPLITS:
        whole = split_of(files[files["split"] == split], root, classes, reading)
        missing += [whole.images.path(int(index)) for index in np.flatnonzero(whole.images.sizes < 0)]
        splits[split] = whole.take(np.flatnonzero(whole.images.sizes >= 0))
    if missing and not reading.skip_bad_files:
        what = "1 file is" if len(missing) == 1 else f"{len(missing)} files are"
        raise FileNotFoundError(
            f"{what} missing below {root}, such as {missing[:5]}; --skip-bad-files leaves such files out"
        )
    for split, part in splits.items():
        counts = np.bincount(part.labels, minlength=len(classes))
        absent = [classes[label][0] for label in np.flatnonzero(counts == 0)]
        if absent and not tested:
            raise ValueError(f"{root}: the {split} split has no image of {absent[:10]}")
    groups = {"modality": tuple(kind[1] for kind in classes), "anatomy": tuple(kind[2] for kind in classes)}
    return ImageSet(
        name,
        splits["train"],
        splits["val"],
        splits["test"],
        class_names=tuple(kind[0] for kind in classes),
        groups={key: values for key, values in groups.items() if any(values)},
        notes=(*notes, *twice),
        missing=tuple(missing),
        excluded=int(left_out.sum()),
    )


def _once(root: Path, files: Any, paths: Any, *, linked: bool) -> tuple[Any, list[str]]:
    """Drop repeated files within a split, with notes. Refuse files in two splits or two classes."""
    keys = paths.map(lambda path: os.path.realpath(root / path)) if linked else paths.map(posixpath.normpath)
    again = files[keys.duplicated(keep=False)].assign(key=keys, path=paths)
    for column in ("split", "kind"):
        distinct = again.groupby("key", sort=False)[column].nunique()
        shared = distinct[distinct > 1].index
        if len(shared):
            rows = again[again["key"] == shared[0]].drop_duplicates(column)
            one, other = (os.path.join(root, path) for path in rows["path"][:2])
            same = os.path.normpath(one) == os.path.normpath(other)
            which = f"{one} is" if same else f"{one} and {other} are one file,"
            places = [place if column == "split" else repr(place[0]) for place in rows[column][:2]]
            more = f" ({len(shared)} such files in all)" if len(shared) > 1 else ""
            raise ValueError(
                f"{which} in {' and in '.join(places)}{more}: an image must belong to one split and one class; "
                "--exclude leaves it out of both"
            )
    repeated = keys.duplicated()
    notes = []
    for split, rows in files[repeated].groupby("split", sort=False):
        what = "1 entry names" if len(rows) == 1 else f"{len(rows)} entries name"
        example = os.path.join(root, paths[rows.index[0]])
        notes.append(f"{split}: {what} a file again, such as {example}: each is taken once")
    return files[~repeated], notes
