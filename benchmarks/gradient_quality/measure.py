"""Measure the quality of all estimators on partly trained classifiers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import policy_noise.functional as PF
from benchmarks.gradient_quality.estimators import ESTIMATORS, draw_pool
from benchmarks.study.classifier import Classifier
from benchmarks.study.tasks import TaskData
from benchmarks.study.training import LEARNING_RATE, WEIGHT_DECAY, Batches
from policy_noise.policy import SpatialPolicy

PAPER_SIGMA = 6 / 224
"""The paper's blur, as a share of the image's side."""
HEAD_STD = 0.1
"""Standard deviation of the weights of the policy's head. At zero, its start, only the head itself has a gradient."""


def quality(gradients: Tensor, pathwise: Tensor, batch: int) -> dict[str, float | None]:
    """Measure the quality of an estimator from one gradient per batch.

    Args:
        gradients: Gradients of independent batches of consecutive samples of the pool, (R, D).
        pathwise: Pathwise gradient of each sample of the pool, (R * batch, D).
        batch: Batch size.

    Returns:
        ``snr``; ``cosine``, the mean over batches of the cosine to the reference; ``cosine_of_mean``, the cosine of the
        expected gradient to the reference, from unbiased estimates (None where the signal's is not positive): 1 for an
        unbiased estimator, and can exceed 1 by chance.
    """
    gradients, pathwise = gradients.double(), pathwise.double()
    reference = (pathwise.sum(0) - pathwise.unflatten(0, (-1, batch)).sum(1)) / (len(pathwise) - batch)
    signal, variance = _signal_and_variance(gradients)
    true_signal, _ = _signal_and_variance(pathwise)
    inner = (gradients * reference).sum(1).mean()
    return {
        "snr": float(signal / variance),
        "cosine": float(F.cosine_similarity(gradients, reference).mean()),
        "cosine_of_mean": float(inner / (signal * true_signal).sqrt()) if min(signal, true_signal) > 0 else None,
    }


def _signal_and_variance(gradients: Tensor) -> tuple[Tensor, Tensor]:
    mean = gradients.mean(0)
    variance = (gradients - mean).square().sum() / (len(gradients) - 1)
    return mean.square().sum() - variance / len(gradients), variance


def half_trained(data: TaskData, seed: int, epochs: int) -> tuple[Classifier, float]:
    """Train the study's classifier briefly, with random Beta(1, 1) masks on half of the images.

    Returns:
        The classifier and its clean accuracy.
    """
    torch.manual_seed(seed)
    model = Classifier(data.task.size, data.num_classes, half=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = Batches(data, seed, epochs)
    black = torch.tensor(-data.mean / data.std).view(1, 1, 1, 1)
    for step in range(len(batches)):
        images, labels = batches[step]
        action = torch.rand(len(images), 1, 8, 8)
        masked = PF.noise_mask(
            (images - data.mean) / data.std,
            action,
            sigma=PAPER_SIGMA * data.task.size,
            mean_preserving=True,
            black=black,
            applied=torch.rand(len(images)) < 0.5,
        )
        loss = F.cross_entropy(model(masked), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    with torch.no_grad():
        predictions = model((data.images.float() / 255 - data.mean) / data.std).argmax(1)
    return model, float((predictions == data.labels).float().mean())


def measure(
    data: TaskData, seeds: int, grids: list[int], batches: list[int], samples: int, epochs: int
) -> dict[str, Any]:
    """Measure all estimators, grids, batch sizes and seeds. Returns ``rows`` and each seed's classifier."""
    black = torch.tensor(-data.mean / data.std).view(1, 1, 1, 1)
    rows, accuracies = [], []
    for seed in range(seeds):
        model, accuracy = half_trained(data, seed, epochs)
        accuracies.append(accuracy)

        def loss_of(action: Tensor | None, images: Tensor, targets: Tensor, model: Classifier = model) -> Tensor:
            if action is not None:
                sigma = PAPER_SIGMA * data.task.size
                images = PF.noise_mask(images, action, sigma=sigma, mean_preserving=True, black=black)
            return F.cross_entropy(model(images), targets, reduction="none")

        for grid in grids:
            torch.manual_seed(1000 * seed + grid)
            policy = SpatialPolicy(1, (grid, grid))
            nn.init.normal_(policy.head.weight, std=HEAD_STD)
            chosen = torch.randint(len(data.images), (samples,))
            images = (data.images[chosen].float() / 255 - data.mean) / data.std
            pool = draw_pool(policy, loss_of, images, data.labels[chosen])
            for batch in batches:
                for name, estimator in ESTIMATORS.items():
                    scores = quality(estimator.function(pool, batch), pool.pathwise, batch)
                    rows.append({"estimator": name, "grid": grid, "batch": batch, "seed": seed, **scores})
            print(f"seed {seed}, grid {grid}: {float(pool.loss.mean()):.3f} nats under masks", flush=True)
    return {"rows": rows, "accuracies": accuracies}
