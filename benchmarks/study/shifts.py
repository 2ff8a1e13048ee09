"""Shifts of the evaluation images.

Each takes images in [0, 1], (N, 1, H, W), a generator on their device and a severity's number.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


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
SHIFT_SEEDS = {"val": 1000, "test": 2000}
CORRUPTION_SEVERITIES = (0, 2, 4)
"""Of MedMNIST-C's five."""


def medmnist_c(name: str, images: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Images under MedMNIST-C's corruptions (Di Salvo et al. 2024, package ``medmnistc``), at their own size.

    The package was made for 224 px and seeds its corruptions globally; here each starts from a seed of its own.

    Args:
        name: The package's name of the set whose list of corruptions is meant.
        images: uint8, (N, S, S).
        seed: Of the first corruption.

    Returns:
        By ``"<corruption>-<severity>"``, severities 1, 3 and 5.

    Raises:
        ImportError: If the package or ImageMagick is missing.
    """
    from medmnistc.corruptions.registry import CORRUPTIONS_DS
    from PIL import Image

    state = np.random.get_state()  # noqa: NPY002  (the package draws from the global state)
    sets = {}
    for number, (corruption, corruptor) in enumerate(CORRUPTIONS_DS[name].items()):
        for severity in CORRUPTION_SEVERITIES:
            np.random.seed(seed + 10 * number + severity)  # noqa: NPY002
            corruptor.rng = np.random.default_rng(seed + 10 * number + severity)  # impulse noise asks for it
            made = [corruptor.apply(Image.fromarray(image).convert("RGB"), severity) for image in images]
            grey = [np.asarray(Image.fromarray(np.asarray(image)).convert("L")) for image in made]
            sets[f"{corruption}-{severity + 1}"] = np.stack(grey)
    np.random.set_state(state)  # noqa: NPY002
    return sets
