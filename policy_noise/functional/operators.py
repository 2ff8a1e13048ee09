"""The matrices that render a grid of actions, made by Kornia's own blur."""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Operators", "make_operators", "operator_shapes"]


@lru_cache(maxsize=256)
def _axis_operator(
    cells: int, pixels: int, kernel_size: int, sigma: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Nearest enlargement then Gaussian blur along one axis as a matrix (pixels, cells), from Kornia's own blur."""
    from kornia.filters import gaussian_blur2d  # heavy, and needed once a size

    # The cache outlives the call, and a tensor born in inference mode could not enter a later backward.
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        # Which cell is nearest depends on the precision in which torch scales the index: that of the input.
        precision = torch.float64 if dtype == torch.float64 else torch.float32
        basis = torch.eye(cells, dtype=precision).view(1, 1, cells, cells)
        enlarged = F.interpolate(basis, (pixels, cells), mode="nearest").double()
        blurred = gaussian_blur2d(enlarged, (kernel_size, 1), (sigma, sigma), border_type="reflect")
        return blurred[0, 0].to(device=device, dtype=dtype)


FEW_CELLS = 64
"""Grids of no more cells have one matrix for all that is asked of the cells together."""


class Operators(NamedTuple):
    """What renders a grid at a size.

    Args:
        axes: For each axis nearest enlargement and blur, (pixels, cells).
        factors: Their triangular factors R / sqrt(pixels), from a QR decomposition: rendered with them, which are as
            small as the grid, a mask keeps its root mean square.
        lifted: The last axis's operator with a column of ones: one more cell, whose value is added to every pixel.
        one: That cell's value where the others are distances from 1, in as many axes as an action has.
        share: Each cell's share of a rendered mask's spatial mean, (cells,).
        joint: From the cells to the distance of each below the mean, and to the same rendered with the factors,
            (cells, 2 * cells). Without columns for a grid of more than :data:`FEW_CELLS`.
    """

    axes: Sequence[Tensor]
    factors: Sequence[Tensor]
    lifted: Tensor
    one: Tensor
    share: Tensor
    joint: Tensor

    @classmethod
    def of(cls, tensors: Sequence[Tensor], axes: int) -> "Operators":
        """From :func:`make_operators`, for so many axes."""
        return cls(tensors[:axes], tensors[axes : 2 * axes], *tensors[2 * axes :])


def operator_shapes(size: Sequence[int], grid: Sequence[int]) -> list[tuple[int, ...]]:
    """Shapes of :func:`make_operators`."""
    cells, few = math.prod(grid), math.prod(grid) <= FEW_CELLS
    squares = zip(grid, grid, strict=True)
    ones = (1,) * (len(grid) + 2)
    lifted = (size[-1], grid[-1] + 1)
    return [*zip(size, grid, strict=True), *squares, lifted, ones, (cells,), (cells, 2 * cells * few)]


def make_operators(
    grid: tuple[int, ...],
    size: tuple[int, ...],
    kernel_size: tuple[int, ...],
    sigma: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> list[Tensor]:
    """The :class:`Operators`, one after the other."""
    axes = [_axis_operator(*values, device, dtype) for values in zip(grid, size, kernel_size, sigma, strict=True)]
    with torch.inference_mode(False), torch.no_grad():
        whole = [axis.cpu().double() for axis in axes]
        triangles = [torch.linalg.qr(axis, mode="r").R / len(axis) ** 0.5 for axis in whole]
        share, factor = torch.ones(1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
        for axis, triangle in zip(whole, triangles, strict=True):
            share = torch.outer(share, axis.mean(0)).flatten()
            if len(share) <= FEW_CELLS:
                factor = torch.kron(factor, triangle)
        joint = share.new_empty(len(share), 0)
        if len(share) <= FEW_CELLS:
            below = share.unsqueeze(1) - torch.eye(len(share), dtype=torch.float64)
            joint = torch.cat([below, below @ factor.mT], dim=1)
        made = [*(triangle.contiguous() for triangle in triangles), F.pad(whole[-1], (0, 1), value=1.0)]
        made += [share.new_ones([1] * (len(grid) + 2)), share, joint]
        return [*axes, *(tensor.to(axes[0]) for tensor in made)]
