"""What a rendered mask does to an image: its mean, its strength, and the multiplication."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .distribution import ACTION_EPS
from .operators import Operators
from .rendering import get_operators, render, without_autocast

__all__ = ["apply_mask", "mask_brightness", "noise_mask", "scale_mask"]

FLAT = 1e-3
"""A mask whose lowest cell lies no further than this below its mean counts as flat."""


def _standardize(action: Tensor, operators: Operators, pattern_std: float, brightness: Tensor | None) -> Tensor:
    """Cells whose rendered mask has the mean ``brightness``, or 1, and that times ``pattern_std`` as its deviation.

    The deviation is less where a cell would pass 0.
    """
    cells = action.flatten(1)
    if operators.joint.shape[1]:
        darkness, rendered = (cells @ operators.joint).chunk(2, dim=1)
    else:
        darkness = torch.mv(cells, operators.share).unsqueeze(1) - cells
        rendered = render(darkness.view_as(action), operators.factors).flatten(1)
    deviation = rendered.norm(dim=1, keepdim=True)
    # Rendering averages cells, so that no pixel is darker than the darkest cell.
    scale = torch.maximum(deviation / pattern_std, darkness.amax(1, keepdim=True)).clamp(min=FLAT)
    # A little less than all, so that rounding leaves no light negative.
    less = 1.0 - ACTION_EPS
    if brightness is None:
        return torch.rsub(darkness / scale, 1.0, alpha=less).view_as(action)
    mean = brightness.flatten(1)
    return torch.addcmul(mean, darkness, mean / scale, value=-less).view_as(action)


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
    slope = brightness_std * math.sqrt(12 * math.prod(action.shape[1:]))
    if expected is None:
        logarithm = torch.rsub(action.mean(dim=axes, keepdim=True), -slope / 2, alpha=-slope)
    else:
        logarithm = slope * (action - expected).mean(dim=axes, keepdim=True)
    reach = BRIGHTNESS_REACH * brightness_std
    return logarithm.clamp(-reach, reach).exp()


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
    # A mask of 1 leaves all values as they are, also the infinite ones with which scanners pad.
    return (images * mask).addcmul_(black.to(images.dtype), 1.0 - mask)


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
    with without_autocast(action.device.type):
        operators = get_operators(action, images.shape[2:], kernel_size, sigma)
        brightness = mask_brightness(action, brightness_std, expected) if brightness_std else None
        # Rendering is linear: what is to be done to the pixels is done to the few cells, and costs no pass over pixels.
        if pattern_std is not None:
            cells = _standardize(action, operators, pattern_std, brightness)
        else:
            cells = action
            if mean_preserving:
                cells = cells / torch.mv(action.flatten(1), operators.share).view(-1, *[1] * (action.ndim - 1))
            if brightness is not None:
                cells = cells * brightness
        # Distances from 1: those of 0 render as exactly 1.
        distance = cells - 1.0
        if strength != 1.0:
            distance = distance * strength
        if applied is not None:
            distance = torch.where(applied.view(-1, *[1] * (action.ndim - 1)), distance, 0.0)
        mask = render(distance, [*operators.axes[:-1], operators.lifted], operators.one)
    return apply_mask(images, mask, black)
