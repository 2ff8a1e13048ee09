"""Scale a mask to mean 1 and a given strength, and multiply images by it.

A mask is scaled by its few cells instead of its many pixels. This gives the same mask, because rendering is linear.
"""

import math
from collections.abc import Sequence
from functools import lru_cache, reduce

import torch
from torch import Tensor

from ..utils.compat import are_transforms_active
from .distribution import ACTION_EPS
from .rendering import Operators, Upsample, get_operators, render, without_autocast

__all__ = ["apply_mask", "mask_brightness", "noise_mask", "scale_mask"]

FLAT = 1e-3
"""A mask is flat if its lowest cell is at most this far below its mean."""
BRIGHTNESS_REACH = 3.0
"""The brightness is clipped at this many standard deviations. A random 2 x 2 grid exceeds it in 1 of 2300 draws."""
FEW_CELLS = 64
"""Up to this many cells, one matrix computes everything that is linear in the cells."""


def noise_mask(
    images: Tensor,
    action: Tensor,
    *,
    kernel_size: int | Sequence[int] | None = None,
    sigma: float | Sequence[float] | None = None,
    upsample: Upsample = "nearest",
    strength: float = 1.0,
    mean_preserving: bool = False,
    pattern_std: float | Tensor | None = None,
    brightness_std: float | Tensor = 0.0,
    expected: Tensor | None = None,
    black: Tensor | None = None,
    white: Tensor | None = None,
    applied: Tensor | None = None,
) -> Tensor:
    """Mask images with a grid of actions: the functional form of :class:`policy_noise.PolicyNoiseMask`.

    Args:
        images: Floating-point images.
        action: One value in (0, 1) per cell.
        kernel_size: See :func:`blur_parameters`.
        sigma: See :func:`blur_parameters`.
        upsample: See :func:`render_mask`.
        strength: See :func:`scale_mask`.
        mean_preserving: See :func:`scale_mask`.
        pattern_std: Instead of ``mean_preserving``: give each mask a spatial mean of 1 and this standard deviation,
            before ``strength`` is applied. So an action decides where the mask varies, not how much. The standard
            deviation is smaller if a cell would otherwise fall below 0, and 0 if the action is constant.
        brightness_std: Multiply each mask by its :func:`mask_brightness`, before ``strength`` is applied.
        expected: See :func:`mask_brightness`.
        black: See :func:`apply_mask`.
        white: See :func:`apply_mask`.
        applied: Which images are masked; the others are returned unchanged. By default all.

    Shape:
        - images: (B, C, H, W) or (B, C, D, H, W).
        - action: (B, 1, G, G) or (B, 1, G, G, G), or with C in the place of 1 for a mask of each channel.
        - pattern_std, brightness_std: a number, or (B,).
        - applied: (B,), bool.
        - Output: the images' shape.

    Example:
        >>> images, action = torch.randn(4, 3, 64, 64), torch.rand(4, 1, 8, 8)
        >>> noise_mask(images, action, mean_preserving=True).shape
        torch.Size([4, 3, 64, 64])
    """
    operators = get_operators(action, images.shape[2:], kernel_size, sigma, upsample)
    with without_autocast(action.device.type):
        # Work with the mask minus 1: a distance of 0 renders as a mask of exactly 1.
        cells = _scaled_cells(action, operators, mean_preserving, pattern_std, brightness_std, expected)
        distance = cells - 1.0
        if strength != 1.0:
            distance = distance * strength
        if applied is not None:
            distance = torch.where(applied.view(-1, *[1] * (action.ndim - 1)), distance, 0.0)
        distance = render(distance, operators.axes)
    if black is None or _is_exact(images):
        return _multiply(images, distance.add_(1.0), None, black, white)  # in place, which takes no memory
    return _multiply(images, distance + 1.0, distance, black, white)


def apply_mask(images: Tensor, mask: Tensor, black: Tensor | None = None, white: Tensor | None = None) -> Tensor:
    """Multiply images by a mask, about zero or about a black level.

    Args:
        images: Floating-point images; dtype, device and memory format are kept.
        mask: One channel, broadcast over the images' channels, or as many.
        black: The value of zero intensity. With it the mask multiplies intensities,
            ``black + mask * (images - black)``, as a bias field does. Without it the mask multiplies the images
            directly. This pulls normalized images towards the mean grey, as in the paper.
        white: The largest value that a pixel is brightened to, as an exposure that saturates. Pixels that are brighter
            already can only get darker.

    Shape:
        - images: (B, C, H, W) or (B, C, D, H, W).
        - mask: (B, 1, H, W) or (B, 1, D, H, W), or with C channels.
        - black, white: broadcastable to the images, such as (1, C, 1, 1).
        - Output: the images' shape.

    Example:
        >>> images, black = torch.tensor([[[[-2.0, 1.0]]]]), torch.tensor(-2.0)
        >>> apply_mask(images, torch.full((1, 1, 1, 2), 1.5), black)
        tensor([[[[-2.0000,  2.5000]]]])
    """
    return _multiply(images, mask, None, black, white)


def _is_exact(images: Tensor) -> bool:
    """Whether black stays to the bit. This needs to ask for infinite values, for which a GPU would have to wait."""
    return images.device.type == "cpu" and not torch.compiler.is_compiling() and not are_transforms_active()


def _multiply(
    images: Tensor, mask: Tensor, distance: Tensor | None, black: Tensor | None, white: Tensor | None
) -> Tensor:
    """:func:`apply_mask`; ``distance`` is the mask minus 1, where that is known more precisely than by subtracting."""
    dtype = images.dtype
    mask = mask.to(dtype)
    if black is None:
        masked = images * mask
    elif _is_exact(images):
        masked = torch.lerp(black.to(dtype), images, mask)  # exact where the image is black or the mask is 1
        if not math.isfinite(images.detach().sum()):
            masked = torch.where(images.isfinite(), masked, images)  # some scanners pad with infinite values
    else:
        # This leaves infinite values alone, and rounds black.
        if distance is None or distance.dtype != dtype:
            distance = mask - 1.0  # of the rounded mask
        masked = (images * mask).addcmul_(black.to(dtype), distance, value=-1)
    return masked if white is None else torch.minimum(masked, images.clamp(min=white.to(dtype)))


def scale_mask(mask: Tensor, *, strength: float = 1.0, mean_preserving: bool = False) -> Tensor:
    """Set a rendered mask's mean and strength.

    Args:
        mask: A rendered mask in (0, 1).
        strength: How far the mask moves from 1: ``1 + strength * (mask - 1)``. 0 switches it off.
        mean_preserving: First divide each image's mask by its own spatial mean. (Compare ``scale_by_keep`` of timm's
            drop_path.) Without it, a mask mainly lowers the contrast, because its mean starts at one half.

    Shape:
        - mask: (B, C, H, W) or (B, C, D, H, W).
        - Output: the same.

    Example:
        >>> scale_mask(torch.tensor([[[[0.2, 0.6]]]]), strength=0.5, mean_preserving=True)
        tensor([[[[0.7500, 1.2500]]]])
    """
    if mean_preserving:
        mask = mask / mask.mean(dim=tuple(range(2, mask.ndim)), keepdim=True)
    if strength != 1.0:
        mask = mask * strength + (1.0 - strength)
    return mask


def mask_brightness(action: Tensor, brightness_std: float | Tensor, expected: Tensor | None = None) -> Tensor:
    r"""Compute the factor by which each image is brightened or darkened as a whole. The mask itself has mean 1.

    .. math:: \exp(\sigma z), \qquad z = \sqrt{12 n} \, (\overline{a} - \mu)

    where :math:`\overline{a}` is the mean of the mask's n actions and :math:`\mu = 1/2`. The actions of random masks
    are uniform. z then has a standard deviation of 1, and images brighten as often as they darken, as under a random
    bias field. z is clipped at +-3, which limits what a policy can do.

    Args:
        action: One value in (0, 1) per cell.
        brightness_std: Standard deviation of the brightness's logarithm under the uniform distribution.
        expected: Expected value of each cell. Its mean over the cells then replaces 1/2, so that the logarithm has
            expectation 0 under any policy (while z stays within its bounds).

    Shape:
        - action, expected: (B, C, G, G) or (B, C, G, G, G).
        - brightness_std: a number, or (B,).
        - Output: (B, C, 1, 1) or (B, C, 1, 1, 1).

    Example:
        >>> mask_brightness(torch.full((1, 1, 2, 2), 0.5), 0.2)
        tensor([[[[1.]]]])
    """
    axes = tuple(range(2, action.ndim))
    slope = _slope(brightness_std, math.prod(action.shape[2:]))
    if expected is None:
        logarithm = torch.rsub(action.mean(dim=axes, keepdim=True), -slope / 2, alpha=-slope)
    else:
        logarithm = slope * (action - expected).mean(dim=axes, keepdim=True)
    if isinstance(brightness_std, Tensor):
        brightness_std = brightness_std.view(-1, *[1] * (action.ndim - 1))
    return _brightness(logarithm, brightness_std)


def _slope(brightness_std: float | Tensor, cells: int) -> float:
    """Slope of the brightness's logarithm in the mean action; that of z where each image has its own deviation."""
    return (1.0 if isinstance(brightness_std, Tensor) else brightness_std) * math.sqrt(12 * cells)


def _brightness(logarithm: Tensor, brightness_std: float | Tensor) -> Tensor:
    if isinstance(brightness_std, Tensor):
        return logarithm.clamp(-BRIGHTNESS_REACH, BRIGHTNESS_REACH).mul(brightness_std).exp()
    reach = BRIGHTNESS_REACH * brightness_std
    return logarithm.clamp(-reach, reach).exp()


def _scaled_cells(
    action: Tensor,
    operators: Operators,
    mean_preserving: bool,
    pattern_std: float | Tensor | None,
    brightness_std: float | Tensor,
    expected: Tensor | None,
) -> Tensor:
    """Scale the cells so that they render as a mask of full strength.

    Shape:
        - action, expected: (B, C, G, G) or (B, C, G, G, G).
        - Output: the action's shape.
    """
    axes, channels, count = action.ndim - 2, action.shape[1], len(operators.share)
    cells = action.reshape(-1, count)  # one row for each mask
    # Each image's own deviations, for all of its masks.
    pattern, brightness = pattern_std, brightness_std
    if isinstance(pattern, Tensor):
        pattern = pattern.repeat_interleave(channels).unsqueeze(1)
    if isinstance(brightness, Tensor):
        brightness = brightness.repeat_interleave(channels).unsqueeze(1)
    brightens = isinstance(brightness, Tensor) or brightness != 0.0
    divisor = 1.0 if isinstance(pattern, Tensor) else pattern
    few = None
    if divisor is not None and count <= FEW_CELLS and not torch.compiler.is_compiling():
        few = _few_cells_map(operators, divisor, _slope(brightness_std, count))
    mean = None
    if brightens and (expected is not None or few is None):
        mean = mask_brightness(action, brightness_std, expected).view(-1, 1)
    if divisor is None:
        if mean_preserving:
            cells = cells / torch.mv(cells, operators.share).unsqueeze(1)
        return (cells if mean is None else cells * mean).view_as(action)
    if few is not None:
        parts = torch.addmm(few[0], cells, few[1])
        deviation = torch.linalg.vector_norm(parts[:, :count], dim=1, keepdim=True)
        darkness = parts[:, count : 2 * count]
        deepest = parts[:, (2 * count if operators.corners else count) : -1].amax(1, keepdim=True)
        if brightens and mean is None:
            mean = _brightness(parts[:, -1:], brightness)
    else:
        darkness = torch.mv(cells, operators.share).unsqueeze(1) - cells
        grid = darkness.view(-1, 1, *action.shape[-axes:])
        deviation = render(grid, operators.factors).flatten(1).norm(dim=1, keepdim=True) / divisor
        bounds = render(grid, operators.corners).flatten(1) if operators.corners else darkness
        deepest = bounds.amax(1, keepdim=True).clamp(min=FLAT)
    if isinstance(pattern, Tensor):
        deviation = deviation / pattern.clamp(min=ACTION_EPS)
    # Rendering averages cells (or corners), so no pixel is darker than the darkest of them.
    scale = torch.maximum(deviation, deepest)
    # Slightly less than 1, so that rounding cannot make a factor negative.
    less = 1.0 - ACTION_EPS
    if mean is None:
        return torch.rsub(darkness / scale, 1.0, alpha=less).view_as(action)
    return torch.addcmul(mean, darkness, mean / scale, value=-less).view_as(action)


@lru_cache(maxsize=256)
def _few_cells_map(operators: Operators, pattern_std: float, slope: float) -> tuple[Tensor, Tensor]:
    """Make the offset and the matrix that compute everything linear in the cells.

    Their columns are, in this order: the cells' distances below the mean, rendered with the operators' factors and
    divided by ``pattern_std``; the distances themselves; those of the corners, if there are any; :data:`FLAT`, so that
    one maximum covers it too; and the logarithm of the brightness.
    """
    with torch.inference_mode(False), torch.no_grad():
        share = operators.share.double().cpu()
        below = share.unsqueeze(1) - torch.eye(len(share), dtype=share.dtype)
        # kron fails on an axis of one pixel, whose matrix has an odd stride until it is cloned.
        factor, corners = (
            reduce(
                torch.kron,
                (matrix.double().cpu().clone(memory_format=torch.contiguous_format) for matrix in matrices),
                share.new_ones(1, 1),
            )
            for matrices in (operators.factors, operators.corners)
        )
        level = share.new_full((len(share), 1), slope / len(share))
        columns = [below @ factor.mT / pattern_std, below]
        columns += [below @ corners.mT] if operators.corners else []
        matrix = torch.cat([*columns, torch.zeros_like(level), level], dim=1)
        offset = share.new_zeros(matrix.shape[1])
        offset[-2], offset[-1] = FLAT, -slope / 2
        return offset.to(operators.share), matrix.to(operators.share)
