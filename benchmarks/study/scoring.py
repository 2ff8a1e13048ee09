"""Scores of a classifier, and what a policy has learned."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.study.classifier import Classifier
from benchmarks.study.masks import ClassPolicy, StudyMask
from benchmarks.study.tasks import EvalSet, FewShot, TaskData
from policy_noise import PolicyNoiseMask
from policy_noise.experiments.transfer import draw_few_shot, embed, linear_probe

SHOTS = (16, 64, 256)
DRAWS = 10
MASK_SIDE = 4
"""Pixels along each axis at which masks are given to the class probe. The mask has fewer cells."""


@torch.no_grad()
def macro_f1(model: Classifier, data: TaskData, evals: EvalSet) -> float:
    """Macro F1 in eval mode. The model's mode is restored."""
    from sklearn.metrics import f1_score

    training = model.training
    model.eval()
    logits = torch.cat([model((part.float() / 255 - data.mean) / data.std)[0] for part in evals.images.split(2048)])
    model.train(training)
    classes = np.arange(data.num_classes) if evals.classes is None else np.array(evals.classes)
    predictions = classes[logits[:, classes].argmax(1).cpu().numpy()]
    return float(f1_score(evals.labels, predictions, labels=classes, average="macro", zero_division=0))


def evaluate(model: Classifier, data: TaskData, split: str) -> dict[str, float]:
    """Macro F1 on every set of a split, and after few-shot transfer."""
    scores = {name: macro_f1(model, data, evals) for name, evals in data.evals[split].items()}
    return scores | (_transfer(model, data, data.few_shot[split]) if split in data.few_shot else {})


def _transfer(model: Classifier, data: TaskData, target: FewShot) -> dict[str, float]:
    """Macro F1 of linear probes by the number of images, mean over draws, which are the same for all runs."""
    from sklearn.metrics import f1_score

    features, test_features = (
        embed(model.network, (images.float() / 255 - data.mean) / data.std)
        for images in (target.images, target.test.images)
    )
    scores = {}
    for shots in SHOTS:
        found = []
        for draw in range(DRAWS):
            drawn = draw_few_shot(target.labels, shots, np.random.default_rng([shots, draw]))
            probabilities = linear_probe(features[drawn], target.labels[drawn], test_features, target.num_classes)
            found.append(f1_score(target.test.labels, probabilities.argmax(1), average="macro", zero_division=0))
        scores[f"few_shot:{shots}"] = float(np.mean(found))
    return scores


@torch.no_grad()
def diagnose(mask: PolicyNoiseMask, data: TaskData) -> dict[str, float]:
    """Diagnostics of the policy on a few training images, spread evenly over the data set."""
    stride = max(1, len(data.images) // 256)
    images = (data.images[::stride][:256].float() / 255 - data.mean) / data.std
    mask.eval()
    if isinstance(mask.policy, ClassPolicy):
        mask.policy.labels = data.labels[::stride][:256]
    sample = mask.sample(images, torch.Generator(images.device).manual_seed(0))
    mask.train()
    mean = sample.concentration1 / (sample.concentration1 + sample.concentration0)
    total = sample.concentration1 + sample.concentration0
    everywhere = replace(sample, applied=torch.ones_like(sample.applied))
    rendered = mask.render(everywhere, images.shape[2:])
    return {
        "alpha": float(sample.concentration1.mean()),
        "beta": float(sample.concentration0.mean()),
        "cell_mean": float(mean.mean()),
        "cell_std": float((mean * (1 - mean) / (total + 1)).sqrt().mean()),
        "mean_over_images_std": float(mean.std(0).mean()),
        "mean_over_cells_std": float(mean.mean(0).std()) if mean[0].numel() > 1 else 0.0,
        "rendered_std": float(rendered.flatten(1).std(1).mean()),
    }


@torch.no_grad()
def encoding(model: Classifier, mask: StudyMask, images: Tensor, labels: Tensor, seed: int) -> dict[str, float]:
    """Measure how far masks encode the class, and whether the classifier uses this.

    Every image gets a mask as in training. A linear probe is trained on half of the images to predict the class from
    the rendered mask alone, and tested on the other half. The classifier, in eval mode, sees each image with its own
    mask, with another image's mask, and without a mask.

    Args:
        model: The classifier. Its mode is restored.
        mask: The mask with its policy.
        images: Normalized training images, (N, 1, S, S).
        labels: Their labels, (N,).
        seed: Seed of the masks, the halves and the other images.

    Returns:
        ``probe`` and ``probe_swapped``, mean recall over classes from an image's own mask and from another image's
        mask; ``chance``, 1 / number of classes; ``loss``, ``loss_swapped`` and ``loss_unmasked``, mean cross-entropy
        in nats.
    """
    from sklearn.metrics import balanced_accuracy_score

    generator = torch.Generator(images.device).manual_seed(seed)
    order = torch.randperm(len(images), generator=generator, device=images.device)
    images, labels = images[order], labels[order]
    if isinstance(mask.policy, ClassPolicy):
        mask.policy.labels = labels
    sample = mask.sample(images, generator)
    sample = replace(sample, applied=torch.ones_like(sample.applied))
    swapped = mask.swap(sample)
    training, was_shuffled = model.training, mask.shuffled
    mask.shuffled = False
    model.eval()

    def loss(shown: Tensor) -> float:
        logits = torch.cat([model(part)[0] for part in shown.split(512)])
        return float(F.cross_entropy(logits, labels))

    result = {
        "loss": loss(mask.transform(images, sample)),
        "loss_swapped": loss(mask.transform(images, swapped)),
        "loss_unmasked": loss(images),
    }
    model.train(training)
    mask.shuffled = was_shuffled
    classes, half = labels.cpu().numpy(), len(labels) // 2
    for name, masks in (("probe", sample), ("probe_swapped", swapped)):
        pixels = F.adaptive_avg_pool2d(mask.render(masks, images.shape[2:]), MASK_SIDE).flatten(1).cpu().numpy()
        named = linear_probe(pixels[:half], classes[:half], pixels[half:], int(classes.max()) + 1).argmax(1)
        result[name] = float(balanced_accuracy_score(classes[half:], named))
    return result | {"chance": 1 / len(np.unique(classes))}
