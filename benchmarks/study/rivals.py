"""Hand-set augmentations, the rivals of the mask."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.study.shifts import bias_field


class Augmentation:
    """A hand-set augmentation of images in [0, 1], each at its usual strength.

    Args:
        name: ``"bias_field"`` (TorchIO's default, half of the images), ``"gaussian_noise"`` (std 0.1, half),
            ``"random_erasing"`` (kornia's, half), ``"mixup"`` (timm's, alpha 0.2), ``"randaugment"`` (torchvision's,
            2 operations of magnitude 9, drawn anew for each eighth of the batch) or ``"color_jitter"`` (kornia's at
            timm's default strength: brightness and contrast within 0.4 of 1).
        num_classes: For MixUp's targets.
        device: Where the images are.
        seed: Of the two that draw on the device; the others follow the global seeds.
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
        elif name not in ("bias_field", "gaussian_noise"):
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
            return self.operation(images.expand(-1, 3, -1, -1))[:, :1], labels
        if self.name == "bias_field":
            changed = bias_field(images, self.generator, 0.5).clamp(0, 1)
        else:
            noise = torch.randn(images.shape, generator=self.generator, device=images.device)
            changed = (images + 0.1 * noise).clamp(0, 1)
        chosen = torch.rand(len(images), 1, 1, 1, generator=self.generator, device=images.device) < 0.5
        return torch.where(chosen, changed, images), labels
