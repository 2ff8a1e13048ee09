"""What a rendered mask does to an image: its mean, its strength, and the multiplication."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .distribution import ACTION_EPS
from .rendering import check_rendering, get_operators, render

__all__ = ["apply_mask", "mask_brightness", "noise_mask", "scale_mask"]

FLAT = 1e-3
"""A mask whose lowest cell lies no further than this below its mean counts as flat."""


def _standardize(action: Tensor, share: Tensor, factors: Sequence[Tensor], pattern_std: float) -> Tensor:
    """Cells whose rendered mask has mean 1 and deviation ``pattern_std``, or less where a cell would pass 0."""
    ones = [1] * (action.ndim - 1)
    with torch.autocast(action.device.type, enabled=False):
        darkness = torch.mv(action.flatten(1), share).view(-1, *ones) - action
        deviation = render(darkness, factors).flatten(1).norm(dim=1)
        # Rendering averages cells, so that no pixel is darker than the darkest cell.
        scale = torch.maximum(deviation / pattern_std, darkness.flatten(1).amax(1)).clamp(min=FLAT)
        # A little less than all, so that rounding leaves no light negative.
        return torch.rsub(darkness / scale.view(-1, *ones), 1.0, alpha=1.0 - ACTION_EPS)


BRIGHTNESS_REACH = 3.0
"""Standard deviations that the brightness keeps to, which unlearned actions pass once in thousands of draws."""


def mask_brightness(action: Tensor, brightness_std: float, expected: Tensor | None = None) -> Tensor:
    r"""How much brighter or darker an image becomes as a whole, by a mask whose own mean is 1.

    .. math:: \exp(\sigma z), \qquad z = \sqrt{12 n} \, (\overline{a} - \mu)

    with the mean of the mask's n actions and :math:`\mu = 1/2`, so that z has a standard deviation of 1 where they are
    uniform, as an unlearned mask's are: images brighten as often as they darken, as under a random bias field. z keeps
    within +-3, so that no policy can run away.

    Args:
        action: One value in (0, 1) per cell.
        brightness_std: Standard deviation of the brightness's logarithm under the uniform distribution.
        expected: Expected value of each cell. Its mean over the cells then stands for 1/2, so that the logarithm has
            expectation 0 under any policy (while z stays within its bounds).

    Shape:
        - action, expected: (B, 1, G, G) or (B, 1, G, G, G).
        - Output: (B, 1, 1, 1) or (B, 1, 1, 1, 1).

    Example:
        >>> mask_brightness(torch.full((1, 1, 2, 2), 0.5), 0.2)
        tensor([[[[1.]]]])
    """
    axes = tuple(range(1, action.ndim))
    if expected is None:
        centred = action.mean(dim=axes, keepdim=True) - 0.5
    else:
        centred = (action - expected).mean(dim=axes, keepdim=True)
    z = centred * math.sqrt(12 * math.prod(action.shape[1:]))
    return torch.exp(brightness_std * z.clamp(-BRIGHTNESS_REACH, BRIGHTNESS_REACH))


def scale_mask(mask: Tensor, *, strength: float = 1.0, mean_preserving: bool = False) -> Tensor:
    """Set a rendered mask's mean and strength.

    Args:
        mask: A rendered mask in (0, 1).
        strength: The mask moves from 1 by this share: ``1 + strength * (mask - 1)``. 0 switches it off.
        mean_preserving: First divide each image's mask by its own spatial mean, as drop_path's ``scale_by_keep`` keeps
            the expected value. Without it a mask mainly lowers the contrast (its mean starts at one half).

    Shape:
        - mask: (B, 1, H, W) or (B, 1, D, H, W).
        - Output: the same.
    """
    if mean_preserving:
        mask = mask / mask.mean(dim=tuple(range(1, mask.ndim)), keepdim=True)
    if strength != 1.0:
        mask = mask * strength + (1.0 - strength)
    return mask


def apply_mask(images: Tensor, mask: Tensor, black: Tensor | None = None) -> Tensor:
    """Multiply images by a mask, about zero or about a black level.

    Args:
        images: Floating-point images; dtype, device and memory format are kept.
        mask: One channel, broadcast over the images' channels.
        black: The value that stands for zero intensity. With it the mask multiplies intensities,
            ``black + mask * (images - black)``: a multiplicative bias field. Without it the mask multiplies the images
            as they are; on normalised images that pulls towards the mean grey (the paper's way).

    Shape:
        - images: (B, C, H, W) or (B, C, D, H, W).
        - mask: (B, 1, H, W) or (B, 1, D, H, W).
        - black: broadcastable to the images, such as (1, C, 1, 1).
        - Output: the images' shape.
    """
    mask = mask.to(images.dtype)
    if black is None:
        return images * mask
    return torch.lerp(black.to(images.dtype), images, mask)


def noise_mask(
    images: Tensor,
    action: Tensor,
    *,
    kernel_size: int | Sequence[int] | None = None,
    sigma: float | Sequence[float] | None = None,
    strength: float = 1.0,
    mean_preserving: bool = False,
    pattern_std: float | None = None,
    brightness_std: float = 0.0,
    expected: Tensor | None = None,
    black: Tensor | None = None,
    applied: Tensor | None = None,
) -> Tensor:
    """Mask images with a grid of actions: the functional form of :class:`policy_noise.PolicyNoiseMask`.

    Args:
        images: Floating-point images.
        action: One value in (0, 1) a cell.
        kernel_size: See :func:`blur_parameters`.
        sigma: See :func:`blur_parameters`.
        strength: See :func:`scale_mask`.
        mean_preserving: See :func:`scale_mask`.
        pattern_std: Instead of ``mean_preserving``: give each mask a spatial mean of 1 and this standard deviation,
            before ``strength`` counts, so that an action says where the mask varies and not how much. It is less where
            a cell would fall below 0, and 0 for an action that renders flat.
        brightness_std: Multiply each mask by its :func:`mask_brightness`, before ``strength`` counts.
        expected: See :func:`mask_brightness`.
        black: See :func:`apply_mask`.
        applied: Which images are masked; the others come back bit for bit. By default all.

    Shape:
        - images: (B, C, H, W) or (B, C, D, H, W).
        - action: (B, 1, G, G) or (B, 1, G, G, G).
        - applied: (B,), bool.
        - Output: the images' shape.

    Example:
        >>> images, action = torch.randn(4, 3, 64, 64), torch.rand(4, 1, 8, 8)
        >>> noise_mask(images, action, mean_preserving=True).shape
        torch.Size([4, 3, 64, 64])
    """
    *operators, lifted, share = get_operators(action, *check_rendering(action, images.shape[2:], kernel_size, sigma))
    axes, factors = operators[: len(operators) // 2], operators[len(operators) // 2 :]
    # Rendering is linear: what scale_mask does to the pixels is done to the few cells, and costs no pass over pixels.
    offset = None
    brightness = mask_brightness(action, brightness_std, expected) if brightness_std else None
    if pattern_std is not None:
        action = _standardize(action, share, factors, pattern_std)
    elif mean_preserving:
        mean = (action.flatten(1) * share).sum(1)
        action = action / mean.view(-1, *[1] * (action.ndim - 1))
    if brightness is not None:
        action = action * brightness
    if applied is not None:
        applied = applied.view(-1, *[1] * (action.ndim - 1))
        # Cells of zero and an offset of one render as exactly one.
        action = torch.where(applied, action, 0.0)
        offset = torch.rsub(applied.to(action.dtype), 1.0, alpha=strength)
    elif strength != 1.0:
        offset = action.new_full((len(action), *[1] * (action.ndim - 1)), 1.0 - strength)
    if strength != 1.0:
        action = action * strength
    if offset is not None:
        axes[0] = lifted
    return apply_mask(images, render(action, axes, offset), black)
