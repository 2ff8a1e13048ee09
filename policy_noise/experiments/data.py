"""Data sets in memory, checks that apply to every data set, and joining several of them."""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = [
    "SPLITS",
    "ImageSet",
    "Split",
    "channels_first",
    "fingerprint",
    "fingerprint_of",
    "join_sets",
    "match_channels",
    "require_classes",
    "require_each",
    "resize",
    "split_stratified",
    "to_tensor",
]

SPLITS = ("train", "val", "test")
SHARES = (0.1, 0.2)
"""Shares of validation and test images where a set has no splits."""


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    Args:
        images: uint8, (N, H, W) or (N, H, W, 3), or :class:`~policy_noise.experiments.file_sets.Files`, which are read
            when they are needed; also what else has their methods ``read`` and ``content``.
        labels: int64, (N,) with values 0 to K - 1; or (N, K) of 0 and 1 if an image may have several labels.
        groups: What belongs together, such as the patient, (N,) text, or None if unknown.
    """

    images: Any
    labels: np.ndarray
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def in_memory(self) -> bool:
        """Whether images are in memory."""
        return isinstance(self.images, np.ndarray)

    @property
    def reading(self) -> Any:
        """How files become pixels; None for images in memory."""
        return None if self.in_memory else self.images.reading

    @property
    def in_chans(self) -> int:
        """Channels of the images: 1 or 3."""
        return self.reading.in_chans if self.reading else 1 if self.images.ndim == 3 else 3

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The readable images at these positions, uint8, and their positions.

        Raises:
            ValueError: If a file cannot be read and such files are not left out. The message names the file.
        """
        positions = np.asarray(indices)
        return (self.images[positions], positions) if self.in_memory else self.images.read(positions)

    def take(self, indices: np.ndarray) -> "Split":
        """The images at these positions."""
        groups = None if self.groups is None else self.groups[indices]
        return Split(self.images[indices], self.labels[indices], groups)

    def content(self) -> Iterator[bytes | memoryview]:
        """The bytes that :func:`fingerprint` hashes: of arrays every pixel, and every label."""
        for part in (self.images, self.labels):
            if isinstance(part, np.ndarray):
                yield f"{part.dtype} {part.shape}".encode()
                yield np.ascontiguousarray(part).data.cast("B")
            else:
                yield from part.content()


@dataclass(frozen=True)
class ImageSet:
    """A data set, in memory or on disk: three splits and the names of its classes.

    Args:
        name: Name for tables and figures.
        train: Training split.
        val: Validation split, for choices.
        test: Test split, for reported results.
        class_names: One name per class.
        groups: Groupings of the classes for reports, one entry per class, such as ``{"modality": ("CT", "MR", ...)}``.
        excluded: Number of images that an exclusion list removed.
        notes: Messages for the user, to be printed at the start.
        missing: Files that a table names and that are not there.
        stored_side: Larger side in pixels of images in memory, as they were before they were resized.
    """

    name: str
    train: Split
    val: Split
    test: Split
    class_names: tuple[str, ...]
    groups: dict[str, tuple[str, ...]]
    excluded: int = 0
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    stored_side: int | None = None

    @property
    def parts(self) -> dict[str, Split]:
        """The splits by name."""
        return {split: getattr(self, split) for split in SPLITS}

    def changed(self, change: Callable[[Any], Any], **more: Any) -> "ImageSet":
        """The same set with the images of each split changed, and perhaps other entries."""
        for name, part in self.parts.items():
            more[name] = dataclasses.replace(part, images=change(part.images))
        return dataclasses.replace(self, **more)

    @property
    def on_disk(self) -> bool:
        """Whether images are files that are read when they are needed."""
        return not self.train.in_memory

    def image_name(self, split: str, index: int) -> str:
        """An image's name in lists: a file's path below the root, or ``set/split/position``, counted from 0."""
        return self.parts[split].images.below_root(index) if self.on_disk else f"{self.name}/{split}/{index}"

    @property
    def num_classes(self) -> int:
        """Number of classes, or of labels if an image may have several."""
        return len(self.class_names)

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return self.train.labels.ndim == 2

    @property
    def in_chans(self) -> int:
        """Channels of the images: 1 or 3."""
        return self.train.in_chans


def fingerprint(data: ImageSet) -> str:
    """Hash a data set, to check that a resumed run uses the data that it began with.

    Sets in memory are hashed pixel by pixel. Files on disk are not opened: their paths below the root, sizes in bytes
    and labels are hashed. A file replaced by another of the same name and size is therefore not noticed. Class names
    are part of the hash; the location of the data is not.

    Returns:
        64 hexadecimal digits.
    """
    return fingerprint_of(data.class_names, list(data.parts.values()))


def fingerprint_of(class_names: Sequence[str], parts: Sequence[Split]) -> str:
    """The hash of :func:`fingerprint` for any splits."""
    digest = hashlib.sha256(json.dumps(list(class_names)).encode())
    for part in parts:
        for block in part.content():
            digest.update(block)
    return digest.hexdigest()


def require_classes(data: ImageSet, where: str | None = None) -> None:
    """Check, before anything is trained, that every split has the images of each class that training and scoring need.

    Args:
        data: The set.
        where: The data set's name in error messages. By default its own name.

    Raises:
        ValueError: As :func:`require_each`.
    """
    for split, part in data.parts.items():
        place = f"{data.name if where is None else where}: the {split} split"
        require_each(part, data.class_names, place, scored=split != "train")


def require_each(part: Split, class_names: Sequence[str], where: str, *, scored: bool = True) -> None:
    """Check that a split has readable images of each class.

    If bad files are left out, images are decoded until one readable image of each class is found.

    Args:
        part: The split.
        class_names: Of its classes.
        where: Its name in error messages.
        scored: Whether it is scored.

    Raises:
        ValueError: If the split has no readable image of a class. With several labels per image, also if every image of
            a scored split has the same label.
    """
    several = part.labels.ndim == 2
    counts = part.labels.sum(0) if several else np.bincount(part.labels, minlength=len(class_names))
    absent = [class_names[label] for label in np.flatnonzero(counts == 0).tolist()]
    if absent:
        raise ValueError(f"{where} has no image of {absent[:10]}")
    always = (
        [class_names[label] for label in np.flatnonzero(counts == len(part)).tolist()] if several and scored else []
    )
    if always:
        raise ValueError(f"{where} has {always[:10]} in every image, which cannot be scored")
    if part.reading is None or not part.reading.skip_bad_files:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training will warn about them
        for label, name in enumerate(class_names):
            members = np.flatnonzero(part.labels[:, label] if several else part.labels == label).tolist()
            if not any(len(part.read([index])[1]) for index in members):
                raise ValueError(
                    f"{where} has no image of {name!r} that can be read: all {len(members)} files are bad, such as "
                    f"{part.images.path(members[0])}"
                )


def split_stratified(whole: Split, seed: int) -> dict[str, Split]:
    """Divide images 70 : 10 : 20 into train, val and test, stratified by class.

    Groups are kept together; with them the shares are met to about a tenth.

    Args:
        whole: All images, one label each.
        seed: Seed of the random split.

    Raises:
        ValueError: If a class has fewer than three images or groups, or images have several labels.
    """
    if whole.labels.ndim == 2:
        raise ValueError("images with several labels cannot be split by class: give train, val and test splits")
    if whole.groups is not None:
        return _split_grouped(whole, whole.groups, seed)
    # Not by scikit-learn: its stratified split may leave a small class out of a part.
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for label in np.unique(whole.labels):
        indices = rng.permutation(np.flatnonzero(whole.labels == label))
        if len(indices) < len(SPLITS):
            raise ValueError(f"label {label} has {len(indices)} images: three splits need at least one each")
        val, test = (max(1, round(share * len(indices))) for share in SHARES)
        parts["val"].append(indices[:val])
        parts["test"].append(indices[val : val + test])
        parts["train"].append(indices[val + test :])
    return {split: whole.take(rng.permutation(np.concatenate(chosen))) for split, chosen in parts.items()}


def _split_grouped(whole: Split, groups: np.ndarray, seed: int) -> dict[str, Split]:
    """Divide groups into ten folds of like classes, and the folds among the splits."""
    from sklearn.model_selection import StratifiedGroupKFold

    for label in np.unique(whole.labels):
        found = len(np.unique(groups[whole.labels == label]))
        if found < len(SPLITS):
            raise ValueError(f"label {label} has {found} groups: three splits need at least one each")
    count = min(10, len(np.unique(groups)), int(np.bincount(whole.labels).max()))
    folds = StratifiedGroupKFold(count, shuffle=True, random_state=seed).split(whole.labels, whole.labels, groups)
    parts = [indices for _, indices in folds]
    val, test = (max(1, round(share * count)) for share in SHARES)
    chosen = {"train": parts[val + test :], "val": parts[:val], "test": parts[val : val + test]}
    return {split: whole.take(np.sort(np.concatenate(several))) for split, several in chosen.items()}


def join_sets(sets: Sequence[ImageSet], size: int) -> ImageSet:
    """Join several sets into one task whose classes are (set, class), in RadImageNet's manner.

    Args:
        sets: Data sets with one label per image.
        size: Side in pixels to which all images are resized.

    Returns:
        One data set with classes ``"set/class"``, and ``groups["set"]``. If any set has three channels, grayscale
        images are repeated to three.

    Raises:
        ValueError: If there is no set, two have the same name, or images have several labels.
    """
    if not sets:
        raise ValueError("sets must hold at least one image set")
    if len({part.name for part in sets}) < len(sets):
        raise ValueError(f"sets must have different names, got {[part.name for part in sets]}")
    if any(part.multi_label for part in sets):
        raise ValueError("sets with several labels per image cannot be joined")
    colour = any(part.in_chans == 3 for part in sets)
    offsets = np.cumsum([0, *(part.num_classes for part in sets)])
    splits = {}
    for split in SPLITS:
        images, labels, groups = [], [], []
        for part, offset in zip(sets, offsets, strict=False):
            own = part.parts[split].groups
            groups += [] if own is None else [np.char.add(f"{part.name}/", own.astype(str))]
            block = resize(part.parts[split].images, size)
            images.append(np.repeat(block[..., None], 3, axis=3) if colour and block.ndim == 3 else block)
            labels.append(part.parts[split].labels + offset)
        together = np.concatenate(groups) if len(groups) == len(sets) else None
        splits[split] = Split(np.concatenate(images), np.concatenate(labels), together)
    return ImageSet(
        "+".join(part.name for part in sets),
        splits["train"],
        splits["val"],
        splits["test"],
        class_names=tuple(f"{part.name}/{name}" for part in sets for name in part.class_names),
        groups={"set": tuple(part.name for part in sets for _ in part.class_names)},
        excluded=sum(part.excluded for part in sets),
        stored_side=sets[0].stored_side,
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
    """Normalize uint8 images: (x / 255 - mean) / std, the same for all channels.

    Shape:
        - images: (N, H, W) or (N, H, W, 3).
        - Output: (N, 1, H, W) or (N, 3, H, W), fp32, channels last.
    """
    tensor = channels_first(images).float()
    return tensor.div_(255).sub_(mean).div_(std).contiguous(memory_format=torch.channels_last)


def channels_first(images: np.ndarray) -> torch.Tensor:
    """Images (N, H, W) or (N, H, W, 3) as a tensor (N, C, H, W) of the same type."""
    tensor = torch.from_numpy(np.ascontiguousarray(images))
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)


def match_channels(images: torch.Tensor, in_chans: int) -> torch.Tensor:
    """Match images to a model's channels: repeat one channel three times, or average three into one.

    Shape:
        - images: (N, 1 or 3, H, W).
        - Output: (N, in_chans, H, W).
    """
    if images.shape[1] == in_chans:
        return images
    return images.expand(-1, in_chans, -1, -1) if images.shape[1] == 1 else images.mean(1, keepdim=True)
