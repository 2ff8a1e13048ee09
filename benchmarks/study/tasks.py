"""Tasks of the study: images on the device, training subsets by seed, clean and shifted evaluation sets.

Every task is small and grayscale. It is kept on the device as uint8, so a training step needs a few kernels and no
loader. Shifted images are made once per process from fixed seeds, which differ between validation and test, so all runs
see the same ones. A task can also be scored under MedMNIST-C's corruptions and by few-shot transfer to another set.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.study.shifts import SHIFT_SEEDS, medmnist_c
from policy_noise.experiments.data import ImageSet, Split, join_sets, resize
from policy_noise.experiments.npz import load_npz
from policy_noise.experiments.shifts import SEVERITIES, SHIFTS

ROOT = Path(__file__).resolve().parents[2]
JOINED = ("mednist", "braintumormri", "breastcancerus")
ORGANS = ROOT / "policy_noise" / "experiments" / "embedded" / "organpatches.npz"


@dataclass(frozen=True)
class Task:
    """A declared task.

    Args:
        name: Name in tables.
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
        """The settings that determine a result, without defaults, so that new fields do not change older keys."""
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
    # Five times as long: a regularizer may not have paid yet when the short trainings end.
    tasks += [replace(task, name=f"{task.name}-long", epochs=5 * task.epochs) for task in (half, *tasks[7:9])]
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
        classes: The classes that occur here, if fewer than the task's. Only these can be predicted.
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
    """All three splits of an unseen patient; none is trained on. Labels are those of the training task."""
    with np.load(ORGANS, allow_pickle=False) as file:
        images = np.concatenate([file[f"{prefix}_{split}_images"] for split in ("train", "val", "test")])
        labels = np.concatenate([file[f"{prefix}_{split}_labels"].ravel() for split in ("train", "val", "test")])
        classes = tuple(int(label) for label in np.sort(file[f"{prefix}_classes"]))
    return EvalSet(_tensor(images, device), labels.astype(np.int64), classes)


def train_indices(data: TaskData, seed: int) -> np.ndarray:
    """The training images of a seed: all, or a fixed number per class. They are the same for every condition."""
    labels = data.labels.cpu().numpy()
    if data.task.per_class is None:
        return np.arange(len(labels))
    rng = np.random.default_rng([seed, 17])
    chosen = [rng.permutation(np.flatnonzero(labels == label))[: data.task.per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))
