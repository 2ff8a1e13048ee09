"""Random shading: a transform that masks images without a policy."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from .. import functional as PF
from ._base import ShadingSample, SmoothMask

__all__ = ["RandomShading"]


class RandomShading(SmoothMask):
    """Multiply images by smooth random masks that brighten some regions and darken others.

    Each mask is a coarse grid of uniform random values, enlarged smoothly and scaled to mean 1, times one random
    brightness factor: a random bias field. There is nothing to learn. It works on batches on any device, on single
    images as one of a data set's transforms, and in ``torchvision.transforms.v2.Compose`` with labels. In eval mode it
    returns its input.

    Args:
        p: Probability that an image is masked.
        grid_size: Cells along each axis; a tuple of two for images, of three for volumes (B, C, D, H, W).
        pattern_std: Standard deviation of each mask across its image: 0.1 is about 10 %. A pair (low, high) has each
            image draw its own, uniformly. With None, the random grid determines it. It is smaller where a pixel would
            otherwise become negative.
        brightness_std: Standard deviation of the logarithm of the brightness factor, or a pair (low, high) of which
            each image draws its own.
        strength: How far the mask moves from 1; 0 switches it off.
        mean: The normalization of images that lay in [0, 1] before, which tells where black and white are: one number
            or one per channel. Pass ``mean=0, std=1`` for images in [0, 1].
        std: See ``mean``.
        black: Where black lies in the images: a number or one per channel (-1000 for CT in Hounsfield units; 0
            multiplies the values as they are), ``"minimum"`` (each image's smallest finite value in each channel) or
            ``"percentile"`` (its 1st percentile, padding not counted unless it fills over half of the image: then
            pass the number). By default it follows from ``mean`` and ``std``, and is ``"minimum"`` without them.
        white: Where white lies: one number or one per channel; by default it follows from ``mean`` and ``std``.
        clip: Brighten no pixel beyond white, as an exposure that saturates.
        kernel_size: Size of the blur kernel in pixels, one number or one per axis; by default it follows sigma.
        sigma: Standard deviation of the blur in pixels, likewise; by default one third of a cell along each axis for
            ``upsample="nearest"``, and no blur for the others.
        upsample: ``"nearest"`` gives each cell an equal part of the image, as the paper does. ``"linear"`` and
            ``"cubic"`` place the outer cells on the image's edges and are smooth everywhere; see
            :func:`policy_noise.functional.render_mask`.
        per_channel: Draw a mask and a brightness for each channel: for several coils, stains or modalities.

    Shape:
        - images: (B, C, H, W) or one image (C, H, W); (B, C, D, H, W) or (C, D, H, W) with a grid of three axes.
          Floating point.
        - Output: the same shape, dtype, device and memory format.

    Raises:
        ValueError: If a number is out of its range.
        TypeError: If the images are not floating point.

    Example:
        >>> shade = RandomShading(p=1.0, mean=0.0, std=1.0)
        >>> shade(torch.rand(8, 3, 64, 64)).shape
        torch.Size([8, 3, 64, 64])
    """

    uses_generator = True

    def __init__(
        self,
        p: float = 0.5,
        grid_size: int | Sequence[int] = 3,
        pattern_std: float | tuple[float, float] | None = (0.0, 0.2),
        brightness_std: float | tuple[float, float] = 0.3,
        *,
        strength: float = 1.0,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        black: float | Sequence[float] | Literal["minimum", "percentile"] | None = None,
        white: float | Sequence[float] | None = None,
        clip: bool = False,
        kernel_size: int | Sequence[int] | None = None,
        sigma: float | Sequence[float] | None = None,
        upsample: PF.Upsample = "cubic",
        per_channel: bool = False,
    ) -> None:
        super().__init__(
            None,
            grid_size,
            kernel_size,
            sigma,
            p=p,
            strength=strength,
            mean_preserving=True,
            pattern_std=pattern_std,
            brightness_std=brightness_std,
            center_brightness=False,
            mean=mean,
            std=std,
            upsample=upsample,
            black=black,
            white=white,
            clip=clip,
        )
        self.per_channel = per_channel

    def sample(self, images: Tensor, generator: torch.Generator | None = None) -> ShadingSample:
        """Draw masks for a batch.

        One call draws all random numbers: one per cell, one more per image that decides whether it is masked, and one
        for each deviation that has a range.

        Args:
            images: A batch, or one image; see the class.
            generator: Source of randomness on the images' device; by default the global one.

        Example:
            >>> sample = RandomShading().sample(torch.rand(4, 3, 16, 16), torch.Generator().manual_seed(0))
            >>> sample.action.shape, sample.applied.shape
            (torch.Size([4, 1, 3, 3]), torch.Size([4]))
        """
        images = self.as_batch(images)
        grid = (images.shape[1] if self.per_channel else 1, *self.grid_size)
        cells = math.prod(grid)
        columns = cells + 1 + len(self.ranges)
        # Same as torch.rand, in a form that torch.compile accepts for batches of any size.
        drawn = torch.empty(images.shape[0], columns, device=images.device, dtype=torch.float32)
        drawn = drawn.uniform_(generator=generator)
        action = drawn[:, :cells].clamp(PF.ACTION_EPS, 1 - PF.ACTION_EPS).unflatten(1, grid)
        applied = drawn[:, cells] < self.p
        own = self._within_ranges(drawn[:, cells + 1 :]) if self.ranges else {}
        return ShadingSample(log_prob=None, applied=applied, action=action, **own)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, per_channel={self.per_channel}"
