"""Established intensity augmentations, for comparison with the masks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..hooks.streams import own_randomness
from .shifts import bias_field

__all__ = ["RIVALS", "Augmentation", "RunAugmentation"]

Operation = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]
"""Of images in [0, 1], labels and a generator on their device."""


def _on_half(change: Callable[[Tensor, torch.Generator], Tensor]) -> Callable[[int], Operation]:
    def operation(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        changed = change(images, generator)
        chosen = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device) < 0.5
        return torch.where(chosen, changed, images), labels

    return lambda num_classes: operation


def _bias_field(images: Tensor, generator: torch.Generator) -> Tensor:
    """TorchIO's default."""
    return bias_field(images, generator, 0.5).clamp(0, 1)


def _gaussian_noise(images: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    return (images + 0.1 * noise).clamp(0, 1)


def _swap_statistics(images: Tensor, generator: torch.Generator) -> Tensor:
    """Give each image the mean and standard deviation, in each channel, of another one."""
    std, mean = torch.std_mean(images, dim=(2, 3), keepdim=True)
    order = torch.randperm(len(images), generator=generator, device=images.device)
    normalized = (images - mean) / std.clamp_min(1e-6)
    return (normalized * std[order] + mean[order]).clamp(0, 1)


def _randconv(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mix each image with itself under a random filter (RandConv's RC-mix 1-7, Xu et al. 2021).

    A size of 1, 3, 5 or 7 for each batch, and a filter and a share for each image. As in the authors' code, grey of 0.5
    is zero to the filters.
    """
    count, channels = images.shape[:2]
    device = images.device
    size = 1 + 2 * int(torch.randint(4, (), generator=generator, device=device))
    filters = torch.randn(count * channels, channels, size, size, generator=generator, device=device)
    filters = filters / (channels * size**2) ** 0.5
    flat = (images - 0.5).reshape(1, count * channels, *images.shape[2:])
    filtered = F.conv2d(flat, filters, padding=size // 2, groups=count).reshape(images.shape) + 0.5
    return torch.lerp(filtered, images, torch.rand(count, 1, 1, 1, generator=generator, device=device))


def _of_torchvision(name: str) -> Callable[[int], Operation]:
    """Drawn for each eighth of the batch."""

    def build(num_classes: int) -> Operation:
        from torchvision.transforms import v2

        transform = getattr(v2, name)()

        def operation(images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            parts = (images * 255).round().to(torch.uint8).chunk(8)
            return torch.cat([transform(part) for part in parts]).float() / 255, labels

        return operation

    return build


def _random_erasing(num_classes: int) -> Operation:
    from kornia.augmentation import RandomErasing

    erasing = RandomErasing(p=0.5)
    return lambda images, labels, generator: (erasing(images), labels)


def _mixup(num_classes: int) -> Operation:
    from timm.data import Mixup

    mixup: Any = Mixup(mixup_alpha=0.2, label_smoothing=0.0, num_classes=num_classes)
    return lambda images, labels, generator: mixup(images, labels)


def _color_jitter(num_classes: int) -> Operation:
    from kornia.augmentation import ColorJitter

    jitter = ColorJitter(0.4, 0.4, 0.4)
    return lambda images, labels, generator: (jitter(images.expand(-1, 3, -1, -1))[:, : images.shape[1]], labels)


RIVALS: dict[str, Callable[[int], Operation]] = {
    "bias_field": _on_half(_bias_field),
    "gaussian_noise": _on_half(_gaussian_noise),
    "swap_statistics": _on_half(_swap_statistics),
    "randconv": _on_half(_randconv),
    "random_erasing": _random_erasing,
    "mixup": _mixup,
    "randaugment": _of_torchvision("RandAugment"),
    "trivialaugment": _of_torchvision("TrivialAugmentWide"),
    "augmix": _of_torchvision("AugMix"),
    "color_jitter": _color_jitter,
}
"""What makes each, from the number of classes."""


class Augmentation:
    """An intensity augmentation of images in [0, 1], at its usual strength.

    Args:
        name: ``"bias_field"`` (TorchIO's default, half of the images), ``"gaussian_noise"`` (std 0.1, half),
            ``"swap_statistics"`` (mean and deviation of another image, half), ``"randconv"`` (RC-mix 1-7, half),
            ``"random_erasing"`` (kornia's, half), ``"mixup"`` (timm's, alpha 0.2), ``"randaugment"``,
            ``"trivialaugment"`` or ``"augmix"`` (torchvision's, drawn for each eighth of the batch) or
            ``"color_jitter"`` (kornia's: brightness, contrast and, of colours, saturation within 0.4 of 1).
        num_classes: Number of classes, for MixUp's targets.
        device: Device of the images.
        seed: Seed of the augmentations that draw on the device. Those of libraries use the global seeds.
    """

    def __init__(self, name: str, num_classes: int, device: torch.device, seed: int) -> None:
        if name not in RIVALS:
            raise ValueError(f"unknown augmentation {name!r}; known are {list(RIVALS)}")
        self.name = name
        self.generator = torch.Generator(device).manual_seed(20_000 + seed)
        self.operation = RIVALS[name](num_classes)

    @torch.no_grad()
    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.operation(images, labels, self.generator)


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
