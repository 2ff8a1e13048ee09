"""Tasks of the study: images on the device, training subsets by seed, clean and shifted evaluation sets.

Every task is small and grey, and lies on the device as uint8, so that a training step is a few kernels and no loader.
Shifts are made once a process from fixed seeds, other ones for validation than for test: all runs see the same. Beside
them a task can be scored under MedMNIST-C's corruptions, and by few-shot transfer to a set that was not trained on.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from policy_noise.experiments.data import ImageSet, Split, join_sets, resize
from policy_noise.experiments.npz import load_npz

__all__ = [
    "SEVERITIES",
    "SHIFTS",
    "TASKS",
    "EvalSet",
    "FewShot",
    "Task",
    "TaskData",
    "bias_field",
    "build_task",
    "medmnist_c",
    "train_indices",
]

ROOT = Path(__file__).resolve().parent.parent
JOINED = ("mednist", "braintumormri", "breastcancerus")
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
        model: ``"resnet"`` or ``"vit"`` (patches of 4 px); with ``-half`` its feature maps have half the side, which is
            a quarter of the work.
        parts: Sets that ``"joined"`` joins.
        few_shot: Set to which the features are transferred by a linear probe on a few images.
        corruptions: MedMNIST-C's name of the set whose corruptions the evaluation images get.
    """

    name: str
    source: str
    size: int
    per_class: int | None
    epochs: int
    batch_size: int = 128
    model: str = "resnet"
    parts: tuple[str, ...] = JOINED
    few_shot: str | None = None
    corruptions: str | None = None

    def describe(self) -> dict[str, Any]:
        """What decides a result; what is left at its default is left out, so that new fields change no older key."""
        settings = asdict(self)
        for name in ("parts", "few_shot", "corruptions"):
            if settings[name] == getattr(Task, name):
                del settings[name]
        return settings


def _declare() -> list[Task]:
    tasks = [
        Task("joined", "joined", 32, per_class=95, epochs=48),
        Task("organs", "organs", 32, per_class=None, epochs=36),
        Task("tumour", "tumour", 64, per_class=256, epochs=48),
        Task("pneumonia", "pneumonia", 28, per_class=128, epochs=90, batch_size=64),
        Task("joined-full", "joined", 32, per_class=None, epochs=16),
        Task("joined-vit", "joined", 32, per_class=95, epochs=96, model="vit"),
    ]
    joined, organs, _, pneumonia, full, vit = tasks
    # For a CPU.
    half = replace(joined, name="joined-half", model="resnet-half", few_shot="pneumoniamnist")
    tasks += [
        half,
        replace(organs, name="organs-half", model="resnet-half", corruptions="organcmnist"),
        replace(pneumonia, name="pneumonia-half", model="resnet-half", corruptions="pneumoniamnist"),
        replace(full, name="joined-full-half", model="resnet-half"),
        replace(vit, name="joined-vit-half", model="vit-half"),
    ]
    for left_out in JOINED:
        parts = tuple(part for part in JOINED if part != left_out)
        tasks.append(replace(half, name=f"no-{left_out}", parts=parts, few_shot=left_out))
    return tasks


TASKS = {task.name: task for task in _declare()}


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


@dataclass(frozen=True)
class FewShot:
    """A set to transfer to: draws of a few images for a linear probe, and images to score it on.

    Args:
        images: uint8, (N, 1, S, S), on the device: where the draws come from.
        labels: (N,).
        test: To score on.
        num_classes: Of this set.
    """

    images: Tensor
    labels: np.ndarray
    test: EvalSet
    num_classes: int


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
            in test ``"ct2"`` and ``"mr"``, with corruptions ``"medmnist_c:<corruption>-<severity>"``.
        few_shot: For ``"val"`` and ``"test"`` the set to transfer to, where the task names one.
    """

    task: Task
    images: Tensor
    labels: Tensor
    num_classes: int
    mean: float
    std: float
    evals: dict[str, dict[str, EvalSet]] = field(default_factory=dict)
    few_shot: dict[str, FewShot] = field(default_factory=dict)


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


CORRUPTION_SEVERITIES = (0, 2, 4)
"""Of MedMNIST-C's five."""


def medmnist_c(name: str, images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Images under MedMNIST-C's corruptions (Di Salvo et al. 2024, package ``medmnistc``), at their own size.

    The package was made for 224 px and seeds its corruptions globally; here each starts from a seed of its own.

    Args:
        name: The package's name of the set whose list of corruptions is meant.
        images: uint8, (N, S, S).
        seed: Of the first corruption.

    Returns:
        By ``"<corruption>-<severity>"``, severities 1, 3 and 5.

    Raises:
        ImportError: If the package or ImageMagick is missing.
    """
    from medmnistc.corruptions.registry import CORRUPTIONS_DS
    from PIL import Image

    state = np.random.get_state()  # noqa: NPY002  (the package draws from the global state)
    sets = {}
    for number, (corruption, corruptor) in enumerate(CORRUPTIONS_DS[name].items()):
        for severity in CORRUPTION_SEVERITIES:
            np.random.seed(seed + 10 * number + severity)  # noqa: NPY002
            corruptor.rng = np.random.default_rng(seed + 10 * number + severity)  # impulse noise asks for it
            made = [corruptor.apply(Image.fromarray(image).convert("RGB"), severity) for image in images]
            grey = [np.asarray(Image.fromarray(np.asarray(image)).convert("L")) for image in made]
            sets[f"{corruption}-{severity + 1}"] = np.stack(grey)
    np.random.set_state(state)  # noqa: NPY002
    return sets


# -- building ----------------------------------------------------------------------------------------------------------


def _load(task: Task, folder: Path) -> ImageSet:
    if task.source == "joined":
        return join_sets([_load_set(name, folder) for name in task.parts], task.size)
    path = {
        "organs": ORGANS,
        "tumour": folder / "braintumormri_64.npz",
        "pneumonia": folder / "pneumoniamnist.npz",
    }[task.source]
    images = load_npz(path)
    if images.train.images.shape[1:3] != (task.size, task.size):
        raise ValueError(f"task {task.name!r} is declared at {task.size} px, {path} holds {images.train.images.shape}")
    return images


def _load_set(name: str, folder: Path) -> ImageSet:
    return load_npz(folder / (f"{name}_64.npz" if name in JOINED else f"{name}.npz"))


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
        if task.corruptions is not None:
            for name, corrupted in medmnist_c(task.corruptions, part.images, 3 * SHIFT_SEEDS[split]).items():
                data.evals[split][f"medmnist_c:{name}"] = EvalSet(_tensor(corrupted, device), part.labels)
        if task.few_shot is not None:
            data.few_shot[split] = _few_shot(_load_set(task.few_shot, folder), split, task.size, device)
    return data


def _few_shot(target: ImageSet, split: str, size: int, device: torch.device) -> FewShot:
    part: Split = getattr(target, split)
    return FewShot(
        _tensor(resize(target.train.images, size), device),
        target.train.labels,
        EvalSet(_tensor(resize(part.images, size), device), part.labels),
        target.num_classes,
    )


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
