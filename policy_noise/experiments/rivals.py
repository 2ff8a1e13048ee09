"""Established intensity augmentations, for comparison with the masks."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..hooks.streams import own_randomness
from .shifts import bias_field

__all__ = ["RIVALS", "Augmentation", "RunAugmentation"]

RIVALS = ("bias_field", "gaussian_noise", "random_erasing", "mixup", "randaugment", "color_jitter")


class Augmentation:
    """An intensity augmentation of images in [0, 1], at its usual strength.

    Args:
        name: ``"bias_field"`` (TorchIO's default, half of the images), ``"gaussian_noise"`` (std 0.1, half),
            ``"random_erasing"`` (kornia's, half), ``"mixup"`` (timm's, alpha 0.2), ``"randaugment"`` (torchvision's,
            2 operations of magnitude 9, drawn for each eighth of the batch) or ``"color_jitter"`` (kornia's at
            timm's default strength: brightness, contrast and, of colours, saturation within 0.4 of 1).
        num_classes: Number of classes, for MixUp's targets.
        device: Device of the images.
        seed: Seed of the two augmentations that draw on the device. The others use the global seeds.
    """

    def __init__(self, name: str, num_classes: int, device: torch.device, seed: int) -> None:
        self.name = name
        self.generator = torch.Generator(device).manual_seed(20_000 + seed)
        self.operation: Any = None
        if name == "random_erasing":
            from kornia.augmentation import RandomErasing

            self.operation = RandomErasing(p=0.5)
        elif name == "mixup":
            from timm.data import Mixup

            self.operation = Mixup(mixup_alpha=0.2, label_smoothing=0.0, num_classes=num_classes)
        elif name == "randaugment":
            from torchvision.transforms.v2 import RandAugment

            self.operation = RandAugment()
        elif name == "color_jitter":
            from kornia.augmentation import ColorJitter

            self.operation = ColorJitter(0.4, 0.4, 0.4)
        elif name not in RIVALS:
            raise ValueError(f"unknown augmentation {name!r}")

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.name == "mixup":
            return self.operation(images, labels)
        if self.name == "randaugment":
            parts = (images * 255).round().to(torch.uint8).chunk(8)
            return torch.cat([self.operation(part) for part in parts]).float() / 255, labels
        if self.name == "random_erasing":
            return self.operation(images), labels
        if self.name == "color_jitter":
            return self.operation(images.expand(-1, 3, -1, -1))[:, : images.shape[1]], labels
        if self.name == "bias_field":
            changed = bias_field(images, self.generator, 0.5).clamp(0, 1)
        else:
            noise = torch.randn(images.shape, generator=self.generator, device=images.device)
            changed = (images + 0.1 * noise).clamp(0, 1)
        chosen = torch.rand(len(images), 1, 1, 1, generator=self.generator, device=images.device) < 0.5
        return torch.where(chosen, changed, images), labels


class RunAugmentation:
    """An augmentation for resumable runs: its random draws depend only on seed, step and process.

    Args:
        name: See :class:`Augmentation`.
        num_classes: Number of classes, for MixUp's targets.
        device: Device of the images.
        seed: The run's seed.
        rank: Number of the process.
        mean: Mean of the images' normalization.
        std: Standard deviation of the images' normalization.
    """

    def __init__(
        self, name: str, num_classes: int, device: torch.device, *, seed: int, rank: int, mean: float, std: float
    ) -> None:
        self.augmentation = Augmentation(name, num_classes, device, seed)
        self.seed, self.rank, self.mean, self.std = seed, rank, mean, std

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Augment a normalized batch at a step, counted from 0. The global random generators are left unchanged.

        Returns:
            The images, and the labels or, for MixUp, class probabilities.
        """
        seed = int(np.random.default_rng([self.seed, step, 2, self.rank]).integers(2**31))
        self.augmentation.generator.manual_seed(seed)
        count = len(images)
        if self.augmentation.name == "mixup" and count % 2:  # timm's mixes pairs
            images, labels = torch.cat([images, images[:1]]), torch.cat([labels, labels[:1]])
        state = np.random.get_state()  # noqa: NPY002  (timm's MixUp draws from the global state)
        try:
            np.random.seed(seed)  # noqa: NPY002
            with own_randomness(images.device, seed):
                x, y = self.augmentation((images * self.std + self.mean).clamp(0, 1), labels)
        finally:
            np.random.set_state(state)  # noqa: NPY002
        x = ((x - self.mean) / self.std)[:count].contiguous(memory_format=torch.channels_last)
        return x, y[:count]
