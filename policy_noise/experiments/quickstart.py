"""The quickstart: an organ classifier trained conventionally, with random masks and with learned masks.

This module trains one method with one seed, scores it on four tasks, and makes the table of all results. All trainings
with one seed start from the same weights and see the same batches, in whichever process they run.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import policy_noise

from ..utils.files import write_atomic
from .data import ImageSet, Split, to_tensor
from .figures import LABELS
from .npz import load_npz
from .statistics import paired_difference, t_interval
from .transfer import draw_few_shot, embed, linear_probe

__all__ = ["METHODS", "MODEL", "Outcome", "Training", "table", "train_and_assess"]

MODEL = "test_resnet"
"""timm's smallest ResNet, 0.4 M parameters."""
METHODS: dict[str, dict[str, Any] | None] = {"conventional": None, "frozen": {"frozen": True}, "policy": {}}
"""What each method passes to :func:`policy_noise.attach`; None attaches nothing."""
MEAN, STD = 0.5, 0.25
BATCH, LR = 32, 4e-3
SHOTS, TRIALS = 32, 5
LOG_EVERY = 13
SHOWN = (0, 2, 4, 8, 9, 10, 12, 14)
"""Organs in the gallery."""

Scores = dict[str, float]
Report = Callable[[int, str], None]
"""Called after each epoch with its number, from 1, and a line about it."""


class Training(NamedTuple):
    """The settings of one training.

    Args:
        data: The embedded organ patches.
        seed: Seed of weights, batches and masks.
        method: One of :data:`METHODS`.
        epochs: Epochs of pretraining.
        finetune_epochs: Epochs of fine-tuning on unmasked images, afterwards.
        gallery: PNG to write with the trained masks, or None.
    """

    data: Path
    seed: int
    method: str
    epochs: int
    finetune_epochs: int
    gallery: Path | None = None


class Outcome(NamedTuple):
    """The result of one training: its log, and its scores by task."""

    history: list[Scores]
    scores: dict[str, Scores]


def train_and_assess(training: Training, report: Report) -> Outcome:
    """Train, fine-tune on clean images, and score.

    It uses one thread. Layers this small gain nothing from more, and results must not depend on the number of
    processes that run at the same time.

    Args:
        training: What to train.
        report: Called after each epoch.
    """
    import timm
    from threadpoolctl import threadpool_limits

    organs, patient, mr = (load_npz(training.data, prefix) for prefix in ("", "ct2_", "mr_"))
    torch.set_num_threads(1)
    with threadpool_limits(1):
        torch.manual_seed(training.seed)
        model = timm.create_model(MODEL, num_classes=organs.num_classes, in_chans=1)
        model.to(memory_format=torch.channels_last)
        batches = torch.Generator().manual_seed(training.seed)  # of its own, so that masks don't change the batches
        history: list[Scores] = []
        mask = train(model, organs, training.epochs, LR, batches, METHODS[training.method], history, report)
        train(model, organs, training.finetune_epochs, LR / 10, batches, None, history, report)
        if training.gallery is not None and mask is not None:
            figure = _gallery(mask, organs)
            figure.suptitle(
                f"What the policy learned in {training.epochs} epochs (seed {training.seed}, unseen slices)"
            )
            write_atomic(training.gallery, lambda temporary: figure.savefig(temporary, format="png", dpi=110))
        return Outcome(history, assess(model, organs, patient, mr, training.seed))


def shift(images: torch.Tensor, generator: torch.Generator, pixels: int = 3) -> torch.Tensor:
    """Shift a batch by a few pixels, the augmentation that all methods share."""
    size = images.shape[-1]
    top, left = torch.randint(0, 2 * pixels + 1, (2,), generator=generator).tolist()
    return nn.functional.pad(images, (pixels,) * 4, mode="reflect")[:, :, top : top + size, left : left + size]


def train(
    model: nn.Module,
    organs: ImageSet,
    epochs: int,
    lr: float,
    batches: torch.Generator,
    noise: Mapping[str, Any] | None,
    history: list[Scores],
    report: Report,
) -> policy_noise.StochasticAugmentation | None:
    """An ordinary loop, with one added line for masks. Returns the mask, to draw it."""
    images, targets = to_tensor(organs.train.images, MEAN, STD), torch.from_numpy(organs.train.labels)
    steps = len(images) // BATCH
    start = int(history[-1]["epoch"]) if history else 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    criterion = nn.CrossEntropyLoss()
    hook = None if noise is None else policy_noise.attach(model, optimizer, criterion, **noise)  # the one added line
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(images), generator=batches)[: steps * BATCH]
        for step, indices in enumerate(order.split(BATCH), start=1):
            loss = criterion(model(shift(images[indices], batches)), targets[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % LOG_EVERY == 0:
                diagnostics = {} if hook is None else hook.metrics
                history.append({"epoch": start + epoch + step / steps, "loss": loss.item(), **diagnostics})
        score = scores(organs.val.labels, predict(model, organs.val.images))["balanced_accuracy"]
        history.append({"epoch": start + epoch + 1, "val_balanced_accuracy": score})
        report(start + epoch + 1, f"loss {loss.item():.2f}, validation {score:.2f}")
    if hook is None:
        return None
    hook.remove()  # the model is now the heated model
    return hook.augmentation


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Logits of clean images."""
    model.eval()
    return torch.cat([model(batch) for batch in to_tensor(images, MEAN, STD).split(256)]).numpy()


def scores(labels: np.ndarray, outputs: np.ndarray) -> Scores:
    """The two figures of the table, from logits or probabilities."""
    from sklearn.metrics import balanced_accuracy_score, f1_score

    predicted = outputs.argmax(1)
    f1 = f1_score(labels, predicted, average="macro", zero_division=0)
    return {"f1": float(f1), "balanced_accuracy": float(balanced_accuracy_score(labels, predicted))}


def few_shot(model: nn.Module, target: ImageSet, seed: int) -> Scores:
    """A linear probe on a few images of another set, mean over draws."""
    features = embed(model, to_tensor(target.train.images, MEAN, STD))
    test_features = embed(model, to_tensor(target.test.images, MEAN, STD))
    trials = []
    for trial in range(TRIALS):
        drawn = draw_few_shot(target.train.labels, SHOTS, np.random.default_rng([seed, trial]))
        labels = target.train.labels[drawn]
        probabilities = linear_probe(features[drawn], labels, test_features, target.num_classes)
        trials.append(scores(target.test.labels, probabilities))
    return {name: float(np.mean([trial[name] for trial in trials])) for name in trials[0]}


def assess(model: nn.Module, organs: ImageSet, patient: ImageSet, mr: ImageSet, seed: int) -> dict[str, Scores]:
    """Score a finished model on all four tasks."""
    unseen = Split(
        np.concatenate([patient.train.images, patient.val.images, patient.test.images]),
        np.concatenate([patient.train.labels, patient.val.labels, patient.test.labels]),
    )
    shared = [organs.class_names.index(name) for name in patient.class_names]
    return {
        f"CT patient 1, test slices ({organs.num_classes} organs)": scores(
            organs.test.labels, predict(model, organs.test.images)
        ),
        f"CT patient 2, no training ({patient.num_classes} organs)": scores(
            unseen.labels, predict(model, unseen.images)[:, shared]
        ),
        f"CT patient 2, probe on {SHOTS} images ({patient.num_classes} organs)": few_shot(model, patient, seed),
        f"MR patient, probe on {SHOTS} images ({mr.num_classes} organs)": few_shot(model, mr, seed),
    }


def _gallery(mask: policy_noise.StochasticAugmentation, organs: ImageSet) -> Any:
    """Show trained masks on images that were not trained on."""
    from ..plotting import plot_masks

    chosen = [int(np.flatnonzero(organs.test.labels == label)[0]) for label in SHOWN]
    titles = [organs.class_names[label].replace("_", " ") for label in SHOWN]
    return plot_masks(mask, to_tensor(organs.test.images[chosen], MEAN, STD), titles, mean=MEAN, std=STD)


def table(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """One Markdown table: means over seeds with 95 % t-intervals, and paired differences.

    Args:
        outcomes: By method, in the order of the seeds.

    Returns:
        Its lines. With one seed there is no interval.
    """

    def cell(values: list[float]) -> str:
        return str(t_interval(values, bounds=(0, 1))) if len(values) > 1 else f"{values[0]:.3f}"

    def difference(values: list[float], others: list[float]) -> str:
        result = paired_difference(values, others, bounds=(-1, 1))
        return str(result) if len(values) > 1 else f"{result.mean:+.3f}"

    rows = [("task", "training", "macro F1", "balanced accuracy", "F1, policy minus this")]
    runs = {method: [outcome.scores for outcome in several] for method, several in outcomes.items()}
    for task in runs["policy"][0]:
        f1, balanced = (
            {method: [scored[task][name] for scored in several] for method, several in runs.items()}
            for name in ("f1", "balanced_accuracy")
        )
        for method in METHODS:
            gain = "" if method == "policy" else difference(f1["policy"], f1[method])
            first = task if method == next(iter(METHODS)) else ""
            rows.append((first, LABELS[method], cell(f1[method]), cell(balanced[method]), gain))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
