"""Set a rendered mask's mean and strength, and multiply images by it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .cells import prepared, scaled_cells
from .operators import Operators
from .rendering import render, without_autocast

__all__ = ["apply_mask", "multiply", "noise_mask", "scale_mask"]


def scale_mask(mask: Tensor, *, strength: float = 1.0, mean_preserving: bool = False) -> Tensor:
    """Set a rendered mask's mean and strength.

    Args:
        mask: A rendered mask in (0, 1).
        strength: How far the mask moves from 1: ``1 + strength * (mask - 1)``. 0 switches it off.
        mean_preserving: First divide each image's mask by its own spatial mean. (Compare ``scale_by_keep`` of timm's
            drop_path.) Without it, a mask mainly lowers the contrast, because its mean starts at one half.

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
        black: The value of zero intensity. With it the mask multiplies intensities,
            ``black + mask * (images - black)``, as a bias field does. Without it the mask multiplies the images
            directly. This pulls normalized images towards the mean grey, as in the paper.

    Shape:
        - images: (B, C, H, W) or (B, C, D, H, W).
        - mask: (B, 1, H, W) or (B, 1, D, H, W).
        - black: broadcastable to the images, such as (1, C, 1, 1).
        - Output: the images' shape.
    """
    return images * mask.to(images.dtype) if black is None else _apply(images, mask - 1.0, black)


def _apply(images: Tensor, distance: Tensor, black: Tensor) -> Tensor:
    """Multiply about a black level. ``distance`` is the mask minus 1."""
    dtype = images.dtype
    mask = (distance + 1.0).to(dtype)
    # Subtract 1 from the rounded mask, so that black stays black in half precision.
    distance = distance if distance.dtype == dtype else mask - 1.0
    # A mask of 1 changes no value, not even the infinite ones that some scanners pad with.
    return (images * mask).addcmul_(black.to(dtype), distance, value=-1)


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
        action: One value in (0, 1) per cell.
        kernel_size: See :func:`blur_parameters`.
        sigma: See :func:`blur_parameters`.
        strength: See :func:`scale_mask`.
        mean_preserving: See :func:`scale_mask`.
        pattern_std: Instead of ``mean_preserving``: give each mask a spatial mean of 1 and this standard deviation,
            before ``strength`` is applied. So an action decides where the mask varies, not how much. The standard
            deviation is smaller if a cell would otherwise fall below 0, and 0 if the action is constant.
        brightness_std: Multiply each mask by its :func:`mask_brightness`, before ``strength`` is applied.
        expected: See :func:`mask_brightness`.
        black: See :func:`apply_mask`.
        applied: Which images are masked; the others are returned unchanged. By default all.

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
    operators = prepared(action, images.shape[2:], kernel_size, sigma, pattern_std, brightness_std)
    cells = {"mean_preserving": mean_preserving, "pattern_std": pattern_std, "brightness_std": brightness_std}
    return multiply(images, action, operators, strength, expected, black, applied, **cells)


def multiply(
    images: Tensor,
    action: Tensor,
    operators: Operators,
    strength: float,
    expected: Tensor | None,
    black: Tensor | None,
    applied: Tensor | None,
    **settings: Any,
) -> Tensor:
    """:func:`noise_mask` with operators that exist already. ``settings`` go to :func:`scaled_cells`."""
    with without_autocast(action.device.type):
        # Work with the mask minus 1: a distance of 0 renders as a mask of exactly 1.
        distance = scaled_cells(action, operators, expected=expected, **settings) - 1.0
        if strength != 1.0:
            distance = distance * strength
        if applied is not None:
            distance = torch.where(applied.view(-1, *[1] * (action.ndim - 1)), distance, 0.0)
        distance = render(distance, operators.axes)
    if black is None:
        return apply_mask(images, distance.add_(1.0))
    return _apply(images, distance, black)
