"""Pictures of what a training does to images."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from policy_noise.plotting import plot_masks

from ..utils.files import write_atomic
from .batches import augment
from .data import channels_first
from .recipes import TrainRecipe
from .world import World

__all__ = ["mask_gallery", "save_seen"]

IMAGES = 8


def _one_of_each_class(split: Any) -> np.ndarray:
    """Positions of the first image of each class. If there are too many classes, they are sampled evenly."""
    labels = split.labels
    if labels.ndim == 2:  # the first label stands for the image; without any it is not shown
        labels = np.where(labels.any(1), labels.argmax(1), -1)
    found, firsts = np.unique(labels, return_index=True)
    firsts = firsts[found >= 0]
    return firsts[np.linspace(0, len(firsts) - 1, min(IMAGES, len(firsts))).round().astype(int)]


def mask_gallery(path: Path, mask: Any, data: Any, recipe: TrainRecipe, world: World, title: str) -> None:
    """Draw the mask on a few validation images, the same in every epoch."""
    images, positions = _normalised(data, recipe, world)
    labels = data.val.labels[positions]
    names = [data.class_names[label if labels.ndim == 1 else label.argmax()] for label in labels]
    figure = plot_masks(
        mask,
        images,
        [name.rpartition("/")[2].replace("_", " ")[:18] for name in names],
        draws=1,
        mean=recipe.mean,
        std=recipe.std,
    )
    figure.suptitle(f"{title}\nvalidation images", fontsize=10)  # in two lines: with two classes it is narrow
    write_atomic(path, lambda temporary: figure.savefig(temporary, format="png", dpi=110))


@torch.no_grad()
def save_seen(path: Path, mask: Any, extra: Any, data: Any, recipe: TrainRecipe, world: World) -> None:
    """Save a few validation images side by side, pixel for pixel, as the classifier sees them in training.

    Geometric augmentation is left out. The run's random generators are not used.
    """
    from PIL import Image

    images, positions = _normalised(data, recipe, world)
    if extra is not None:
        images, _ = extra(images, torch.from_numpy(data.val.labels[positions]).to(images.device), 0)
    if mask is not None:
        training = mask.training
        mask.eval()  # a backbone policy's statistics stay as they are
        images = mask(images, mask.sample(images, torch.Generator(images.device).manual_seed(0)))
        mask.train(training)
    grey = (images.float() * recipe.std + recipe.mean).clamp(0, 1).mul(255).round().to(torch.uint8)
    strip = np.concatenate(list(grey.permute(0, 2, 3, 1).cpu().numpy()), axis=1)
    picture = Image.fromarray(strip[..., 0] if strip.shape[2] == 1 else strip)
    write_atomic(path, lambda temporary: picture.save(temporary, format="PNG"))


def _normalised(data: Any, recipe: TrainRecipe, world: World) -> tuple[Tensor, np.ndarray]:
    """A few normalized validation images without masks, and their positions."""
    images, positions = data.val.read(_one_of_each_class(data.val))
    present = torch.ones(len(positions), dtype=torch.bool)
    return augment(channels_first(images).to(world.device), recipe, 0, world, present, train=False), positions
