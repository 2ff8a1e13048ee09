"""The command-line options that name a source of images, and the data sets that they open."""

import argparse
import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .data import ImageSet, join_sets, resize
from .folders import load_image_folder
from .groups import crossing_note, likely_note
from .headers import in_colour, look_over, refuse_masks, size_notes
from .image_check import exclude, read_exclusions
from .images import FITS, Reading, Window, as_square
from .medmnist import load_medmnist
from .npz import load_npz
from .tables import LABELS, load_radimagenet
from .world import started_first

__all__ = [
    "KINDS",
    "NAMED",
    "add_source_arguments",
    "describe",
    "open_joined",
    "open_source",
    "open_sources",
    "open_tested",
    "window_of",
]

KINDS = ("npz", "medmnist", "radimagenet", "image_folder")
"""The kinds of sources, each with an option of its name."""

NAMED = (
    "an npz file (PATH or PATH:PREFIX), a tree {train,val,test}/CLASS/IMAGE, RadImageNet's root, or a set of the "
    "medmnist package by its name"
)
"""The sources that a text can name, in words for help texts."""


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name where images come from."""
    group = parser.add_argument_group("data: choose one source; --npz and --medmnist may be combined")
    group.add_argument(
        "--npz", nargs="+", metavar="PATH[:PREFIX]", help="npz files in MedMNIST's layout; several are joined"
    )
    group.add_argument("--medmnist", nargs="+", metavar="FLAG", help="names of medmnist's sets; several are joined")
    group.add_argument(
        "--radimagenet", type=Path, metavar="ROOT", help="folder with radiology_ai/ and the three CSV files"
    )
    group.add_argument("--image-folder", type=Path, metavar="ROOT", help="tree {train,val,test}/CLASS/IMAGE")
    group.add_argument("--root", type=Path, default=Path("data"), help="folder of medmnist's files (default: data)")
    group.add_argument("--medmnist-size", type=int, default=28, help="size in pixels: 28 (default), 64, 128 or 224")
    group.add_argument(
        "--split-seed", type=int, default=0, help="seed to split npz files that have no splits (default: 0)"
    )
    group.add_argument("--download", action="store_true", help="let medmnist download missing files")
    group.add_argument(
        "--skip-bad-files", action="store_true", help="leave out missing and corrupt files; they are named and counted"
    )
    group.add_argument(
        "--multi-label", action="store_true", help="read one-hot labels of npz files as several labels per image"
    )
    group.add_argument(
        "--window",
        nargs="+",
        metavar="VALUE",
        help="for images of more than 8 bits: the values LOW HIGH that become black and white, or 'auto' for each "
        "image's own minimum and maximum",
    )
    group.add_argument(
        "--fit",
        choices=FITS,
        default="stretch",
        help="what becomes of images that are not square: stretched (default), cropped to their middle, or padded "
        "with black",
    )
    group.add_argument(
        "--labels",
        choices=LABELS,
        help="which of RadImageNet's classes rule if they contradict each other: the folders, or the tables' column "
        "label",
    )
    group.add_argument(
        "--group",
        metavar="NAME",
        help="what belongs together, such as the patient, and goes into one split: a key of an npz file, a column of "
        r"RadImageNet's tables, or a pattern for the paths of files, such as '(p\d+)_'",
    )
    group.add_argument(
        "--exclude",
        type=Path,
        metavar="FILE",
        help="images to leave out: a file with one name per line, or check-data's table",
    )


def window_of(values: list[str] | None) -> Window:
    """The window that ``--window`` names: two values, ``"auto"``, or none.

    Raises:
        ValueError: If it is none of these.
    """
    if values is None or values == ["auto"]:
        return "auto" if values else None
    try:
        low, high = map(float, values)
    except ValueError:
        raise ValueError(f"--window takes LOW HIGH or auto, got {' '.join(values)}") from None
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"--window needs LOW below HIGH, got {low:g} {high:g}")
    return low, high


def open_sources(
    arguments: argparse.Namespace, size: int, in_chans: int | None, *, look: bool = True
) -> list[ImageSet]:
    """Open the data sets that the command line names, separately, and print what is left out or changed.

    Args:
        arguments: The parsed command line.
        size: Side in pixels to which files are resized when read.
        in_chans: Channels with which image folders are read. By default 3 if they contain colour images, else 1.
        look: Look at the headers of files.
    """
    names = read_exclusions(arguments.exclude) if arguments.exclude else frozenset()
    given = [kind for kind in KINDS if getattr(arguments, kind)]
    if len(given) != 1 and given != ["npz", "medmnist"]:
        options = ", ".join("--" + kind.replace("_", "-") for kind in KINDS)
        raise ValueError(f"exactly one of {options} must be given, or the first two together, got {given or 'none'}")
    if given == ["medmnist"] and arguments.window:
        raise ValueError("--window is for images of more than 8 bits, and MedMNIST's have 8")
    sets = []
    for kind in given:
        value = getattr(arguments, kind)
        for text in value if isinstance(value, list) else [value]:
            sets.append(open_source(str(text), arguments, size, in_chans, kind=kind, excluded=names))
    if arguments.exclude:
        sets = [data if data.on_disk else exclude(data, names) for data in sets]
        found = sum(data.excluded for data in sets)
        if found < len(names):
            raise ValueError(
                f"{arguments.exclude} names {len(names)} images, but {len(names) - found} of them are not in "
                f"{', '.join(data.name for data in sets)}; names are like {sets[0].image_name('train', 0)!r}"
            )
    if started_first():  # one process looks for all
        notes = [note for data in sets for note in _notes(data, arguments, look=look)]
        if notes:
            print("\n".join(notes), file=sys.stderr)
    return sets


def open_source(
    text: str,
    arguments: argparse.Namespace,
    size: int,
    in_chans: int | None,
    *,
    kind: str | None = None,
    excluded: Collection[str] = (),
    tested: bool = False,
) -> ImageSet:
    """Open the data set that a text names, see :data:`NAMED`.

    Args:
        text: The text.
        arguments: The parsed command line, for the options of its kind of source.
        size: Side in pixels to which files are resized when read.
        in_chans: Channels as which image folders are read. By default 3 if they contain colour images, else 1.
        kind: One of :data:`KINDS`; by default the one that the text looks like.
        excluded: Images of files to leave out, before they are checked.
        tested: Whether the set is only tested on; then an image folder may be a tree CLASS/IMAGE without splits.

    Raises:
        FileNotFoundError: If there is no such source.
    """
    kind = kind or _kind_of(text)
    group, window = arguments.group, window_of(arguments.window)
    reading = Reading(size, in_chans or 1, window, arguments.fit, arguments.skip_bad_files)
    if kind == "npz":
        own: dict[str, Any] = {"seed": arguments.split_seed, "multi_label": arguments.multi_label}
        return _squared(load_npz(*_path_and_prefix(text), **own, window=window, group=group), reading)
    if kind == "medmnist":
        if group:
            raise ValueError("--group names a key of an npz file, a column or a pattern, and MedMNIST's sets have none")
        data = load_medmnist(text, arguments.root, size=arguments.medmnist_size, download=arguments.download)
        return _squared(data, reading)
    if kind == "radimagenet":  # grey: what takes three channels gets them on its device
        return load_radimagenet(text, reading, labels=arguments.labels, excluded=excluded, group=group)
    files = load_image_folder(text, reading, excluded=excluded, group=group, tested=tested)
    if in_chans is None and in_colour(files):
        colour = dataclasses.replace(reading, in_chans=3)
        return files.changed(lambda images: dataclasses.replace(images, reading=colour))
    return files


def open_tested(text: str, arguments: argparse.Namespace, size: int, in_chans: int) -> ImageSet:
    """Open a data set that is only tested on at one size, with notes for the user; see :func:`open_source`.

    ``--group`` is that of the training set. A set of another kind goes without groups, and a note says so.
    """
    kind, group, notes = _kind_of(text), arguments.group, []
    if group and kind != "radimagenet" and kind != ("image_folder" if "(" in group else "npz"):
        notes = [
            f"{text}: --group {group} is for {'paths' if '(' in group else 'npz files'}, so its images have no groups"
        ]
        arguments = argparse.Namespace(**{**vars(arguments), "group": None})
    data = open_source(text, arguments, size, in_chans, kind=kind, tested=True)
    notes += _notes(data, arguments, tested=True) if started_first() else []
    return dataclasses.replace(_sized(data, size), notes=tuple(notes))


def _path_and_prefix(text: str) -> tuple[str, str]:
    path, separator, prefix = text.rpartition(":")
    return (path, f"{prefix}_") if separator and path.endswith(".npz") else (text, "")


def _kind_of(text: str) -> str:
    if _path_and_prefix(text)[0].endswith(".npz"):
        return "npz"
    if Path(text).is_dir():
        return "radimagenet" if (Path(text) / "radiology_ai").is_dir() else "image_folder"
    if text.isalnum() and text.endswith("mnist"):
        return "medmnist"
    raise FileNotFoundError(f"{text} does not exist: it must be {NAMED}")


def _notes(data: ImageSet, arguments: argparse.Namespace, *, look: bool = True, tested: bool = False) -> list[str]:
    """What the user should know of a data set."""
    what = "1 missing file is" if len(data.missing) == 1 else f"{len(data.missing)} missing files are"
    notes = [f"{what} left out:", *data.missing] if data.missing else []
    notes += data.notes if look or data.on_disk else ()
    if data.excluded:
        what = "1 image is" if data.excluded == 1 else f"{data.excluded} images are"
        notes.append(f"{data.name}: {what} left out by {arguments.exclude}")
    if not tested:  # else all splits are one
        notes += crossing_note(data) + (likely_note(data) if look else [])
    if look and data.on_disk:
        notes += look_over([part.images for part in data.parts.values()])
        refuse_masks(data)
    return notes


def open_joined(arguments: argparse.Namespace, size: int, in_chans: int | None) -> ImageSet:
    """Open the data sets that the command line names, joined into one at one size; see :func:`open_sources`."""
    sets = open_sources(arguments, size, in_chans)
    if len(sets) > 1:
        return join_sets(sets, size)
    return _sized(sets[0], size)


def _sized(data: ImageSet, size: int) -> ImageSet:
    """Resize images in memory. Files are read at their size."""
    return data if data.on_disk else data.changed(lambda images: resize(images, size))


def _squared(data: ImageSet, reading: Reading) -> ImageSet:
    """Make images in memory square, with notes on their size."""
    sizes: Counter[tuple[int, int]] = Counter()
    for part in data.parts.values():
        high, wide = part.images.shape[1:3]
        sizes[wide, high] += len(part)
    notes = tuple(f"{data.name}: {note}" for note in size_notes(sizes, reading))
    return data.changed(
        lambda images: as_square(images, reading.fit, axis=1),
        notes=(*data.notes, *notes),
        stored_side=max(map(max, sizes)),
    )


def describe(data: ImageSet, arguments: argparse.Namespace) -> dict[str, Any]:
    """The description of the data in a run's record."""
    return {
        "name": data.name,
        "classes": data.num_classes,
        **{split: len(part) for split, part in data.parts.items()},
        "skip_bad_files": arguments.skip_bad_files,
        "split_seed": arguments.split_seed,
        "multi_label": data.multi_label,
        "window": window_of(arguments.window),
        "fit": arguments.fit,
        **({"labels": arguments.labels} if arguments.labels else {}),
        **({"group": arguments.group} if arguments.group else {}),
        **({"excluded": data.excluded} if arguments.exclude else {}),
        **({"files_missing": len(data.missing)} if data.missing else {}),
    }
