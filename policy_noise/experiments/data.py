"""Image sets held in memory: npz files in MedMNIST's layout, the ``medmnist`` package, and several of them joined."""

import contextlib
import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = [
    "SPLITS",
    "ImageSet",
    "Split",
    "fingerprint",
    "join_sets",
    "load_medmnist",
    "load_npz",
    "match_channels",
    "require_classes",
    "resize",
    "split_stratified",
    "to_tensor",
]

PathLike = str | os.PathLike[str]

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    Args:
        images: uint8, (N, H, W) or (N, H, W, 3).
        labels: int64, (N,) with values 0 to K - 1; or for several labels an image (N, K) of 0 and 1.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.images)

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images at these positions, and the positions of those that could be read: here all."""
        positions = np.asarray(indices)
        return self.images[positions], positions

    def take(self, indices: np.ndarray) -> "Split":
        """The images at these positions."""
        return Split(self.images[indices], self.labels[indices])

    def content(self) -> Iterator[bytes | memoryview]:
        """What :func:`fingerprint` hashes: every pixel and every label."""
        for array in (self.images, self.labels):
            yield f"{array.dtype} {array.shape}".encode()
            yield memoryview(np.ascontiguousarray(array)).cast("B")


@dataclass(frozen=True)
class ImageSet:
    """A data set: three splits and the names of its classes.

    Args:
        name: For tables and pictures.
        train: Training split.
        val: Validation split, to choose by.
        test: Test split, to report.
        class_names: One for each class.
        groups: For each class the kinds that reports are broken down by, such as ``{"modality": ("CT", "MR", ...)}``.
    """

    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]

    @property
    def num_classes(self) -> int:
        """Classes, or labels where an image may have several."""
        return len(self.class_names)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.train.labels.ndim == 2

    @property
    def in_chans(self) -> int:
        """Channels of the images: 1 or 3."""
        return 1 if self.train.images.ndim == 3 else 3


def load_npz(path: PathLike, prefix: str = "", *, seed: int = 0, multi_label: bool = False) -> ImageSet:
    """Load an npz file in MedMNIST's layout, and check all of it.

    The keys are ``{train,val,test}_images`` and ``{train,val,test}_labels``; or ``images`` and ``labels`` alone,
    which are split 70 : 10 : 20, stratified by class. Labels are given back as 0 to K - 1. Where the file says which
    labels occur (``classes``) and what they are called (``names``), as the embedded organ patches do, classes carry
    those names.

    Args:
        path: The file. No pickled objects are read.
        prefix: Of the keys, for files that hold several sets, such as ``"mr_"``.
        seed: Of the split, where the file has none.
        multi_label: Keep labels of several columns as they are, even if each row has exactly one 1. By default those
            are one-hot: one label an image, which a warning says.

    Returns:
        The set, named after the file and the prefix.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the file is no npz or a key is missing, of the wrong type or shape, or out of its range.

    Example:
        >>> load_npz("examples/data/organpatches.npz", "mr_").num_classes
        8
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"data set {path} does not exist: path must name an npz file in MedMNIST's layout")
    try:
        file = np.load(path, allow_pickle=False)
        with file if hasattr(file, "files") else contextlib.nullcontext():
            if not hasattr(file, "files"):
                raise ValueError("it is a .npy file, one array alone")
            arrays = {key: file[key] for key in file.files if key.startswith(prefix) or key == "names"}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"{path} cannot be read as an npz file without pickled objects: {error}") from error
    name = path.stem + (f":{prefix.rstrip('_')}" if prefix else "")
    whole = (f"{prefix}images", f"{prefix}labels")
    wanted = [f"{prefix}{split}_{kind}" for split in SPLITS for kind in ("images", "labels")]
    if all(key in arrays for key in whole):
        raw = {"all": (arrays[whole[0]], arrays[whole[1]])}
    elif all(key in arrays for key in wanted):
        raw = {split: (arrays[f"{prefix}{split}_images"], arrays[f"{prefix}{split}_labels"]) for split in SPLITS}
    else:
        missing = [key for key in wanted if key not in arrays]
        raise ValueError(
            f"{path} lacks the keys {missing} (and {list(whole)}, which would be split by seed); it holds "
            f"{sorted(arrays)[:20]}"
        )
    raw = {split: (_grey_axis_dropped(images), labels) for split, (images, labels) in raw.items()}
    for split, (images, labels) in raw.items():
        _check_arrays(f"{path}, {prefix}{'' if split == 'all' else split + '_'}", images, labels)
    if not multi_label and all(_is_multi(part) and (part.sum(1) == 1).all() for _, part in raw.values()):
        warnings.warn(
            f"{path}: labels have exactly one 1 in every row and are taken as one label an image; --multi-label "
            "(multi_label=True) trains each column by itself",
            stacklevel=2,
        )
        columns = {part.shape[1] for _, part in raw.values()}
        if len(columns) > 1:
            raise ValueError(f"{path}: the splits' labels must have the same number of columns, got {sorted(columns)}")
        raw = {split: (images, part.argmax(1)) for split, (images, part) in raw.items()}
    classes = _classes(path, prefix, arrays, [labels for _, labels in raw.values()])
    splits = {split: Split(images, _relabel(labels, classes)) for split, (images, labels) in raw.items()}
    if "all" in splits:
        splits = split_stratified(splits["all"], seed)
    names = _class_names(path, arrays.get("names"), classes)
    result = ImageSet(name, splits["train"], splits["val"], splits["test"], names, {})
    _check_set(str(path), result)
    return result


def _grey_axis_dropped(images: np.ndarray) -> np.ndarray:
    """(N, 1, H, W) and (N, H, W, 1) as (N, H, W)."""
    if images.ndim == 4 and 1 in (images.shape[1], images.shape[3]):
        return images[:, 0] if images.shape[1] == 1 else images[..., 0]
    return images


def _check_arrays(where: str, images: np.ndarray, labels: np.ndarray) -> None:
    if images.dtype.kind in "iuf" and images.dtype != np.uint8 and images.size:
        raise ValueError(
            f"{where}images must be uint8, got {images.dtype} with values {images.min()} to {images.max()}: scale them "
            "to 0..255 by one window for all images, and save them as uint8"
        )
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise ValueError(
            f"{where}images must be uint8 of shape (N, H, W) or (N, H, W, 3), got {images.dtype} {images.shape}"
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
    """The labels that occur, sorted; each column's number where an image has several."""
    columns = {part.shape[1] if _is_multi(part) else 1 for part in labels}
    if len(columns) > 1:
        raise ValueError(f"{path}: the splits' labels must have the same number of columns, got {sorted(columns)}")
    if _is_multi(labels[0]):
        return np.arange(labels[0].shape[1])
    found = np.unique(np.concatenate([part.ravel() for part in labels])).astype(np.int64)
    key = f"{prefix}classes"
    if key in arrays:
        declared = np.sort(arrays[key].ravel().astype(np.int64))
        outside = np.setdiff1d(found, declared)
        if len(outside):
            raise ValueError(f"{path}: labels {outside.tolist()} are not among {key} {declared.tolist()}")
        return declared
    if not np.array_equal(found, np.arange(len(found))):
        absent = np.setdiff1d(np.arange(len(found)), found)  # never as many as a label's value
        raise ValueError(
            f"{path}: labels must run from 0 to {found[-1]} without a hole, but {absent.tolist()[:10]} do not occur; "
            f"a key {key!r} with the labels in use would allow that"
        )
    return found


def _relabel(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    if _is_multi(labels):
        return labels.astype(np.int64)
    return np.searchsorted(classes, labels.ravel().astype(np.int64))


def _class_names(path: Path, names: np.ndarray | None, classes: np.ndarray) -> tuple[str, ...]:
    if names is None:
        return tuple(f"class {label}" for label in classes)
    if classes[-1] >= len(names):
        raise ValueError(f"{path}: label {classes[-1]} is out of the range of names, which holds {len(names)}")
    return tuple(str(names[label]) for label in classes)


def _check_set(where: str, images: ImageSet) -> None:
    """Equal image sizes in all splits, and every class in each of them."""
    shapes = {split: getattr(images, split).images.shape[1:] for split in SPLITS}
    if len({shape[2:] for shape in shapes.values()}) > 1:
        raise ValueError(f"{where}: the splits' images must have equally many channels, got {shapes}")
    require_classes(images, where)


def fingerprint(data: Any) -> str:
    """A hash of a data set's content, to tell whether it is still the one that a run began with.

    Sets in memory are hashed pixel by pixel. Files on disk are not opened: their paths below the root, their sizes in
    bytes and their labels are hashed, so that another file of the same name and size goes unseen. Class names count in
    both; where the data lies does not.

    Args:
        data: An :class:`ImageSet` or :class:`~policy_noise.experiments.files.FileSet`.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(json.dumps(list(data.class_names)).encode())
    for split in SPLITS:
        for part in getattr(data, split).content():
            digest.update(part)
    return digest.hexdigest()


def require_classes(data: Any, where: str | None = None) -> None:
    """Check that every split has what training and scoring need of each class, before anything is trained.

    Where bad files are left out, images are decoded until each class has shown one that can be read.

    Args:
        data: An :class:`ImageSet` or :class:`~policy_noise.experiments.files.FileSet`.
        where: What errors call it, by default its name.

    Raises:
        ValueError: If a split has no image of a class, or none that can be read; or, with several labels an image, if
            a label is 1 in all images of a split that is scored.
    """
    where = data.name if where is None else where
    for split in SPLITS:
        part = getattr(data, split)
        several = part.labels.ndim == 2
        counts = part.labels.sum(0) if several else np.bincount(part.labels, minlength=data.num_classes)
        absent = [data.class_names[label] for label in np.flatnonzero(counts == 0)]
        if absent:
            raise ValueError(f"{where}: the {split} split has no image of {absent[:10]}")
        always = np.flatnonzero(counts == len(part)) if several and split != "train" else ()
        if len(always):
            names = [data.class_names[label] for label in always[:10]]
            raise ValueError(f"{where}: every image of the {split} split has {names}, which cannot be scored")
        if getattr(part, "skip_corrupt", False):
            _require_readable(data, split, where)


def _require_readable(data: Any, split: str, where: str) -> None:
    part = getattr(data, split)
    order = np.argsort(part.labels, kind="stable")
    bounds = np.searchsorted(part.labels[order], np.arange(data.num_classes + 1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training will name them
        for label, name in enumerate(data.class_names):
            members = order[bounds[label] : bounds[label + 1]]
            if not any(len(part.read([index])[1]) for index in members):
                raise ValueError(
                    f"{where}: the {split} split has no image of {name!r} that can be read: all "
                    f"{len(members)} files are bad, such as {part.path(int(members[0]))}"
                )


def split_stratified(whole: Split, seed: int, shares: Sequence[float] = (0.7, 0.1, 0.2)) -> dict[str, Split]:
    """Divide images into train, val and test with each class in the same shares.

    Args:
        whole: All images, one label each.
        seed: Of the draw.
        shares: Of train, val and test.

    Raises:
        ValueError: If a class has fewer than three images, or images have several labels.
    """
    if whole.labels.ndim == 2:
        raise ValueError("images with several labels cannot be split by class: give train, val and test splits")
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for label in np.unique(whole.labels):
        indices = rng.permutation(np.flatnonzero(whole.labels == label))
        if len(indices) < len(SPLITS):
            raise ValueError(f"label {label} has {len(indices)} images: three splits need at least one each")
        val, test = (max(1, round(share * len(indices))) for share in shares[1:])
        parts["val"].append(indices[:val])
        parts["test"].append(indices[val : val + test])
        parts["train"].append(indices[val + test :])
    return {split: whole.take(rng.permutation(np.concatenate(chosen))) for split, chosen in parts.items()}


def load_medmnist(flag: str, root: PathLike, *, size: int = 28, download: bool = False) -> ImageSet:
    """Load a 2-D MedMNIST set through the ``medmnist`` package.

    Args:
        flag: Such as ``"pneumoniamnist"``; also multi-label ``"chestmnist"`` and 3-channel sets.
        root: Folder that holds the npz files.
        size: 28, 64, 128 or 224 pixels.
        download: Fetch a missing file. Never done without being asked.

    Raises:
        FileNotFoundError: If the folder or the file is missing.
        ValueError: If the flag is unknown, not 2-D or has no such size.
    """
    import medmnist
    from medmnist import INFO

    flat = sorted(name for name in INFO if not name.endswith("3d"))
    if flag not in flat:
        raise ValueError(f"flag must be one of {flat}, got {flag!r}")
    info = INFO[flag]
    if size not in (28, 64, 128, 224):
        raise ValueError(f"size must be 28, 64, 128 or 224, got {size!r}")
    root = Path(root)
    path = root / (f"{flag}.npz" if size == 28 else f"{flag}_{size}.npz")
    if download and not path.is_file():
        root.mkdir(parents=True, exist_ok=True)
        getattr(medmnist, info["python_class"])(split="train", root=str(root), size=size, download=True)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist: download it into {root}, or pass --download to have it fetched"
        )
    images = load_npz(path, multi_label="multi-label" in info["task"])
    names = tuple(str(info["label"][key]) for key in sorted(info["label"], key=int))
    if len(names) != images.num_classes:
        raise ValueError(f"{path} holds {images.num_classes} classes, and {flag} has {len(names)}: a foreign file")
    return ImageSet(path.stem, images.train, images.val, images.test, names, {})


def join_sets(sets: Sequence[ImageSet], size: int) -> ImageSet:
    """Join several sets into one task whose classes are (set, class), in RadImageNet's manner.

    Args:
        sets: Sets with one label an image.
        size: Side in pixels to which all images are resized.

    Returns:
        One set with classes ``"set/class"``, and ``groups["set"]``. Grey images become three channels only where a
        set has three.

    Raises:
        ValueError: If there is none, two have the same name, or images have several labels.
    """
    if not sets:
        raise ValueError("sets must hold at least one image set")
    if len({part.name for part in sets}) < len(sets):
        raise ValueError(f"sets must have different names, got {[part.name for part in sets]}")
    if any(part.multi_label for part in sets):
        raise ValueError("sets with several labels an image cannot be joined")
    colour = any(part.in_chans == 3 for part in sets)
    offsets = np.cumsum([0, *(part.num_classes for part in sets)])
    splits = {}
    for split in SPLITS:
        images, labels = [], []
        for part, offset in zip(sets, offsets, strict=False):
            block = resize(getattr(part, split).images, size)
            images.append(np.repeat(block[..., None], 3, axis=3) if colour and block.ndim == 3 else block)
            labels.append(getattr(part, split).labels + offset)
        splits[split] = Split(np.concatenate(images), np.concatenate(labels))
    return ImageSet(
        name="+".join(part.name for part in sets),
        class_names=tuple(f"{part.name}/{name}" for part in sets for name in part.class_names),
        groups={"set": tuple(part.name for part in sets for _ in part.class_names)},
        **splits,
    )


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 images to a square, antialiased.

    Shape:
        - images: (N, H, W) or (N, H, W, 3).
        - Output: (N, size, size) or (N, size, size, 3).
    """
    if images.shape[1:3] == (size, size):
        return images
    from PIL import Image

    filter_ = Image.Resampling.BILINEAR  # antialiased in Pillow
    return np.stack([np.asarray(Image.fromarray(image).resize((size, size), filter_)) for image in images])


def to_tensor(images: np.ndarray, mean: float, std: float) -> torch.Tensor:
    """Normalise uint8 images: (x / 255 - mean) / std, the same for all channels.

    Shape:
        - images: (N, H, W) or (N, H, W, 3).
        - Output: (N, 1, H, W) or (N, 3, H, W), fp32, channels last.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    tensor = tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)
    return tensor.float().div_(255).sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def match_channels(images: torch.Tensor, in_chans: int) -> torch.Tensor:
    """Repeat grey images as three channels, or average three into one, where a model takes other images.

    Shape:
        - images: (N, 1 or 3, H, W).
        - Output: (N, in_chans, H, W).
    """
    if images.shape[1] == in_chans:
        return images
    return images.expand(-1, in_chans, -1, -1) if images.shape[1] == 1 else images.mean(1, keepdim=True)
