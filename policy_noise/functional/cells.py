"""Scale a mask by its few cells instead of its many pixels. This gives the same mask, because rendering is linear."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .distribution import ACTION_EPS
from .operators import Operators
from .rendering import get_operators, render

__all__ = ["mask_brightness", "prepared", "scaled_cells"]

FLAT = 1e-3
"""A mask is flat if its lowest cell is at most this far below its mean."""
BRIGHTNESS_REACH = 3.0
"""The brightness is clipped at this many standard deviations. A random 2 x 2 grid exceeds it in 1 of 2300 draws."""
FEW_CELLS = 64
"""Up to this many cells, one matrix computes everything that is linear in the cells."""


def mask_brightness(action: Tensor, brightness_std: float, expected: Tensor | None = None) -> Tensor:
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
        - action, expected: (B, 1, G, G) or (B, 1, G, G, G).
        - Output: (B, 1, 1, 1) or (B, 1, 1, 1, 1).

    Example:
        >>> mask_brightness(torch.full((1, 1, 2, 2), 0.5), 0.2)
        tensor([[[[1.]]]])
    """
    axes = tuple(range(1, action.ndim))
    slope = _slope(brightness_std, math.prod(action.shape[1:]))
    if expected is None:
        logarithm = torch.rsub(action.mean(dim=axes, keepdim=True), -slope / 2, alpha=-slope)
    else:
        logarithm = slope * (action - expected).mean(dim=axes, keepdim=True)
    return _brightness(logarithm, brightness_std)


def _slope(brightness_std: float, cells: int) -> float:
    return brightness_std * math.sqrt(12 * cells)


def _brightness(logarithm: Tensor, brightness_std: float) -> Tensor:
    reach = BRIGHTNESS_REACH * brightness_std
    return logarithm.clamp(-reach, reach).exp()


def prepared(
    action: Tensor,
    size: Sequence[int],
    kernel_size: int | Sequence[int] | None,
    sigma: float | Sequence[float] | None,
    pattern_std: float | None,
    brightness_std: float,
) -> Operators:
    """Return the operators for an action at a size, with everything that :func:`scaled_cells` needs."""
    operators = get_operators(action, size, kernel_size, sigma)
    count = len(operators.share)
    if pattern_std is None or count > FEW_CELLS or torch.compiler.is_compiling():
        return operators
    return _with_few_cells_map(operators, pattern_std, _slope(brightness_std, count))


def scaled_cells(
    action: Tensor,
    operators: Operators,
    mean_preserving: bool,
    pattern_std: float | None,
    brightness_std: float,
    expected: Tensor | None,
) -> Tensor:
    """Scale the cells so that they render as a mask of full strength; see :func:`policy_noise.functional.noise_mask`.

    Shape:
        - action, expected: (B, 1, G, G) or (B, 1, G, G, G).
        - Output: the action's shape.
    """
    cells, few = action.flatten(1), operators.few_cells_map
    count = cells.shape[1]
    mean = None
    if brightness_std and (expected is not None or few is None):
        mean = mask_brightness(action, brightness_std, expected).view(-1, 1)
    if pattern_std is None:
        if mean_preserving:
            cells = cells / torch.mv(cells, operators.share).unsqueeze(1)
        return (cells if mean is None else cells * mean).view_as(action)
    if few is not None:
        parts = torch.addmm(few[0], cells, few[1])
        deviation, darkness = parts[:, :count].norm(dim=1, keepdim=True), parts[:, count : 2 * count]
        deepest = parts[:, count:-1].amax(1, keepdim=True)
        if brightness_std and mean is None:
            mean = _brightness(parts[:, -1:], brightness_std)
    else:
        darkness = torch.mv(cells, operators.share).unsqueeze(1) - cells
        rendered = render(darkness.view_as(action), operators.factors).flatten(1)
        deviation = rendered.norm(dim=1, keepdim=True) / pattern_std
        deepest = darkness.amax(1, keepdim=True).clamp(min=FLAT)
    # Rendering averages cells, so no pixel is darker than the darkest cell.
    scale = torch.maximum(deviation, deepest)
    # Slightly less than 1, so that rounding cannot make a factor negative.
    less = 1.0 - ACTION_EPS
    if mean is None:
        return torch.rsub(darkness / scale, 1.0, alpha=less).view_as(action)
    return torch.addcmul(mean, darkness, mean / scale, value=-less).view_as(action)


@lru_cache(maxsize=256)
def _with_few_cells_map(operators: Operators, pattern_std: float, slope: float) -> Operators:
    """Add the offset and the matrix that compute everything linear in the cells.

    Their columns are, in this order: the cells' distances below the mean, rendered with the operators' factors and
    divided by ``pattern_std``; the distances themselves; :data:`FLAT`, so that one maximum covers it too; and the
    logarithm of the brightness.
    """
    with torch.inference_mode(False), torch.no_grad():
        share = operators.share.double().cpu()
        below = share.unsqueeze(1) - torch.eye(len(share), dtype=share.dtype)
        factor = share.new_ones(1, 1)
        for triangle in operators.factors:
            factor = torch.kron(factor, triangle.double().cpu())
        level = share.new_full((len(share), 1), slope / len(share))
        matrix = torch.cat([below @ factor.mT / pattern_std, below, torch.zeros_like(level), level], dim=1)
        offset = share.new_zeros(matrix.shape[1])
        offset[-2], offset[-1] = FLAT, -slope / 2
        return operators._replace(few_cells_map=(offset.to(operators.share), matrix.to(operators.share)))
