"""Where black lies in images, and whether their values fit it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["ValueRange", "as_list", "low_percentile", "smallest"]

SHARE = 0.01
"""Share of the pixels that lie below :func:`low_percentile`."""
PIXELS = 4096
"""Pixels of each channel that :func:`low_percentile` looks at, evenly spaced."""


def smallest(images: Tensor) -> Tensor:
    """Each image's smallest finite value in each channel. Some scanners pad the field of view with NaN or -inf."""
    values = torch.nan_to_num(images.detach(), math.inf, math.inf, math.inf)
    darkest = values.amin(dim=tuple(range(2, images.ndim)), keepdim=True)
    return torch.nan_to_num(darkest, posinf=0.0)


def low_percentile(images: Tensor) -> Tensor:
    """The 1st percentile of each image's values in each channel. Padding and values that are not finite do not count.

    The smallest value is padding, such as -3024 around a CT slice of which air has -1000, if it stands alone (the next
    one is farther away than a quarter of the range of the others) and fills less than half of the image.
    """
    axes = images.ndim - 2
    steps = [math.ceil(pixels / PIXELS ** (1 / axes)) for pixels in images.shape[2:]]
    picked: Any = (..., *(slice(None, None, step) for step in steps))
    values = images.detach()[picked].flatten(2)
    lowest = smallest(images).flatten(2)
    finite = values.isfinite()
    others = finite & (values > lowest)
    second = values.masked_fill(~others, math.inf).amin(2, keepdim=True)
    highest = values.masked_fill(~others, -math.inf).amax(2, keepdim=True)
    many = others.sum(2, keepdim=True) > finite.sum(2, keepdim=True) / 2
    counts = torch.where(many & (second - lowest > (highest - second) / 4), others, finite)
    ordered = values.masked_fill(~counts, math.inf).sort(dim=2).values
    place = (SHARE * (counts.sum(dim=2, keepdim=True) - 1).clamp(min=0)).long()
    found = ordered.gather(2, place)
    return torch.where(found.isfinite(), found, lowest).view(*images.shape[:2], *[1] * axes)


def as_list(values: Tensor) -> list[float]:
    """Values as rounded numbers, for messages."""
    return [round(float(value), 2) for value in values.flatten()]


@dataclass(frozen=True)
class ValueRange:
    """Finite values of images in each channel, on the CPU.

    Args:
        images: Number of images that have any.
        darkest: Smallest value, (C,); infinite for a channel without any.
        brightest: Largest value, (C,), likewise.
        outside: Share of the pixels that lie clearly below black or above white, (C,).
    """

    images: int
    darkest: Tensor
    brightest: Tensor
    outside: Tensor

    @classmethod
    def of(cls, images: Tensor, black: Tensor, white: Tensor | None) -> "ValueRange":
        """The range of a batch."""
        axes = (0, *range(2, images.ndim))
        values = images.detach().float()
        finite = values.isfinite()
        outside = values < black.to(values) - 0.1
        if white is not None:
            outside |= values > white.to(values) + 0.1
        darkest = torch.where(finite, values, math.inf).amin(dim=axes)
        brightest = torch.where(finite, values, -math.inf).amax(dim=axes)
        share = (outside & finite).float().mean(dim=axes)
        return cls(int(finite.flatten(1).any(1).sum()), darkest.cpu(), brightest.cpu(), share.cpu())

    @classmethod
    def joined(cls, ranges: Sequence["ValueRange"]) -> "ValueRange":
        """The range of several batches."""
        total = sum(each.images for each in ranges)
        return cls(
            total,
            torch.stack([each.darkest for each in ranges]).amin(0),
            torch.stack([each.brightest for each in ranges]).amax(0),
            torch.stack([each.images / total * each.outside for each in ranges]).sum(0),
        )

    def contradicts(self, black: Tensor, white: Tensor) -> bool:
        """Whether the images were not normalized by what gave this black and white."""
        black, white = black.flatten().cpu(), white.flatten().cpu()
        # Ignore a few pixels outside the range. Random erasing fills in normal noise, which exceeds it.
        outside = bool((self.outside > 0.05).any())
        too_bright = bool((self.darkest > black + 1.5).all())
        unit = bool((self.darkest >= 0).all() and (self.brightest <= 1).all() and (black < -0.3).any())
        ends = torch.cat([self.darkest + 1, self.brightest - 1]).abs()
        signed = bool((ends < 0.02).all() and ((black + 1).abs() > 0.3).any())
        return outside or too_bright or unit or signed

    def is_far_from(self, black: Tensor) -> bool:
        """Whether black is brighter than all values, or farther below them than a hundred times their range."""
        black = black.flatten().cpu()
        below = black < self.darkest - 100 * (self.brightest - self.darkest).clamp(min=1e-3)
        return bool(((below | (black > self.brightest)) & self.darkest.isfinite()).any())
