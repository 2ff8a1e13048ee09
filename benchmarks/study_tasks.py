"""Tasks of the study: images on the device, training subsets by seed, clean and shifted evaluation sets.

Every task is small and grey, and lies on the device as uint8, so that a training step is a few kernels and no loader.
Shifts are made once a process from fixed seeds, other ones for validation than for test: all runs see the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from policy_noise.experiments.data import ImageSet, Split, join_sets, load_npz

__all__ = ["SEVERITIES", "SHIFTS", "TASKS", "EvalSet", "Task", "TaskData", "bias_field", "build_task", "train_indices"]

ROOT = Path(__file__).resolve().parent.parent
ORGANS = ROOT / "examples" / "data" / "organpatches.npz"


@dataclass(frozen=True)
class Task:
    """A declared task.

    Args:
        name: In tables.
        source: ``"joined"``, ``"organs"``, ``"tumour"`` or ``"pneumonia"``.
        size: Side of the images in pixels.
        per_class: Training images drawn from each class, other ones for each seed; None takes all.
        epochs: Passes over the training images, for every condition.
        batch_size: Images a step; the incomplete last batch of an epoch is left out.
        model: ``"resnet"``, ``"resnet-half"`` (feature maps of half the side, a quarter of the work) or ``"vit"``.
    """

    name: str
    source: str
    size: int
    per_class: int | None
    epochs: int
    batch_size: int = 128
    model: str = "resnet"


TASKS = {
    task.name: task
    for task in (
        Task("joined", "joined", 32, per_class=95, epochs=48),
        Task("organs", "organs", 32, per_class=None, epochs=36),
        Task("tumour", "tumour", 64, per_class=256, epochs=48),
        Task("pneumonia", "pneumonia", 28, per_class=128, epochs=90, batch_size=64),
        Task("joined-full", "joined", 32, per_class=None, epochs=16),
        Task("joined-half", "joined", 32, per_class=95, epochs=48, model="resnet-half"),
        Task("organs-half", "organs", 32, per_class=None, epochs=36, model="resnet-half"),
        Task("pneumonia-half", "pneumonia", 28, per_class=128, epochs=90, batch_size=64, model="resnet-half"),
        Task("joined-vit", "joined", 32, per_class=95, epochs=96, model="vit"),
    )
}


@dataclass(frozen=True)
class EvalSet:
    """Images to score on.

    Args:
        images: uint8, (N, 1, S, S), on the device.
        labels: (N,), of the training task's classes.
        classes: Classes that occur here, where they are fewer than the task's: predictions are made among these.
    """

    images: Tensor
    labels: np.ndarray
    classes: tuple[int, ...] | None = None


@dataclass
class TaskData:
    """A task on the device.

    Args:
        task: Its declaration.
        images: uint8 training images, (N, 1, S, S).
        labels: (N,).
        num_classes: Classes.
        mean: Of the training images, in [0, 1].
        std: Likewise.
        evals: For ``"val"`` and ``"test"`` the sets by name: ``"clean"``, ``"<shift>:<severity>"``, and for the organs
            in test ``"ct2"`` and ``"mr"``. Filled when first asked for.
    """

    task: Task
    images: Tensor
    labels: Tensor
    num_classes: int
    mean: float
    std: float
    evals: dict[str, dict[str, EvalSet]] = field(default_factory=dict)


# -- shifts ------------------------------------------------------------------------------------------------------------
# Each takes images in [0, 1], (N, 1, H, W), a generator on their device and a severity's number.


def bias_field(images: Tensor, generator: torch.Generator, coefficient: float, order: int = 3) -> Tensor:
    """Multiply by exp(polynomial), coefficients uniform in +-coefficient, as TorchIO's and MONAI's RandBiasField do."""
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    y = torch.linspace(-1, 1, images.shape[2], device=images.device)
    x = torch.linspace(-1, 1, images.shape[3], device=images.device)
    basis = torch.stack([y[:, None] ** i * x[None, :] ** j for i, j in powers])
    weights = torch.rand(len(images), len(powers), generator=generator, device=images.device) * 2 - 1
    return images * torch.einsum("nk,khw->nhw", weights * coefficient, basis).exp().unsqueeze(1)


def _contrast(images: Tensor, generator: torch.Generator, factor: float) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return torch.lerp(mean, images, factor)


def _gamma(images: Tensor, generator: torch.Generator, exponent: float) -> Tensor:
    """Brighter or darker, at random."""
    return images ** (exponent ** _sign(images, generator))


def _brightness(images: Tensor, generator: torch.Generator, offset: float) -> Tensor:
    return images + offset * _sign(images, generator)


def _sign(images: Tensor, generator: torch.Generator) -> Tensor:
    draw = torch.randint(2, (len(images), 1, 1, 1), generator=generator, device=images.device)
    return draw.to(images.dtype) * 2 - 1


def _noise(images: Tensor, generator: torch.Generator, std: float) -> Tensor:
    return images + std * torch.randn(images.shape, generator=generator, device=images.device)


def _speckle(images: Tensor, generator: torch.Generator, std: float) -> Tensor:
    return images * (1 + std * torch.randn(images.shape, generator=generator, device=images.device))


def _blur(images: Tensor, generator: torch.Generator, sigma: float) -> Tensor:
    from kornia.filters import gaussian_blur2d

    sigma = sigma * images.shape[-1] / 32
    kernel_size = 2 * math.ceil(3 * sigma) + 1
    return gaussian_blur2d(images, (kernel_size, kernel_size), (sigma, sigma))


def _pixelate(images: Tensor, generator: torch.Generator, factor: float) -> Tensor:
    size = images.shape[2:]
    small = F.interpolate(images, [round(side * factor) for side in size], mode="area")
    return F.interpolate(small, size, mode="nearest")


SHIFTS: dict[str, tuple[Callable[[Tensor, torch.Generator, float], Tensor], tuple[float, ...]]] = {
    "bias_field": (bias_field, (0.25, 0.5, 0.75)),  # TorchIO's default is 0.5
    "contrast": (_contrast, (0.6, 0.4, 0.25)),
    "gamma": (_gamma, (1.5, 2.0, 3.0)),
    "brightness": (_brightness, (0.1, 0.2, 0.3)),
    "speckle": (_speckle, (0.05, 0.1, 0.2)),
    "noise": (_noise, (0.02, 0.04, 0.08)),
    "blur": (_blur, (0.6, 0.9, 1.3)),  # sigma in pixels at 32 px
    "pixelate": (_pixelate, (0.75, 0.5, 0.375)),
}
SEVERITIES = (1, 2, 3)
SHIFT_SEEDS = {"val": 1000, "test": 2000}


def _shifted(split: str, clean: EvalSet) -> dict[str, EvalSet]:
    sets = {}
    images = clean.images.float() / 255
    for number, (name, (function, levels)) in enumerate(SHIFTS.items()):
        for severity, level in zip(SEVERITIES, levels, strict=True):
            seed = SHIFT_SEEDS[split] + 10 * number + severity
            generator = torch.Generator(images.device).manual_seed(seed)
            shifted = function(images, generator, level).clamp(0, 1).mul(255).round().to(torch.uint8)
            sets[f"{name}:{severity}"] = EvalSet(shifted, clean.labels)
    return sets


# -- building ----------------------------------------------------------------------------------------------------------


def _load(task: Task, folder: Path) -> ImageSet:
    if task.source == "joined":
        parts = [load_npz(folder / f"{name}_64.npz") for name in ("mednist", "braintumormri", "breastcancerus")]
        return join_sets(parts, task.size)
    path = {
        "organs": ORGANS,
        "tumour": folder / "braintumormri_64.npz",
        "pneumonia": folder / "pneumoniamnist.npz",
    }[task.source]
    images = load_npz(path)
    if images.train.images.shape[1:3] != (task.size, task.size):
        raise ValueError(f"task {task.name!r} is declared at {task.size} px, {path} holds {images.train.images.shape}")
    return images


def _tensor(images: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).unsqueeze(1).to(device)


def build_task(task: Task, folder: Path, device: torch.device, splits: tuple[str, ...]) -> TaskData:
    """Put a task on a device.

    Args:
        task: Declaration.
        folder: Holds the npz files.
        device: Where training runs.
        splits: Evaluation sets to make; test is not even read into a tensor unless it is named.
    """
    images = _load(task, folder)
    pixels = images.train.images.astype(np.float64) / 255
    data = TaskData(
        task,
        _tensor(images.train.images, device),
        torch.from_numpy(images.train.labels).to(device),
        images.num_classes,
        float(pixels.mean()),
        float(pixels.std()),
    )
    for split in splits:
        part: Split = getattr(images, split)
        clean = EvalSet(_tensor(part.images, device), part.labels)
        data.evals[split] = {"clean": clean, **_shifted(split, clean)}
        if task.source == "organs" and split == "test":
            data.evals[split] |= {name: _unseen(name, device) for name in ("ct2", "mr")}
    return data


def _unseen(prefix: str, device: torch.device) -> EvalSet:
    """All three splits of an unseen patient, none of which is trained on. Labels are the training task's."""
    with np.load(ORGANS, allow_pickle=False) as file:
        images = np.concatenate([file[f"{prefix}_{split}_images"] for split in ("train", "val", "test")])
        labels = np.concatenate([file[f"{prefix}_{split}_labels"].ravel() for split in ("train", "val", "test")])
        classes = tuple(int(label) for label in np.sort(file[f"{prefix}_classes"]))
    return EvalSet(_tensor(images, device), labels.astype(np.int64), classes)


def train_indices(data: TaskData, seed: int) -> np.ndarray:
    """The training images of a seed: all, or so many of each class, the same for every condition."""
    labels = data.labels.cpu().numpy()
    if data.task.per_class is None:
        return np.arange(len(labels))
    rng = np.random.default_rng([seed, 17])
    chosen = [rng.permutation(np.flatnonzero(labels == label))[: data.task.per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))
