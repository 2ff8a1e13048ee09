"""The small training that the tests and their child processes share."""

import dataclasses
from pathlib import Path

import numpy as np

from policy_noise.experiments.data import ImageSet, Split
from policy_noise.experiments.recipes import RECIPES as DECLARED
from policy_noise.experiments.runs import Run


def organs(images: int = 32, channels: int = 1, classes: int = 2) -> ImageSet:
    """Classes of different brightness, some noise on them."""
    rng = np.random.default_rng(0)

    def split() -> Split:
        labels = np.arange(images) % classes
        shape = (images, 16, 16) if channels == 1 else (images, 16, 16, 3)
        grey = labels.reshape(-1, *[1] * (len(shape) - 1)) * (160 // classes)
        return Split((rng.integers(0, 80, shape) + grey).astype(np.uint8), labels)

    return ImageSet("bright", split(), split(), split(), tuple("abcdefgh"[:classes]), {})


def run_of(folder: str | Path, recipe: object, here: object, *, resume: bool = True) -> Run:
    """The folder of a run, new or resumed."""
    return Run(folder, "pretrain", recipe, {"name": "bright"}, resume=resume, writes=here.main)


# 32 images in batches of 8: four steps an epoch, a checkpoint at every second. Without batch
# statistics one process can be compared with two.
_BASE = dataclasses.replace(
    DECLARED["small"]["pretrain"],
    model_options={"norm_layer": "groupnorm1"},
    image_size=16,
    load_size=16,
    batch_size=8,
    epochs=2,
    checkpoint_steps=2,
    lr=1e-3,
)
RECIPES = {
    "plain": _BASE,
    "policy": dataclasses.replace(_BASE, noise="learned", noise_options={"grid_size": 4}),
    "half_batch": dataclasses.replace(_BASE, batch_size=4),
    "batch_norm": dataclasses.replace(_BASE, batch_size=4, epochs=1, model_options={}),
    "policy_half_batch": dataclasses.replace(_BASE, batch_size=4, noise="learned", noise_options={"grid_size": 4}),
}
