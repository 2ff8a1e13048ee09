"""Where a command line's images come from: the options that name a source, and the sets that they open."""

import argparse
import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

from .data import SPLITS, ImageSet, Split, join_sets, load_medmnist, load_npz, resize
from .distributed import started_first
from .images import Window
from .radimagenet import load_image_folder, load_radimagenet

__all__ = ["add_source_arguments", "describe", "open_joined", "open_sources"]


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that name where images come from."""
    group = parser.add_argument_group("data, one kind of, or --npz and --medmnist together")
    group.add_argument(
        "--npz", nargs="+", metavar="PATH[:PREFIX]", help="files in MedMNIST's layout; several are joined"
    )
    group.add_argument("--medmnist", nargs="+", metavar="FLAG", help="sets of the medmnist package; several are joined")
    group.add_argument("--radimagenet", type=Path, metavar="ROOT", help="folder of radiology_ai/ and the three tables")
    group.add_argument("--image-folder", type=Path, metavar="ROOT", help="tree {train,val,test}/CLASS/IMAGE")
    group.add_argument("--root", type=Path, default=Path("data"), help="folder of the medmnist files (default: data)")
    group.add_argument("--medmnist-size", type=int, default=28, help="28 (default), 64, 128 or 224")
    group.add_argument("--split-seed", type=int, default=0, help="of npz files without splits (default: 0)")
    group.add_argument("--download", action="store_true", help="let medmnist fetch missing files")
    group.add_argument(
        "--skip-bad-files", action="store_true", help="leave out missing and corrupt files, named, counted"
    )
    group.add_argument("--multi-label", action="store_true", help="keep one-hot labels of npz files as several labels")
    group.add_argument(
        "--window",
        nargs="+",
        metavar="VALUE",
        help="LOW HIGH: the grey values of images of more than 8 bits that become black and white; or auto: each "
        "file's own",
    )


def _window(values: list[str] | None) -> Window:
    if values is None or values == ["auto"]:
        return "auto" if values else None
    try:
        low, high = map(float, values)
    except ValueError:
        raise ValueError(f"--window takes LOW HIGH or auto, got {' '.join(values)}") from None
    if not -math.inf < low < high < math.inf:
        raise ValueError(f"--window needs LOW below HIGH, got {low:g} {high:g}")
    return low, high


def open_sources(arguments: argparse.Namespace, size: int, in_chans: int) -> list[Any]:
    """The sets that the command line names, each by itself."""
    kinds = ("npz", "medmnist", "radimagenet", "image_folder")
    given = [name for name in kinds if getattr(arguments, name)]
    if len(given) != 1 and given != ["npz", "medmnist"]:
        options = ", ".join("--" + name.replace("_", "-") for name in kinds)
        raise ValueError(f"exactly one of {options} must be given, or the first two together, got {given or 'none'}")
    if "npz" in given or "medmnist" in given:
        sets = [
            load_npz(*_path_and_prefix(text), seed=arguments.split_seed, multi_label=arguments.multi_label)
            for text in arguments.npz or ()
        ]
        own = {"size": arguments.medmnist_size, "download": arguments.download}
        return sets + [load_medmnist(flag, arguments.root, **own) for flag in arguments.medmnist or ()]
    own = {"size": size, "skip_bad_files": arguments.skip_bad_files, "window": _window(arguments.window)}
    if arguments.radimagenet:  # grey: what takes three channels gets them on its device
        files, missing = load_radimagenet(arguments.radimagenet, **own)
    else:
        files, missing = load_image_folder(arguments.image_folder, in_chans=in_chans, **own)
    if missing and started_first():
        print("\n".join([f"{len(missing)} missing files are left out:", *missing]), file=sys.stderr)
    return [files]


def _path_and_prefix(text: str) -> tuple[str, str]:
    path, separator, prefix = text.rpartition(":")
    return (path, f"{prefix}_") if separator and path.endswith(".npz") else (text, "")


def open_joined(arguments: argparse.Namespace, size: int, in_chans: int) -> Any:
    """The sets that the command line names, joined into one at one size."""
    sets = open_sources(arguments, size, in_chans)
    if len(sets) > 1:
        return join_sets(sets, size)
    return _sized(sets[0], size) if isinstance(sets[0], ImageSet) else sets[0]


def _sized(data: ImageSet, size: int) -> ImageSet:
    train_, val, test = (Split(resize(split.images, size), split.labels) for split in (data.train, data.val, data.test))
    return dataclasses.replace(data, train=train_, val=val, test=test)


def describe(data: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """What a run's record says of its data."""
    return {
        "name": data.name,
        "classes": data.num_classes,
        **{split: len(getattr(data, split)) for split in SPLITS},
        "skip_bad_files": arguments.skip_bad_files,
        "split_seed": arguments.split_seed,
        "multi_label": data.multi_label,
        "window": _window(arguments.window),
    }
