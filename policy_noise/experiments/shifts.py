"""Shifts of the evaluation images: changes that training did not see.

Each takes images in [0, 1], (N, C, H, W), a generator on their device and a severity's number.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["SEVERITIES", "SHIFTS", "ShiftedSplit", "bias_field"]


def bias_field(images: Tensor, generator: torch.Generator, coefficient: float, order: int = 3) -> Tensor:
    """Multiply by exp(polynomial), coefficients uniform in +-coefficient, as TorchIO's and MONAI's RandBiasField do."""
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    y = torch.linspace(-1, 1, images.shape[2], device=images.device)
    x = torch.linspace(-1, 1, images.shape[3], device=images.device)
    basis = torch.stack([y[:, None] ** i * x[None, :] ** j for i, j in powers])
    weights = torch.rand(len(images), len(powers), generator=generator, device=images.device) * 2 - 1
    return images * torch.einsum("nk,khw->nhw", weights * coefficient, basis).exp().unsqueeze(1)


def _contrast(images: Tensor, generator: torch.Generator, factor: float) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return torch.lerp(mean, images, factor)


def _gamma(images: Tensor, generator: torch.Generator, exponent: float) -> Tensor:
    """Brighter or darker, at random."""
    return images ** (exponent ** _sign(images, generator))


def _brightness(images: Tensor, generator: torch.Generator, offset: float) -> Tensor:
    return images + offset * _sign(images, generator)


def _sign(images: Tensor, generator: torch.Generator) -> Tensor:
    draw = torch.randint(2, (len(images), 1, 1, 1), generator=generator, device=images.device)
    return draw.to(images.dtype) * 2 - 1


def _noise(images: Tensor, generator: torch.Generator, std: float) -> Tensor:
    return images + std * torch.randn(images.shape, generator=generator, device=images.device)


def _speckle(images: Tensor, generator: torch.Generator, std: float) -> Tensor:
    return images * (1 + std * torch.randn(images.shape, generator=generator, device=images.device))


def _blur(images: Tensor, generator: torch.Generator, sigma: float) -> Tensor:
    from kornia.filters import gaussian_blur2d

    sigma = sigma * images.shape[-1] / 32
    kernel_size = 2 * math.ceil(3 * sigma) + 1
    return gaussian_blur2d(images, (kernel_size, kernel_size), (sigma, sigma))


def _pixelate(images: Tensor, generator: torch.Generator, factor: float) -> Tensor:
    size = images.shape[2:]
    small = F.interpolate(images, [round(side * factor) for side in size], mode="area")
    return F.interpolate(small, size, mode="nearest")


SHIFTS: dict[str, tuple[Callable[[Tensor, torch.Generator, float], Tensor], tuple[float, ...]]] = {
    "bias_field": (bias_field, (0.25, 0.5, 0.75)),  # TorchIO's default is 0.5
    "contrast": (_contrast, (0.6, 0.4, 0.25)),
    "gamma": (_gamma, (1.5, 2.0, 3.0)),
    "brightness": (_brightness, (0.1, 0.2, 0.3)),
    "speckle": (_speckle, (0.05, 0.1, 0.2)),
    "noise": (_noise, (0.02, 0.04, 0.08)),
    "blur": (_blur, (0.6, 0.9, 1.3)),  # sigma in pixels at 32 px
    "pixelate": (_pixelate, (0.75, 0.5, 0.375)),
}
SEVERITIES = (1, 2, 3)


@dataclass(frozen=True)
class ShiftedSplit:
    """A split whose images are shifted when read.

    An image's shift depends only on the seed and its position in the split, so it is the same in every batch.

    Args:
        split: The images.
        name: One of :data:`SHIFTS`.
        severity: One of :data:`SEVERITIES`.
        seed: Seed of the shifts.
    """

    split: Any
    name: str
    severity: int
    seed: int = 0

    def __len__(self) -> int:
        return len(self.split)

    @property
    def labels(self) -> np.ndarray:
        """The labels, which a shift does not change."""
        return self.split.labels

    def read(self, indices: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shifted uint8 images, and the positions of those that could be read."""
        images, kept = self.split.read(indices)
        function, levels = SHIFTS[self.name]
        generator, number = torch.Generator(), list(SHIFTS).index(self.name)
        shifted = np.empty_like(images)
        for place, (image, position) in enumerate(zip(images, kept, strict=True)):
            key = [self.seed, number, self.severity, int(position)]
            generator.manual_seed(int(np.random.default_rng(key).integers(2**62)))
            tensor = torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)[None].float() / 255
            changed = function(tensor, generator, levels[self.severity - 1])[0]
            changed = changed.clamp(0, 1).mul(255).round().to(torch.uint8)
            shifted[place] = changed.permute(1, 2, 0).reshape(image.shape).numpy()
        return shifted, kept
