"""Shifts of the evaluation images: changes that training did not see. Eight are made here, others by MedMNIST-C.

Each of the eight takes images in [0, 1], (N, C, H, W), a generator on their device and a severity's number.
"""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..hooks._draws import own_randomness

__all__ = [
    "MEDMNISTC_SEVERITIES",
    "SEVERITIES",
    "SHIFTS",
    "ShiftedSplit",
    "bias_field",
    "medmnistc_errors",
    "medmnistc_shifts",
    "own_generators",
]


def bias_field(images: Tensor, generator: torch.Generator, coefficient: float) -> Tensor:
    """Multiply by exp(cubic), coefficients uniform in +-coefficient, as TorchIO's and MONAI's RandBiasField do."""
    powers = [(i, j) for i in range(4) for j in range(4 - i)]
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
MEDMNISTC_SEVERITIES = (1, 2, 3, 4, 5)
MEDMNISTC_SIDE = 224
"""Image side in pixels for which MedMNIST-C's corruptions are made."""


@contextmanager
def own_generators(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch for a block, and restore them afterwards.

    Args:
        seed: In [0, 2**32).
        device: If it is a GPU, its generator too.
    """
    state, pythons = np.random.get_state(), random.getstate()  # noqa: NPY002  (what libraries draw from)
    try:
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        with own_randomness(device or torch.device("cpu"), seed):
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
        random.setstate(pythons)


def _medmnistc(data: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """MedMNIST-C's corruptions of a set, and AlexNet's errors under them."""
    try:
        from medmnistc.corruptions.registry import CORRUPTIONS_DS
        from medmnistc.utils.baselines import BASELINES
    except ImportError as error:  # of the package, or of ImageMagick's library
        raise ModuleNotFoundError(
            f"--shifts medmnistc needs the package medmnistc ({str(error).splitlines()[0]}): pip install --no-deps "
            "medmnistc wand; pip install opencv-python-headless scikit-image; and ImageMagick's library, on Debian "
            "apt-get install libmagickwand-dev"
        ) from error
    flag = data.partition("_")[0]  # organamnist_64 has the corruptions of organamnist
    if flag not in CORRUPTIONS_DS:
        raise ValueError(f"--shifts medmnistc is for MedMNIST's sets {sorted(CORRUPTIONS_DS)}, by name, got {data!r}")
    return CORRUPTIONS_DS[flag], BASELINES[flag]


def medmnistc_shifts(data: str) -> list[str]:
    """Names of MedMNIST-C's corruptions of a MedMNIST set, ``"pneumoniamnist/pixelate"``, for :class:`ShiftedSplit`.

    Args:
        data: The set's name, such as ``"pneumoniamnist"`` or ``"organamnist_64"``.

    Raises:
        ModuleNotFoundError: If ``medmnistc`` or what it needs is missing; the message says how to install it.
        ValueError: If MedMNIST-C does not have this set.
    """
    return [f"{data}/{name}" for name in _medmnistc(data)[0]]


def medmnistc_errors(data: str, clean: float, errors: Mapping[str, float]) -> dict[str, float]:
    """Balanced and relative balanced error, as the MedMNIST-C paper defines them (Di Salvo et al. 2024).

    A balanced error is 1 minus the balanced accuracy. Both are means over corruptions of quotients with AlexNet's.

    Args:
        data: The set's name.
        clean: Balanced error on the test images as they are.
        errors: By corruption, the mean balanced error over its severities.

    Returns:
        ``be``, of the errors, and ``rbe``, of what the corruptions add to the clean errors.
    """
    alexnet = _medmnistc(data)[1]
    theirs = [alexnet["raw_scores"][name] for name in errors]
    found = np.array(list(errors.values()))
    relative = (found - clean) / (np.array(theirs) - alexnet["clean_score"])
    return {"be": float(np.mean(found / theirs)), "rbe": float(relative.mean())}


@dataclass(frozen=True)
class ShiftedSplit:
    """A split whose images are shifted when read.

    An image's shift depends only on the seed and its position in the split, so it is the same in every batch.

    Args:
        split: The images.
        name: One of :data:`SHIFTS`, or of :func:`medmnistc_shifts`. The latter are made at 224 pixels, to which
            smaller images are enlarged, and reduced to the images' size again.
        severity: One of :data:`SEVERITIES`, or of :data:`MEDMNISTC_SEVERITIES`.
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
        data, _, corruption = self.name.partition("/")
        names, shift = (medmnistc_shifts(data), _corrupted) if corruption else (list(SHIFTS), _shifted)
        shifted = np.empty_like(images)
        for place, (image, position) in enumerate(zip(images, kept, strict=True)):
            key = [self.seed, names.index(self.name), self.severity, int(position)]
            shifted[place] = shift(image, self.name, self.severity, int(np.random.default_rng(key).integers(2**62)))
        return shifted, kept


def _shifted(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    function, levels = SHIFTS[name]
    tensor = torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)[None].float() / 255
    changed = function(tensor, torch.Generator().manual_seed(seed), levels[severity - 1])[0]
    changed = changed.clamp(0, 1).mul(255).round().to(torch.uint8)
    return changed.permute(1, 2, 0).reshape(image.shape).numpy()


def _corrupted(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    from PIL import Image

    data, _, corruption = name.partition("/")
    corruptor = _medmnistc(data)[0][corruption]
    corruptor.rng = np.random.default_rng(seed)  # of impulse noise; all others draw from the global generators
    high, wide = image.shape[:2]
    large = Image.fromarray(image).convert("RGB")
    with own_generators(seed % 2**32):
        changed = corruptor.apply(
            large.resize((MEDMNISTC_SIDE, MEDMNISTC_SIDE), Image.Resampling.BILINEAR), severity - 1
        )
    result = Image.fromarray(changed).convert("L" if image.ndim == 2 else "RGB")
    return np.asarray(result.resize((wide, high), Image.Resampling.BILINEAR))
