"""RadImageNet in its original layout: three tables of file names."""

import csv
import posixpath
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ..utils.files import PathLike
from .data import SPLITS
from .file_sets import FileSet, Index, assemble
from .images import Window

__all__ = ["load_radimagenet"]

ACCESS = (
    "RadImageNet is given out on request and under a signed agreement: ask for it at https://www.radimagenet.com, then "
    "unpack it so that the folder holds radiology_ai/ and RadiologyAI_train.csv, RadiologyAI_val.csv and "
    "RadiologyAI_test.csv. This code never downloads it."
)


def load_radimagenet(
    root: PathLike,
    *,
    size: int,
    in_chans: int = 1,
    skip_bad_files: bool = False,
    window: Window = None,
    excluded: Collection[str] = (),
) -> tuple[FileSet, list[str]]:
    """Index RadImageNet in its own layout: ``radiology_ai/...`` and ``RadiologyAI_{train,val,test}.csv``.

    A class is a folder, ``modality/anatomy/label``: labels of the same name in two anatomies stay two classes.

    Args:
        root: Folder that holds both.
        size: Side in pixels to which images are resized when read.
        in_chans: 1, or 3 for grey images repeated.
        skip_bad_files: Leave out files that are missing or corrupt.
        window: For images of more than 8 bits.
        excluded: Paths below the root of images to leave out.

    Returns:
        The data set, and the files that the tables name but that are missing on disk.

    Raises:
        FileNotFoundError: If something is missing; the message says how to ask for access.
        ValueError: If a table has other columns, or a class is absent from a split.
    """
    root = Path(root)
    tables = {split: root / f"RadiologyAI_{split}.csv" for split in SPLITS}
    for path in (root, root / "radiology_ai", *tables.values()):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist. {ACCESS}")
    builders = {split: Index() for split in SPLITS}
    for split, table in tables.items():
        builders[split].extend(_rows(table))
    own: dict[str, Any] = {"size": size, "in_chans": in_chans, "skip_bad_files": skip_bad_files, "window": window}
    return assemble("radimagenet", root, builders, _kind, **own, excluded=excluded)


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
            folder, _, name = posixpath.normpath(row[column].strip().replace("\\", "/")).rpartition("/")
            if not folder or not name or folder == "radiology_ai":
                raise ValueError(f"{table}, line {number}: filename must be a path below the root, got {row[column]!r}")
            empty = False
            yield folder, name
        if empty:
            raise ValueError(f"{table} names no files")


def _kind(folder: str) -> tuple[str, str, str]:
    """Class name, modality and anatomy of ``radiology_ai/MR/knee/acl``; ultrasound has no folder for the anatomy."""
    parts = folder.split("/")
    parts = parts[parts.index("radiology_ai") + 1 :] if "radiology_ai" in parts else parts
    if len(parts) >= 3:
        return "/".join(parts), parts[0], {"abd": "abdomen"}.get(parts[1], parts[1])  # CT and MR say abd
    modality, label = parts[0], parts[-1]
    return "/".join(parts), modality, "thyroid" if "thyroid" in label.lower() else "abdomen"
