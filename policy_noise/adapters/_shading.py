"""What the adapters share: integer images, and masks whose grid has as many axes as the image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..masks import ShadingSample
from ..masks.random_shading import RandomShading

__all__ = ["SeededShading", "cells_of", "draw", "shade"]

MAX_SEED = 2**31


def shade(mask: RandomShading, images: Tensor, sample: ShadingSample) -> Tensor:
    """Mask images of any real dtype, and keep the dtype.

    Bytes are read as intensities in [0, 1], as torchvision scales them. Other integers keep their values, such as
    Hounsfield units. The result is rounded, and clipped to what the dtype can hold.

    Args:
        mask: The transform.
        images: One image or a batch.
        sample: The masks to apply.

    Raises:
        TypeError: If the dtype is none of images.
    """
    dtype = images.dtype
    if dtype.is_floating_point:
        return _shaded(mask, images, sample)
    if dtype not in (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.int32):
        raise TypeError(
            f"images must be floating point or integers of at most 32 bits, got {dtype}: convert them first"
        )
    limits = torch.iinfo(dtype)
    white = 255.0 if dtype == torch.uint8 else 1.0
    values = images.to(torch.float64 if limits.bits == 32 else torch.float32) / white
    shaded = _shaded(mask, values, sample) * white
    return shaded.round_().clamp_(limits.min, limits.max).to(dtype)


def _shaded(mask: RandomShading, images: Tensor, sample: ShadingSample) -> Tensor:
    mask.look_at(mask.as_batch(images))
    return mask(images, sample)


def draw(
    mask: RandomShading,
    shape: Sequence[int],
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
) -> ShadingSample:
    """Draw masks for an image or a batch of this shape."""
    return mask.sample(torch.empty((), device=device).expand(*shape), generator)  # takes no memory


def cells_of(settings: dict[str, Any]) -> int | None:
    """Cells along every axis, or None if each axis has its own number. By default those of RandomShading."""
    cells = settings.get("grid_size", RandomShading().grid_size[0])
    return cells if isinstance(cells, int) else None


class SeededShading:
    """Random shading by a seed: for libraries whose transforms take images of two or three axes and store parameters.

    Args:
        settings: Any setting of :class:`policy_noise.RandomShading`. A ``grid_size`` that is one number is used along
            all axes of an image, but with no more cells than it has pixels there.

    Raises:
        ValueError: If a setting is out of its range.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self._mask = RandomShading(**settings)
        self._cells = cells_of(settings)

    def __call__(self, image: Tensor, seed: int) -> Tensor:
        """Mask one image (C, H, W) or (C, D, H, W). The same seed gives the same mask."""
        mask = self._fitting(image.shape[1:])
        generator = torch.Generator(image.device).manual_seed(seed)
        return shade(mask, image, draw(mask, image.shape, image.device, generator))

    def _fitting(self, size: Sequence[int]) -> RandomShading:
        """The mask whose grid has the image's axes."""
        if self._cells is not None and len(size) in (2, 3):
            grid = tuple(min(self._cells, pixels) for pixels in size)
            if grid != self._mask.grid_size:
                self._mask = RandomShading(**{**self.settings, "grid_size": grid})
        return self._mask
