"""One run of the study: a classifier, an arm, a seed.

All arms of a seed share the initial weights, the images, their order and their translations. Masks and augmentations
draw from streams of their own, and are off for the last quarter of the epochs.
"""

import random
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.study.arms import Arm
from benchmarks.study.classifier import Classifier
from benchmarks.study.suites import Job
from benchmarks.study.tasks import EvalSet, TaskData, train_indices
from policy_noise import PolicyNoiseMask, RandomShading, ReinforceHook, Sample
from policy_noise.experiments.evaluation import medmnistc_scores
from policy_noise.experiments.metrics import classification_metrics
from policy_noise.experiments.rivals import Augmentation

LEARNING_RATE = 2e-3
"""Peak of the one-cycle schedule."""
WEIGHT_DECAY = 0.05
CLEAN_SHARE = 0.25
"""Of the epochs, at the end, without masks and augmentations."""


class Batches:
    """Training batches: images in [0, 1], not normalized, translated by up to a 16th of their side.

    Order and translations are drawn on the CPU from the seed alone: they are the same for all arms and devices.
    """

    def __init__(self, data: TaskData, seed: int, epochs: int) -> None:
        size, batch = data.task.size, data.task.batch_size
        indices = train_indices(data, seed)
        self.steps_per_epoch = len(indices) // batch
        if self.steps_per_epoch == 0:
            raise ValueError(f"task {data.task.name!r} has {len(indices)} training images and batches of {batch}")
        reach = size // 16
        self.padded = F.pad(data.images.float() / 255, (reach,) * 4, mode="reflect")
        self.labels = data.labels
        rng = np.random.default_rng([seed, 29])
        order = [rng.permutation(indices)[: self.steps_per_epoch * batch] for _ in range(epochs)]
        moves = rng.integers(0, 2 * reach + 1, size=(epochs * self.steps_per_epoch, batch, 2))
        device = data.images.device
        self.order = torch.from_numpy(np.concatenate(order).reshape(-1, batch)).to(device)
        self.moves = torch.from_numpy(moves).to(device)
        self.window = torch.arange(size, device=device)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        index = self.order[step]
        rows = self.moves[step, :, :1] + self.window
        columns = self.moves[step, :, 1:] + self.window
        images = self.padded[index[:, None, None], 0, rows[:, :, None], columns[:, None, :]]
        return images.unsqueeze(1), self.labels[index]


class SwappedMask(PolicyNoiseMask):
    """The package's mask, put on the next image of the batch. Batches are in random order: it is a random other one."""

    def forward(self, images: Tensor, sample: Sample | None = None) -> Tensor:
        return super().forward(images.roll(-1, 0), sample).roll(1, 0)


class Masks:
    """An arm's masks on normalized images, random or learned, with a random stream of their own."""

    def __init__(self, arm: Arm, data: TaskData, optimizer: torch.optim.Optimizer, seed: int) -> None:
        device = data.images.device
        self.swapped = arm.swapped
        self.generator = torch.Generator(device).manual_seed(10_000 + seed)
        black: dict[str, Any] = {"mean": data.mean, "std": data.std}
        self.shading: RandomShading | None = None
        self.hook: ReinforceHook | None = None
        if arm.masks is not None and arm.policy is None:
            self.shading = RandomShading(**arm.masks, **black).to(device)
        elif arm.masks is not None:
            mask = (SwappedMask if arm.swapped else PolicyNoiseMask)(in_chans=1, **arm.masks, **black).to(device)
            self.hook = ReinforceHook(mask, optimizer, generator=self.generator, **(arm.policy or {}))

    def apply(self, images: Tensor) -> Tensor:
        if self.shading is not None:
            return self.shading(images, self.shading.sample(images, self.generator))
        return images if self.hook is None else self.hook.apply(images)

    def observe(self, losses: Tensor) -> None:
        """Reward learned masks, each by the loss of the image that it was put on."""
        if self.hook is not None:
            self.hook.observe(losses.roll(-1, 0) if self.swapped else losses)

    def remove(self) -> None:
        if self.hook is not None:
            self.hook.remove()


@torch.no_grad()
def predict(model: Classifier, data: TaskData, evals: EvalSet) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities in eval mode, (N, K), and the classes that they are of. The model is left in it."""
    model.eval()
    logits = torch.cat([model((part.float() / 255 - data.mean) / data.std) for part in evals.images.split(2048)])
    classes = np.arange(data.num_classes) if evals.classes is None else np.array(evals.classes)
    return logits[:, classes].softmax(1).cpu().numpy(), classes


def macro_f1(model: Classifier, data: TaskData, evals: EvalSet) -> float:
    """Macro F1 of an evaluation set."""
    from sklearn.metrics import f1_score

    probabilities, classes = predict(model, data, evals)
    predictions = classes[probabilities.argmax(1)]
    return float(f1_score(evals.labels, predictions, labels=classes, average="macro", zero_division=0))


def medmnistc(model: Classifier, data: TaskData) -> dict[str, float]:
    """Errors under MedMNIST-C's corruptions, ``be`` and ``rbe``. Nothing for data that have none."""
    if not data.corrupted:
        return {}

    def score(evals: EvalSet) -> dict[str, float]:
        return classification_metrics(evals.labels, predict(model, data, evals)[0])

    clean = score(data.evals["clean"])["balanced_accuracy"]
    found = medmnistc_scores(data, clean, lambda name, severity: score(data.corrupted[name, severity]))
    return {name: float(found[name]) for name in ("be", "rbe")}  # type: ignore[arg-type]


def train(job: Job, data: TaskData) -> dict[str, Any]:
    """Train and score one run.

    Args:
        job: What to run.
        data: The job's task, with its evaluation sets.

    Returns:
        ``scores`` (macro F1 by evaluation set; for pneumonia in test also ``be`` and ``rbe``), ``loss`` (the mean of
        the training's last epoch), ``seconds``.
    """
    arm, task, seed = job.arm, job.task, job.seed
    device = data.images.device
    start = time.perf_counter()
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (timm's Mixup draws from the global state)
    random.seed(seed)
    model = Classifier(task.size, data.num_classes, normalize=arm.normalize).to(device)
    model.to(memory_format=torch.channels_last).train()
    batches = Batches(data, seed, task.epochs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=len(batches), pct_start=0.1, cycle_momentum=False
    )
    noisy_steps = (task.epochs - round(CLEAN_SHARE * task.epochs)) * batches.steps_per_epoch
    masks: Masks | None = Masks(arm, data, optimizer, seed)
    augment = None if arm.augment is None else Augmentation(arm.augment, data.num_classes, device, seed)
    last = []
    for step in range(len(batches)):
        if masks is not None and step == noisy_steps:
            masks.remove()
            masks = augment = None
        images, labels = batches[step]
        targets = labels
        if augment is not None:
            images, targets = augment(images, labels)
        images = (images - data.mean) / data.std
        if masks is not None:
            images = masks.apply(images)
        losses = F.cross_entropy(model(images), targets, reduction="none")
        if masks is not None:
            masks.observe(losses)
        optimizer.zero_grad(set_to_none=True)
        losses.mean().backward()
        optimizer.step()
        scheduler.step()
        if step >= len(batches) - batches.steps_per_epoch:
            last.append(float(losses.detach().mean()))
    scores = {name: macro_f1(model, data, evals) for name, evals in data.evals.items()} | medmnistc(model, data)
    scores = {name: round(value, 5) for name, value in scores.items()}
    return {"scores": scores, "loss": round(float(np.mean(last)), 5), "seconds": round(time.perf_counter() - start, 1)}
