"""RadImageNet in its original layout: three tables of file names."""

import posixpath
import re
import unicodedata
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ..utils.files import PathLike
from .data import SPLITS, ImageSet
from .file_sets import Kind, assemble
from .groups import Groups
from .images import Reading

__all__ = ["LABELS", "load_radimagenet", "plain_name"]

LABELS = ("folders", "table")

ACCESS = (
    "RadImageNet is given out on request and under a signed agreement: ask for it at https://www.radimagenet.com, then "
    "unpack it so that the folder holds radiology_ai/ and RadiologyAI_train.csv, RadiologyAI_val.csv and "
    "RadiologyAI_test.csv. This code never downloads it."
)


def load_radimagenet(
    root: PathLike,
    reading: Reading,
    *,
    labels: str | None = None,
    excluded: Collection[str] = (),
    group: str | None = None,
) -> ImageSet:
    """Index RadImageNet in its own layout: ``radiology_ai/...`` and ``RadiologyAI_{train,val,test}.csv``.

    A class is a folder, ``modality/anatomy/label``: labels of the same name in two anatomies stay two classes. The
    tables' column ``label`` must agree, unless ``labels`` says which of the two rules.

    Args:
        root: Folder that holds both.
        reading: How files become pixels.
        labels: ``"folders"``, or ``"table"`` for the classes of the column ``label``.
        excluded: Paths below the root of images to leave out.
        group: Column of what belongs together, or a pattern that is searched in the file names.

    Raises:
        FileNotFoundError: If something is missing; the message says how to ask for access.
        ValueError: If a table has other columns, labels contradict folders, or a class is absent from a split.
    """
    import pandas as pd

    root = Path(root)
    paths = {split: root / f"RadiologyAI_{split}.csv" for split in SPLITS}
    for path in (root, root / "radiology_ai", *paths.values()):
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist. {ACCESS}")
    files = pd.concat([_read(path, group).assign(split=split) for split, path in paths.items()], ignore_index=True)
    kinds = {folder: _kind(folder) for folder in files["folder"].unique()}
    if labels is None:
        _require_agreement(root, files)
    if labels == "table":
        kinds = _kinds_of_labels(files, kinds)
    files = files.assign(kind=files["label" if labels == "table" else "folder"].map(kinds))
    return assemble("radimagenet", root, files, reading, excluded=excluded)


def _read(path: Path, group: str | None) -> Any:
    """A table with the columns folder, name, label and, if asked for, group."""
    import pandas as pd

    # As texts: pandas would read NA and null as missing. The columns of a longer row would move to the left.
    options: dict[str, Any] = {"dtype": object, "keep_default_na": False, "index_col": False, "skipinitialspace": True}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(path, encoding="utf-8-sig", skip_blank_lines=False, **options)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be UTF-8, and is not ({error}): save it as UTF-8") from error
    except (ValueError, pd.errors.ParserWarning) as error:
        raise ValueError(f"{path} cannot be read as a table ({str(error).strip()})") from error
    table.columns = table.columns.str.strip()
    header = list(table.columns)
    with path.open("rb") as file:  # older versions of pandas cut a name at its first zero byte
        zeros = b"\0" in file.read(100)
    if zeros:
        raise ValueError(f"{path} must be UTF-8, and its first line looks like UTF-16: save it as UTF-8")
    if len(header) == 1 and any(mark in header[0] for mark in ";\t|"):
        raise ValueError(f"{path} must be separated by commas, got the first line {header[0]!r}")
    if "filename" not in header or "label" not in header:
        raise ValueError(f"{path} must have the columns filename and label, got {header}")
    table = table[(table.fillna("") != "").any(axis=1)].fillna("")
    if table.empty:
        raise ValueError(f"{path} names no files")
    places = table["filename"].str.strip().str.replace("\\", "/").map(posixpath.normpath).str.rpartition("/")
    table = table.assign(folder=places[0], name=places[2], label=table["label"].str.strip())
    for column in ("label", *([group] if group in header else ())):
        if (table[column] == "").any():  # also of a row that is too short
            raise ValueError(f"{path}, line {table[table[column] == ''].index[0] + 2}: the column {column} is empty")
    bad = (table["folder"] == "") | (table["name"] == "") | (table["folder"] == "radiology_ai")
    if bad.any():
        row = table[bad].iloc[0]
        raise ValueError(
            f"{path}, line {row.name + 2}: filename must be a path below the root, got {row['filename']!r}"
        )
    if group:
        table["group"] = table[group] if group in header else table["filename"].map(Groups(group).of)
    return table


def _kind(folder: str) -> Kind:
    """Class name, modality and anatomy of ``radiology_ai/MR/knee/acl``; ultrasound has no folder for the anatomy."""
    parts = unicodedata.normalize("NFC", folder).split("/")
    parts = parts[parts.index("radiology_ai") + 1 :] if "radiology_ai" in parts else parts
    if len(parts) >= 3:
        return "/".join(parts), parts[0], {"abd": "abdomen"}.get(parts[1], parts[1])  # CT and MR say abd
    modality, label = parts[0], parts[-1]
    return "/".join(parts), modality, "thyroid" if "thyroid" in label.lower() else "abdomen"


def plain_name(text: str) -> str:
    """A name in a form for comparison: case, separators and the way in which accents are written do not matter."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFC", text)).strip().casefold()


def _require_agreement(root: Path, files: Any) -> None:
    """Check that the tables' labels divide the images as their folders do, by the folders' last names.

    Raises:
        ValueError: If a folder has two labels, or a label stands for folders of different names.
    """
    pairs = files[["folder", "label"]].value_counts().reset_index()
    last = pairs["folder"].str.rpartition("/")[2].map(plain_name)
    pairs = pairs.assign(last=last)
    for one, other, what in (("folder", "label", "has the labels"), ("label", "last", "stands for the folders")):
        distinct = pairs.groupby(one)[other].nunique()
        if (distinct > 1).any():
            name = distinct[distinct > 1].index[0]
            shown = pairs[pairs[one] == name][other if one == "folder" else "folder"].tolist()
            raise ValueError(
                f"{root}: the tables' labels and the folders contradict each other: {one} {name!r} {what} {shown[:4]}; "
                "--labels folders or --labels table says which rules"
            )
    foreign = pairs[(pairs["label"].map(plain_name) != last) & pairs["label"].map(plain_name).isin(set(last))]
    if len(foreign):
        row = foreign.iloc[0]
        raise ValueError(
            f"{root}: the tables' labels and the folders contradict each other: {row['folder']} has the label "
            f"{row['label']!r}, which is another folder; --labels folders or --labels table says which rules"
        )


def _kinds_of_labels(files: Any, kinds: dict[str, Kind]) -> dict[str, Kind]:
    """A class for each label, with the modality and anatomy that all its folders agree in."""
    found: dict[str, Kind] = {}
    for label, folders in files.groupby("label")["folder"].unique().items():
        modality, anatomy = ({kinds[folder][place] for folder in folders} for place in (1, 2))
        found[label] = (
            label,
            modality.pop() if len(modality) == 1 else "several",
            anatomy.pop() if len(anatomy) == 1 else "several",
        )
    return found
