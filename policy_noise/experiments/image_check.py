"""Read all images of a data set once and list the unreadable, the constant and the duplicate ones; leave some out."""

import dataclasses
import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..utils.files import PathLike, write_atomic
from .data import SPLITS, ImageSet
from .groups import crossing
from .images import pixels
from .pages import table_markdown
from .processes import in_threads
from .runs import read_lines

__all__ = [
    "COLUMNS",
    "Finding",
    "Look",
    "check",
    "describe",
    "exclude",
    "look_at",
    "look_before_training",
    "read_exclusions",
    "summary",
    "write_table",
]

CHUNK = 64
CHEAP = 1 << 26
"""Bytes of files that are decoded before every training, in some seconds."""
COLUMNS = ("problem", "where", "group", "image", "split", "class", "detail", "exclude")
KEPT_FIRST = ("test", "val", "train")  # of duplicates, the test image stays: the test split remains as published


class Finding(NamedTuple):
    """A problem with one image: a row of the table.

    ``group`` numbers the sets of equal images, and of images that belong together. ``exclude`` proposes whether to
    leave the image out, ``"yes"`` or ``"no"``. It is "yes" for unreadable and constant images and for equal images of
    different classes. Of other equal images one is kept, from the test split if possible, else from the validation
    split. Of what belongs together and is in several splits, the images of one split are kept.
    """

    problem: str
    where: str
    group: str
    image: str
    split: str
    label: str
    detail: str
    exclude: str


class Look(NamedTuple):
    """What was found in an image: a hash of its pixels, its value if it is constant, the error if it is unreadable."""

    pixels: str
    constant: str
    error: str


def check(data: ImageSet, *, journal: Path | None = None) -> list[Finding]:
    """Read every image once and list the problems.

    Images are equal if their pixels are, whatever the compression. Constant images are not listed as equal too.

    Args:
        data: The set.
        journal: JSON-lines file with the result for each image file. Files whose size and modification time have not
            changed are not read again.

    Returns:
        The findings, worst first.
    """
    places = [(split, index) for split, part in data.parts.items() for index in range(len(part))]

    def finding(
        problem: str, place: tuple[str, int], detail: str = "", where: str = "", *, keep: bool = False
    ) -> Finding:
        about = (data.image_name(*place), place[0], _label(data, *place))
        return Finding(problem, where, "", *about, detail, "no" if keep else "yes")

    unreadable, constant = [], []
    equal: dict[str, list[tuple[str, int]]] = defaultdict(list)
    looks = _look_at_files(data, places, journal) if data.on_disk else _look_at_arrays(data)
    for place, look in zip(places, looks, strict=True):
        if look.error:
            unreadable.append(finding("unreadable", place, look.error))
        elif look.constant:
            constant.append(finding("constant", place, f"all pixels are {look.constant}"))
        else:
            equal[look.pixels].append(place)
    sets: list[tuple[int, list[Finding]]] = []
    for members in equal.values():
        if len(members) > 1:
            kinds = {"splits": {split for split, _ in members}, "classes": {_label(data, *place) for place in members}}
            spread = [name for name, found in kinds.items() if len(found) > 1]
            where = f"across {' and '.join(spread)}" if spread else "within a split"
            kept = None if "classes" in spread else min(members, key=lambda place: KEPT_FIRST.index(place[0]))
            rows = [finding("equal", place, where=where, keep=place == kept) for place in members]
            sets.append((-len(spread), rows))
    for name, splits in crossing(data).items():
        kept_split = min(splits, key=KEPT_FIRST.index)
        rows = [
            finding("group", (split, index), name, "across splits", keep=split == kept_split)
            for split in splits
            for index in np.flatnonzero(data.parts[split].groups == name).tolist()
        ]
        sets.append((0, rows))
    sets.sort(key=lambda entry: entry[0])
    numbered = [row._replace(group=str(number)) for number, (_, rows) in enumerate(sets, start=1) for row in rows]
    return [*unreadable, *constant, *numbered]


def look_before_training(data: ImageSet) -> list[str]:
    """Decode what takes seconds, so that a bad test image is not found after the last epoch.

    That is every image in memory, and all files or those of the test split if they have at most :data:`CHEAP` bytes.

    Returns:
        A note on the constant and equal images among them, if there are any.

    Raises:
        ValueError: If a file cannot be read, and such files are not left out.
    """
    if data.on_disk:
        size = {split: int(part.images.sizes.sum()) for split, part in data.parts.items()}
        cheap = SPLITS if sum(size.values()) <= CHEAP else ("test",) if size["test"] <= CHEAP else ()
        left: dict[str, Any] = {
            split: part.take(np.arange(0)) for split, part in data.parts.items() if split not in cheap
        }
        data = dataclasses.replace(data, **left)
    findings = check(data)
    for finding in findings:
        if finding.problem == "unreadable":
            path = os.path.join(data.test.images.root, finding.image)
            data.test.images.refuse_unless_skipped(path, ValueError(finding.detail))
    counts = Counter(finding.problem for finding in findings)
    across = sum(finding.problem == "equal" and "splits" in finding.where for finding in findings)
    said = [f"{counts['constant']} constant images"] if counts["constant"] else []
    said += (
        [f"{counts['equal']} equal ones" + (f" ({across} across splits)" if across else "")] if counts["equal"] else []
    )
    return [f"{data.name}: {' and '.join(said)}, which check-data names and --exclude leaves out"] if said else []


def _label(data: ImageSet, split: str, index: int) -> str:
    label = data.parts[split].labels[index]
    return "+".join(np.array(data.class_names)[label > 0]) if np.ndim(label) else data.class_names[label]


def describe(values: np.ndarray) -> Look:
    """Look at an image's values, (H, W) or (H, W, C). Equal channels count as one: grey, and the same saved as RGB."""
    if values.ndim == 3 and (values == values[..., :1]).all():
        values = values[..., 0]
    flat = values.reshape(-1, values.shape[2]) if values.ndim == 3 else values.reshape(-1, 1)
    constant = str(flat[0].tolist()).strip("[]") if flat.size and (flat == flat[0]).all() else ""
    head = f"{values.dtype.str} {values.shape}".encode()
    return Look(hashlib.sha256(head + np.ascontiguousarray(values).tobytes()).hexdigest()[:32], constant, "")


def _look_at_arrays(data: ImageSet) -> Iterator[Look]:
    from tqdm import tqdm

    for split, part in data.parts.items():
        for image in tqdm(part.images, desc=f"checking {split}", unit="image", delay=5, leave=False):
            yield describe(image)


def look_at(paths: Sequence[str]) -> list[Look]:
    """Decode files at their full bit depth, so that no window is needed."""
    from PIL import Image

    looks = []
    for path in paths:
        try:
            looks.append(describe(pixels(path)))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            looks.append(Look("", "", " ".join(str(error).split()) or type(error).__name__))
    return looks


def _stamp(path: str) -> list[int]:
    try:
        found = os.stat(path)
    except OSError:
        return [-1, -1]
    return [found.st_size, found.st_mtime_ns]


def _look_at_files(data: ImageSet, places: list[tuple[str, int]], journal: Path | None) -> list[Look]:
    paths = [data.parts[split].images.path(index) for split, index in places]
    known: dict[Any, Look] = {}
    keys: list[Any] = [None] * len(places)
    if journal:
        _mend(journal)
        keys = [(data.image_name(*place), *_stamp(path)) for place, path in zip(places, paths, strict=True)]
        for line in read_lines(journal):
            known[(line["image"], *line["stamp"])] = Look(line["pixels"], line["constant"], line["error"])
    looks: list[Any] = [known.get(key) for key in keys]
    left = [number for number, look in enumerate(looks) if look is None]
    chunks = [left[start : start + CHUNK] for start in range(0, len(left), CHUNK)]
    read = [[paths[number] for number in chunk] for chunk in chunks]
    with journal.open("a", encoding="utf-8") if journal else nullcontext() as file:
        results = in_threads(look_at, read, desc="checking", unit=f" x {CHUNK} images")
        for chunk, found in zip(chunks, results, strict=True):
            for number, look in zip(chunk, found, strict=True):
                looks[number] = look
                if file:
                    image, *stamp = keys[number]
                    file.write(json.dumps({"image": image, "stamp": stamp, **look._asdict()}) + "\n")
            if file:
                file.flush()
    return looks


def _mend(journal: Path) -> None:
    """Make the journal's folder. Cut off an incomplete last line, which a killed process leaves behind."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    if journal.is_file():
        whole = journal.read_bytes().rpartition(b"\n")
        os.truncate(journal, len(whole[0]) + len(whole[1]))


def write_table(findings: Sequence[Finding], path: Path) -> None:
    """Write findings as a CSV file for ``--exclude``."""
    import pandas as pd

    table = pd.DataFrame(findings, columns=COLUMNS, dtype=object)
    write_atomic(path, lambda temporary: table.to_csv(temporary, index=False, errors="surrogateescape"))


def summary(data: ImageSet, findings: Sequence[Finding]) -> str:
    """The number of findings in each split, as a Markdown table."""
    kinds = list(dict.fromkeys((finding.problem, finding.where) for finding in findings))
    rows = [["images", *(str(len(part)) for part in data.parts.values())]]
    for kind in kinds:
        counts = [sum((f.problem, f.where, f.split) == (*kind, split) for f in findings) for split in SPLITS]
        rows.append([" ".join(kind).strip(), *map(str, counts)])
    left_out = [sum(f.exclude == "yes" and f.split == split for f in findings) for split in SPLITS]
    rows.append(["proposed to exclude", *map(str, left_out)])
    return table_markdown([data.name, *SPLITS], rows)


def read_exclusions(path: PathLike) -> frozenset[str]:
    """Read a list of images to leave out.

    Args:
        path: File with one name per line (lines that begin with # are ignored), or a table like that of
            ``check-data`` with the column ``image`` and optionally ``exclude`` (yes or no).

    Returns:
        The names: paths below the root, or ``set/split/position`` for sets in memory.

    Raises:
        ValueError: If ``exclude`` is neither yes nor no.
    """
    import pandas as pd

    own: dict[str, Any] = {"encoding": "utf-8-sig", "errors": "surrogateescape"}  # as file names are
    with open(path, **own) as file:
        lines = file.read().splitlines()
    if "image" not in (lines[0] if lines else "").split(","):
        return frozenset(line.strip() for line in lines if line.strip() and not line.startswith("#"))
    options = {"encoding": own["encoding"], "encoding_errors": own["errors"]}
    table = pd.read_csv(path, dtype=object, keep_default_na=False, **options)
    wanted = table["exclude"].str.strip().str.lower() if "exclude" in table else pd.Series("yes", table.index)
    bad = ~wanted.isin(["yes", "no"]) | (table["image"] == "")
    if bad.any():
        row = table[bad].iloc[0]
        raise ValueError(
            f"{path}, row {row.name + 2}: needs an image and yes or no in the column exclude, got {row.to_dict()}"
        )
    return frozenset(table["image"][wanted == "yes"])


def exclude(data: ImageSet, names: Collection[str]) -> ImageSet:
    """Remove the images of these names from a data set. Its ``excluded`` counts them."""
    parts: dict[str, Any] = {}
    count = 0
    for split, part in data.parts.items():
        kept = np.array([i for i in range(len(part)) if data.image_name(split, i) not in names], dtype=np.int64)
        count += len(part) - len(kept)
        parts[split] = part.take(kept)
    return dataclasses.replace(data, **parts, excluded=data.excluded + count)
