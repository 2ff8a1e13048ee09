"""One run of the study: a classifier, a condition, a seed.

The mask is the package's own: ``hook.apply`` draws and applies it, and ``hook.observe`` rewards it. All conditions of a
seed share the initial weights, the images, their order and their translations. Masks and augmentations use separate
generators. On a GPU the classifier's forward and backward are replayed as CUDA graphs, because kernel launches dominate
the cost of such small networks.
"""

import random
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import update_bn

from benchmarks.study.classifier import Classifier, replay_as_graphs
from benchmarks.study.conditions import LEARNING_RATE
from benchmarks.study.jobs import Job
from benchmarks.study.masks import ClassPolicy, StudyMask, build_hook
from benchmarks.study.scoring import diagnose, encoding, evaluate, macro_f1
from benchmarks.study.signals import Signals, pathwise_surrogate
from benchmarks.study.tasks import TaskData, train_indices
from policy_noise import ReinforceHook
from policy_noise.experiments.rivals import Augmentation

WEIGHT_DECAY = 0.05
CLEAN_SHARES = {"heated": 0.25, "long": 0.5, "throughout": 0.0, "recalibrated": 0.0}
"""Share of the epochs without masks, at the end, by schedule."""
POINTS = 8
"""Points of a learning curve."""


class Batches:
    """Training batches on the device: images in [0, 1], not normalized, translated by up to a 16th of their side.

    Order and translations are drawn on the CPU from the seed alone: they are the same for all conditions and devices.
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


def train(job: Job, data: TaskData, *, graphs: bool = True) -> dict[str, Any]:
    """Train and score one run.

    Args:
        job: What to run.
        data: The job's task, with its evaluation sets.
        graphs: Replay the classifier's training step as CUDA graphs where the data is on a GPU.

    Returns:
        ``scores`` (split, set, macro F1), ``curve`` and ``policy`` (diagnostics during training), ``encoding`` (of the
        masks when masking ends; empty without a mask), ``steps``, ``seconds``.
    """
    condition, task, seed = job.condition, job.task, job.seed
    device = data.images.device
    start = time.perf_counter()
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (timm's Mixup draws from the global state)
    random.seed(seed)
    model = Classifier(task.model, task.size, data.num_classes).to(device)
    if device.type == "cpu":
        model.to(memory_format=torch.channels_last)  # a quarter faster there
    generator = torch.Generator(device).manual_seed(30_000 + seed)
    signals = Signals(condition.signal, model, generator, {"mean": data.mean, "std": data.std})
    model.train()
    # Recalibration runs the model in training mode with another momentum than a graph would have recorded.
    if graphs and device.type == "cuda" and condition.schedule != "recalibrated":
        replay_as_graphs(model, torch.zeros(task.batch_size, 1, task.size, task.size, device=device))
    batches = Batches(data, seed, task.epochs)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=device.type == "cuda"
    )
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LEARNING_RATE, total_steps=len(batches), pct_start=0.1, cycle_momentum=False
    )
    noisy_epochs = task.epochs - round(CLEAN_SHARES[condition.schedule] * task.epochs)
    noisy_steps = noisy_epochs * batches.steps_per_epoch
    draws = torch.Generator(device).manual_seed(10_000 + seed)
    hook = None if condition.preset is None else build_hook(condition, data, optimizer, draws)
    augment = None
    if condition.augment is not None:
        augment = Augmentation(condition.augment, data.num_classes, device, seed)
    strength = None if hook is None else hook.augmentation.strength
    interval = max(1, len(batches) // POINTS)
    curve: list[dict[str, float]] = []
    policy: list[dict[str, float]] = []
    encoded: dict[str, float] = {}

    def end_masking(hook: ReinforceHook) -> None:
        mask, indices = hook.augmentation, train_indices(data, seed)
        assert isinstance(mask, StudyMask)
        images = (data.images[indices].float() / 255 - data.mean) / data.std
        encoded.update(encoding(model, mask, images, data.labels[indices], 40_000 + seed))
        hook.remove()

    for step in range(len(batches)):
        if step == noisy_steps:
            augment = None
            if hook is not None:
                end_masking(hook)
                hook = None
        images, labels = batches[step]
        targets = labels
        if augment is not None:
            images, targets = augment(images, labels)
        images = (images - data.mean) / data.std
        if hook is None:
            loss = F.cross_entropy(model(images)[0], targets)
        else:
            if condition.curriculum:
                hook.augmentation.strength = strength * min(1.0, 2 * step / noisy_steps)
            other_images, other_labels = batches[(step + 1) % len(batches)]
            signals.before(images, labels, (other_images - data.mean) / data.std, other_labels)
            if isinstance(hook.augmentation.policy, ClassPolicy):
                hook.augmentation.policy.labels = labels
            masked = _mask_pathwise(hook, draws, signals, images, labels) if signals.pathwise else hook.apply(images)
            logits, features = model(masked)
            losses = F.cross_entropy(logits, labels, reduction="none")
            if hook.learner.scales_loss:
                # The published surrogate scales the classifier's loss as well.
                losses = hook.observe(losses)
            elif not signals.pathwise:
                signal = signals.after(masked, hook.augmentation.applied, logits.detach(), features, labels)
                hook.observe(hook.augmentation.credit(signal))
            loss = losses.mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        scheduler.step()
        if hook is not None:
            signals.step()
        if (step + 1) % interval == 0:
            point = {"step": step + 1, "loss": float(loss.detach())}
            if "val" in data.evals:
                point["val_clean"] = macro_f1(model, data, data.evals["val"]["clean"])
            curve.append(point)
            if hook is not None:
                policy.append({"step": step + 1, **hook.metrics, **diagnose(hook.augmentation, data)})
                model.train()
    if hook is not None:
        end_masking(hook)
    if condition.schedule == "recalibrated":
        last = range(len(batches) - batches.steps_per_epoch, len(batches))
        update_bn(((batches[step][0] - data.mean) / data.std for step in last), model)
    scores = {split: evaluate(model, data, split) for split in job.splits}
    return {
        "scores": scores,
        "curve": curve,
        "policy": policy,
        "encoding": encoded,
        "steps": len(batches),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _mask_pathwise(
    hook: ReinforceHook, draws: torch.Generator, signals: Signals, images: Tensor, labels: Tensor
) -> Tensor:
    """Mask a batch. The policy learns from the signal's own gradient."""
    mask = hook.augmentation
    assert isinstance(mask, StudyMask)
    sample = mask.sample(images, draws)
    action = sample.action.clone().requires_grad_()
    masked = mask(images, replace(sample, action=action))
    surrogate = pathwise_surrogate(sample, signals.slopes(action, masked, hook.augmentation.applied, labels))
    # Without a baseline a loss of 1 gives each image's surrogate the same weight.
    hook.learner.observe(replace(sample, log_prob=surrogate), torch.ones_like(surrogate))
    return masked.detach()
