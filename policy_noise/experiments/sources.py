"""The command-line options that name a source of images, and the data sets that they open."""

import argparse
import dataclasses
import math
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from .data import SPLITS, ImageSet, Split, join_sets, resize
from .exclusions import exclude, read_exclusions
from .file_sets import FileSet
from .folders import load_image_folder
from .headers import in_colour, look_over
from .images import Window
from .medmnist import load_medmnist
from .npz import load_npz
from .tables import load_radimagenet
from .world import started_first

__all__ = ["NAMED", "add_source_arguments", "describe", "open_joined", "open_named", "open_sources", "window_of"]


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


def open_sources(arguments: argparse.Namespace, size: int, in_chans: int | None, *, look: bool = True) -> list[Any]:
    """Open the data sets that the command line names, separately, and print what is left out or dropped.

    Args:
        arguments: The parsed command line.
        size: Side in pixels to which files are resized when read.
        in_chans: Channels with which image folders are read. By default 3 if they contain colour images, else 1.
        look: Look at the headers of files.
    """
    names = read_exclusions(arguments.exclude) if arguments.exclude else frozenset()
    sets, missing = _open(arguments, size, in_chans, names)
    if arguments.exclude:
        sets = [data if isinstance(data, FileSet) else exclude(data, names) for data in sets]
        found = sum(data.excluded for data in sets)
        if found < len(names):
            raise ValueError(
                f"{arguments.exclude} names {len(names)} images, but {len(names) - found} of them are not in "
                f"{', '.join(data.name for data in sets)}; names are like {sets[0].image_name('train', 0)!r}"
            )
    what = "1 missing file is" if len(missing) == 1 else f"{len(missing)} missing files are"
    notes = [f"{what} left out:", *missing] if missing else []
    for data in sets:
        notes += getattr(data, "notes", ())
        if data.excluded:
            what = "1 image is" if data.excluded == 1 else f"{data.excluded} images are"
            notes.append(f"{data.name}: {what} left out by {arguments.exclude}")
        if look and isinstance(data, FileSet) and started_first():  # one process looks for all
            notes += look_over([getattr(data, split) for split in SPLITS])
    if notes and started_first():
        print("\n".join(notes), file=sys.stderr)
    return sets


def _open(
    arguments: argparse.Namespace, size: int, in_chans: int | None, excluded: Collection[str]
) -> tuple[list[Any], list[str]]:
    """The data sets and the missing files. Exclusions are already applied to data sets of files."""
    kinds = ("npz", "medmnist", "radimagenet", "image_folder")
    given = [name for name in kinds if getattr(arguments, name)]
    if len(given) != 1 and given != ["npz", "medmnist"]:
        options = ", ".join("--" + name.replace("_", "-") for name in kinds)
        raise ValueError(f"exactly one of {options} must be given, or the first two together, got {given or 'none'}")
    window = window_of(arguments.window)
    if "npz" in given or "medmnist" in given:
        if window is not None and "npz" not in given:
            raise ValueError("--window is for images of more than 8 bits, and MedMNIST's have 8")
        own: dict[str, Any] = {"seed": arguments.split_seed, "multi_label": arguments.multi_label, "window": window}
        sets = [load_npz(*_path_and_prefix(text), **own) for text in arguments.npz or ()]
        own = {"size": arguments.medmnist_size, "download": arguments.download}
        return sets + [load_medmnist(flag, arguments.root, **own) for flag in arguments.medmnist or ()], []
    own = {"size": size, "skip_bad_files": arguments.skip_bad_files, "window": window, "excluded": excluded}
    if arguments.radimagenet:  # grey: what takes three channels gets them on its device
        files, missing = load_radimagenet(arguments.radimagenet, **own)
    else:
        files, missing = load_image_folder(arguments.image_folder, in_chans=in_chans or 1, **own)
        if in_chans is None and in_colour(files):
            parts = {split: dataclasses.replace(getattr(files, split), in_chans=3) for split in SPLITS}
            files = dataclasses.replace(files, **parts)
    return [files], missing


def _path_and_prefix(text: str) -> tuple[str, str]:
    path, separator, prefix = text.rpartition(":")
    return (path, f"{prefix}_") if separator and path.endswith(".npz") else (text, "")


def open_named(text: str, arguments: argparse.Namespace, size: int, in_chans: int) -> Any:
    """Open the data set that a text names, see :data:`NAMED`.

    Args:
        text: The text.
        arguments: The parsed command line, for the options of its kind of source.
        size: Side in pixels to which files are resized when read.
        in_chans: Channels as which image folders are read.

    Raises:
        FileNotFoundError: If there is no such source.
    """
    files: dict[str, Any] = {"size": size, "skip_bad_files": arguments.skip_bad_files}
    files["window"] = window_of(arguments.window)
    path, prefix = _path_and_prefix(text)
    if path.endswith(".npz"):
        own = {"seed": arguments.split_seed, "multi_label": arguments.multi_label, "window": files["window"]}
        return load_npz(path, prefix, **own)
    if (Path(text) / "radiology_ai").is_dir():
        found, _ = load_radimagenet(text, in_chans=in_chans, **files)
        return found
    if Path(text).is_dir():
        found, _ = load_image_folder(text, in_chans=in_chans, **files)
        return found
    if text.isalnum() and text.endswith("mnist"):
        return load_medmnist(text, arguments.root, size=arguments.medmnist_size, download=arguments.download)
    raise FileNotFoundError(f"{text} does not exist: it must be {NAMED}")


def open_joined(arguments: argparse.Namespace, size: int, in_chans: int | None) -> Any:
    """Open the data sets that the command line names, joined into one at one size; see :func:`open_sources`."""
    sets = open_sources(arguments, size, in_chans)
    if len(sets) > 1:
        return join_sets(sets, size)
    return _sized(sets[0], size) if isinstance(sets[0], ImageSet) else sets[0]


def _sized(data: ImageSet, size: int) -> ImageSet:
    train_, val, test = (Split(resize(split.images, size), split.labels) for split in (data.train, data.val, data.test))
    return dataclasses.replace(data, train=train_, val=val, test=test)


def describe(data: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """The description of the data in a run's record."""
    return {
        "name": data.name,
        "classes": data.num_classes,
        **{split: len(getattr(data, split)) for split in SPLITS},
        "skip_bad_files": arguments.skip_bad_files,
        "split_seed": arguments.split_seed,
        "multi_label": data.multi_label,
        "window": window_of(arguments.window),
        **({"excluded": data.excluded} if arguments.exclude else {}),
        **({"files_missing": data.files_missing} if getattr(data, "files_missing", 0) else {}),
    }
