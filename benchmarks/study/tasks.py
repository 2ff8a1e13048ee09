"""Tasks of the study: images on the device, training subsets by seed, clean and shifted evaluation sets.

Every task is small and grayscale. It is kept on the device as uint8, so a training step needs a few kernels and no
loader. Shifted images are made once per process from fixed seeds, which differ between validation and test, so all runs
see the same ones.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from policy_noise.experiments.data import ImageSet, Split, join_sets
from policy_noise.experiments.npz import load_npz
from policy_noise.experiments.shifts import MEDMNISTC_SEVERITIES, SEVERITIES, SHIFTS, ShiftedSplit, medmnistc_shifts
from policy_noise.utils.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
JOINED = ("mednist", "braintumormri", "breastcancerus")
SHIFT_SEEDS = {"val": 1000, "test": 2000}
ORGANS = ROOT / "policy_noise" / "experiments" / "embedded" / "organpatches.npz"
CORRUPTED = Path(__file__).resolve().parent / "results" / "medmnistc.npz"
"""Where the test images under MedMNIST-C's corruptions are kept, once they are made. It takes 10 minutes."""


@dataclass(frozen=True)
class Task:
    """A declared task.

    Args:
        name: Name in tables, and of its data: ``"joined"``, ``"organs"`` or ``"pneumonia"``.
        size: Side of the images in pixels.
        per_class: Training images drawn from each class, other ones for each seed; None takes all.
        epochs: Passes over the training images, for every arm.
        batch_size: Images a step; the incomplete last batch of an epoch is left out.
    """

    name: str
    size: int
    per_class: int | None
    epochs: int
    batch_size: int = 128


TASKS = {
    task.name: task
    for task in (
        Task("joined", 32, per_class=95, epochs=48),
        Task("organs", 32, per_class=None, epochs=36),
        Task("pneumonia", 28, per_class=128, epochs=90, batch_size=64),
    )
}


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
        evals: Evaluation sets of one split by name: ``"clean"``, ``"<shift>:<severity>"``, and for the organs in test
            ``"ct2"`` and ``"mr"``, an unseen CT patient and an MR one.
        name: MedMNIST's name of the set, if it is one.
        corrupted: For pneumonia in test, the images under MedMNIST-C's corruptions, by corruption and severity.
    """

    task: Task
    images: Tensor
    labels: Tensor
    num_classes: int
    mean: float
    std: float
    evals: dict[str, EvalSet] = field(default_factory=dict)
    name: str = ""
    corrupted: dict[tuple[str, int], EvalSet] = field(default_factory=dict)


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
    if task.name == "joined":
        return join_sets([load_npz(folder / f"{name}_64.npz") for name in JOINED], task.size)
    path = ORGANS if task.name == "organs" else folder / "pneumoniamnist.npz"
    images = load_npz(path)
    if images.train.images.shape[1:3] != (task.size, task.size):
        raise ValueError(f"task {task.name!r} is declared at {task.size} px, {path} holds {images.train.images.shape}")
    return images


def _tensor(images: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images)).unsqueeze(1).to(device)


def build_task(task: Task, folder: Path, device: torch.device, split: str | None) -> TaskData:
    """Put a task on a device.

    Args:
        task: Declaration.
        folder: Holds the npz files.
        device: Where training runs.
        split: Evaluation sets to make, ``"val"`` or ``"test"``, or none. The other is not even read into a tensor.
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
    if split is not None:
        part: Split = getattr(images, split)
        clean = EvalSet(_tensor(part.images, device), part.labels)
        data.evals |= {"clean": clean, **_shifted(split, clean)}
    if task.name == "organs" and split == "test":
        data.evals |= {name: _unseen(name, device) for name in ("ct2", "mr")}
    if task.name == "pneumonia" and split == "test":
        data.name = images.name
        data.corrupted = _corrupted(images, device)
    return data


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:  # of a path, savez would change the name
        np.savez(file, **arrays)


def _corrupted(images: ImageSet, device: torch.device) -> dict[tuple[str, int], EvalSet]:
    """The test images under MedMNIST-C's corruptions, from a file that the first call writes."""
    shifts = [(name, severity) for name in medmnistc_shifts(images.name) for severity in MEDMNISTC_SEVERITIES]
    every = range(len(images.test))
    if not CORRUPTED.is_file():
        made = {f"{shift}/{level}": ShiftedSplit(images.test, shift, level).read(every)[0] for shift, level in shifts}
        write_atomic(CORRUPTED, lambda path: _save(path, made))
    with np.load(CORRUPTED) as file:
        return {
            (name, severity): EvalSet(_tensor(file[f"{name}/{severity}"], device), images.test.labels)
            for name, severity in shifts
        }


def _unseen(prefix: str, device: torch.device) -> EvalSet:
    """All three splits of an unseen patient; none is trained on. Labels are those of the training task."""
    with np.load(ORGANS, allow_pickle=False) as file:
        images = np.concatenate([file[f"{prefix}_{split}_images"] for split in ("train", "val", "test")])
        labels = np.concatenate([file[f"{prefix}_{split}_labels"].ravel() for split in ("train", "val", "test")])
        classes = tuple(int(label) for label in np.sort(file[f"{prefix}_classes"]))
    return EvalSet(_tensor(images, device), labels.astype(np.int64), classes)


def train_indices(data: TaskData, seed: int) -> np.ndarray:
    """The training images of a seed: all, or a fixed number per class. They are the same for every arm."""
    labels = data.labels.cpu().numpy()
    if data.task.per_class is None:
        return np.arange(len(labels))
    rng = np.random.default_rng([seed, 17])
    chosen = [rng.permutation(np.flatnonzero(labels == label))[: data.task.per_class] for label in np.unique(labels)]
    return np.sort(np.concatenate(chosen))
