"""npz files in MedMNIST's layout, checked as a whole."""

import contextlib
import unicodedata
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..utils.files import PathLike
from .data import SPLITS, ImageSet, Split, require_classes, split_stratified
from .images import Window, apply_window, count_unfinite, span

__all__ = ["load_npz"]

GROUPS = ("patient", "patients", "patient_id", "group", "groups", "subject", "subjects", "case", "cases")
"""Keys that look like those of groups."""


def load_npz(
    path: PathLike,
    prefix: str = "",
    *,
    seed: int = 0,
    multi_label: bool = False,
    window: Window = None,
    group: str | None = None,
) -> ImageSet:
    """Load an npz file in MedMNIST's layout and check all of it.

    The keys are ``{train,val,test}_images`` and ``{train,val,test}_labels``, or only ``images`` and ``labels``, which
    are split 70 : 10 : 20, stratified by class. Labels are renumbered 0 to K - 1. If the file lists the labels in use
    (``classes``) and their names (``names``), as the embedded organ patches do, the classes get those names.

    Args:
        path: The file. Pickled objects are not read.
        prefix: Prefix of the keys, for files that hold several data sets, such as ``"mr_"``.
        seed: Seed of the split, if the file has none.
        multi_label: Keep labels of several columns as they are, even if each row has exactly one 1. By default such
            labels are read as one-hot, one label per image, and a warning says so.
        window: The values that become black and white if images do not have 8 bits, or are all 0 or 1; or ``"auto"``
            for each image's own. Without a window, other integers are accepted only if all lie in 0..255.
        group: Key of what belongs together, with or without the splits' names before it.

    Returns:
        The data set, named after the file and the prefix.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the file is not an npz file, or a key is missing, of the wrong type or shape, or out of range.

    Example:
        >>> load_npz("policy_noise/experiments/embedded/organpatches.npz", "mr_").num_classes
        8
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data set {path} does not exist: path must name an npz file in MedMNIST's layout")
    try:
        file = np.load(path, allow_pickle=False)
        with file if hasattr(file, "files") else contextlib.nullcontext():
            if not hasattr(file, "files"):
                raise ValueError("it is a .npy file, a single array")
            keys = list(file.files)
            arrays = {key: file[key] for key in keys if key.startswith(prefix) or key == "names"}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as an npz file without pickled objects: {error}") from error
    name = path.stem + (f":{prefix.rstrip('_')}" if prefix else "")
    whole = (f"{prefix}images", f"{prefix}labels")
    wanted = [f"{prefix}{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    missing = [key for key in wanted if key not in arrays]
    has_whole = all(key in arrays for key in whole)
    if has_whole and 0 < len(missing) < len(wanted):
        raise ValueError(f"{path} holds {list(whole)} beside a part of the splits: it lacks {missing}")
    if not missing:
        raw = {split: (arrays[f"{prefix}{split}_images"], arrays[f"{prefix}{split}_labels"]) for split in SPLITS}
        if has_whole:
            warnings.warn(f"{path}: {list(whole)} are ignored, as it also holds the splits {wanted[::2]}", stacklevel=2)
    elif has_whole:
        raw = {"all": (arrays[whole[0]], arrays[whole[1]])}
    else:
        offered = _prefixes(keys)
        if prefix not in offered and offered:
            choices = ", ".join(f"{path.name}:{own.rstrip('_')}" if own else path.name for own in offered)
            raise ValueError(f"{path} has no set {prefix.rstrip('_')!r}: it holds {choices}")
        raise ValueError(
            f"{path} lacks the keys {missing} (and {list(whole)}, which would be split by seed); it holds "
            f"{sorted(keys)[:20]}"
        )
    where = {split: f"{path}, {prefix}{'' if split == 'all' else split + '_'}" for split in raw}
    binary = _is_binary([images for images, _ in raw.values()])
    raw = {
        split: (_as_bytes(where[split], _grey_axis_dropped(images), window, binary), labels)
        for split, (images, labels) in raw.items()
    }
    for split, (images, labels) in raw.items():
        _check_arrays(where[split], images, labels)
    columns = {labels.shape[1] if _is_multi(labels) else 1 for _, labels in raw.values()}
    if len(columns) > 1:
        raise ValueError(f"{path}: the splits' labels must have the same number of columns, got {sorted(columns)}")
    if not multi_label and all(_is_multi(part) and (part.sum(1) == 1).all() for _, part in raw.values()):
        warnings.warn(
            f"{path}: labels have exactly one 1 in every row and are read as one label per image; --multi-label "
            "(multi_label=True) treats each column as a label of its own",
            stacklevel=2,
        )
        raw = {split: (images, part.argmax(1)) for split, (images, part) in raw.items()}
    classes = _classes(path, prefix, arrays, [labels for _, labels in raw.values()])
    splits = {
        split: Split(
            images,
            labels.astype(np.int64) if _is_multi(labels) else np.searchsorted(classes, labels.ravel().astype(np.int64)),
            _groups(path, prefix, arrays, split, group, len(images)) if group else None,
        )
        for split, (images, labels) in raw.items()
    }
    if "all" in splits:
        splits = split_stratified(splits["all"], seed)
    names = _class_names(path, arrays.get("names"), classes)
    notes = () if group else tuple(_unused_groups(name, prefix, keys))
    result = ImageSet(name, splits["train"], splits["val"], splits["test"], names, {}, notes=notes)
    shapes = {split: part.images.shape[1:] for split, part in result.parts.items()}
    if len({shape[2:] for shape in shapes.values()}) > 1:
        raise ValueError(f"{path}: the splits' images must have equally many channels, got {shapes}")
    require_classes(result, str(path))
    return result


def _prefixes(keys: list[str]) -> list[str]:
    """The prefixes under which a file holds sets; "" for one without."""
    found: dict[str, None] = {}
    for key in keys:
        for ending in ("train_images", "images"):
            if key.endswith(ending) and (key == ending or key[: -len(ending)].endswith("_")):
                own = key[: -len(ending)]
                if f"{own}{ending.replace('images', 'labels')}" in keys and not own.endswith(("val_", "test_")):
                    found[own] = None
                break
    return list(found)


def _unused_groups(name: str, prefix: str, keys: list[str]) -> Iterator[str]:
    """Say that a file has a key that may be given as the group."""
    for key in GROUPS:
        if f"{prefix}{key}" in keys or f"{prefix}train_{key}" in keys:
            yield f"{name}: it has the key {key}; --group {key} keeps such images in one split, or says which cross"


def _grey_axis_dropped(images: np.ndarray) -> np.ndarray:
    """(N, 1, H, W) and (N, H, W, 1) as (N, H, W)."""
    if images.ndim == 4 and 1 in (images.shape[1], images.shape[3]):
        return images[:, 0] if images.shape[1] == 1 else images[..., 0]
    return images


def _groups(path: Path, prefix: str, arrays: dict[str, np.ndarray], split: str, group: str, count: int) -> np.ndarray:
    """What belongs together in a split, as texts."""
    key = f"{prefix}{group}" if split == "all" else f"{prefix}{split}_{group}"
    if key not in arrays:
        raise ValueError(f"{path} has no key {key!r}, which --group {group} asks for; it holds {sorted(arrays)[:20]}")
    if arrays[key].size != count:
        raise ValueError(f"{path}, {key} must hold one entry for each of {count} images, got {arrays[key].shape}")
    return arrays[key].reshape(-1).astype(str)


def _is_binary(parts: list[np.ndarray]) -> bool:
    """Whether all images are of 0 and 1."""
    whole = all(part.dtype.kind in "iub" and part.size for part in parts)
    return whole and min(int(part.min()) for part in parts) == 0 and max(int(part.max()) for part in parts) == 1


def _as_bytes(where: str, images: np.ndarray, window: Window, binary: bool) -> np.ndarray:
    """Map images to 8 bits through the window. uint8 arrays and arrays that are not numeric stay as they are."""
    if images.dtype.kind not in "iufb" or not images.size or (images.dtype == np.uint8 and not binary):
        return images
    if window is not None:
        if bad := count_unfinite(images):
            warnings.warn(
                f"{where}images: {bad} values are not finite: NaN and -inf become black, +inf white", stacklevel=3
            )
        result = np.empty(images.shape, np.uint8)
        for index, image in enumerate(images):  # not all at once: it takes 8 bytes a pixel
            result[index] = apply_window(image, window)
        return result
    if binary:
        raise ValueError(f"{where}images are all 0 or 1, which is black: pass --window 0 1, or save them as 0 and 255")
    if images.dtype.kind == "f" or images.min() < 0 or images.max() > 255:
        raise ValueError(
            f"{where}images must be uint8, got {images.dtype} with values {span(images)}: pass --window LOW HIGH, the "
            "values that become black and white, or --window auto for each image's own"
        )
    return images.astype(np.uint8)


def _check_arrays(where: str, images: np.ndarray, labels: np.ndarray) -> None:
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(
            f"{where}images must be uint8 of shape (N, H, W) or (N, H, W, 3), got {images.dtype} {images.shape}"
        )
    if labels.dtype.kind in "US":
        raise ValueError(
            f"{where}labels must be integers, got texts such as {str(labels.flat[0])!r}: number them from 0, and give "
            "the texts in that order under the key 'names'"
        )
    if labels.dtype.kind not in "iub" or labels.ndim not in (1, 2):
        raise ValueError(
            f"{where}labels must be integers of shape (N,), (N, 1) or (N, labels), got {labels.dtype} {labels.shape}"
        )
    if len(images) == 0:
        raise ValueError(f"{where}images is empty")
    if len(labels) != len(images):
        raise ValueError(f"{where}labels must hold one row for each of {len(images)} images, got {len(labels)}")
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.max() > 1:
        raise ValueError(f"{where}labels with {labels.shape[1]} columns must be 0 or 1, got {labels.max()}")
    if labels.min() < 0:
        raise ValueError(f"{where}labels must not be negative, got {labels.min()}")


def _is_multi(labels: np.ndarray) -> bool:
    return labels.ndim == 2 and labels.shape[1] > 1


def _classes(path: Path, prefix: str, arrays: dict[str, np.ndarray], labels: list[np.ndarray]) -> np.ndarray:
    """The labels that occur, sorted. With several labels per image, the numbers of the columns."""
    if _is_multi(labels[0]):
        return np.arange(labels[0].shape[1])
    found = sorted({int(label) for part in labels for label in np.unique(part)})
    key = f"{prefix}classes"
    if key in arrays:
        declared = sorted(set(map(int, arrays[key].ravel())))
        outside = sorted(set(found) - set(declared))
        if outside:
            raise ValueError(f"{path}: labels {outside} are not among {key} {declared}")
        return np.array(declared)
    absent = sorted(set(range(len(found))) - set(found))  # never as many as a label's value
    if absent:
        raise ValueError(
            f"{path}: labels must run from 0 to {found[-1]} without a hole, but {absent[:10]} do not occur; a key "
            f"{key!r} with the labels in use would allow that"
        )
    return np.array(found)


def _class_names(path: Path, names: np.ndarray | None, classes: np.ndarray) -> tuple[str, ...]:
    if names is None:
        return tuple(f"class {label}" for label in classes)
    if classes[-1] >= len(names):
        raise ValueError(f"{path}: label {classes[-1]} is out of the range of names, which holds {len(names)}")
    found = tuple(unicodedata.normalize("NFC", str(names[label])) for label in classes)
    if len(set(found)) < len(found):
        again = sorted({name for name in found if found.count(name) > 1})
        raise ValueError(f"{path}: names must differ from one another, and {again[:10]} occur more than once")
    return found
