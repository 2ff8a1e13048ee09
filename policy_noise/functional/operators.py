"""The matrices that render a grid of actions, computed with Kornia's blur."""

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
    """Nearest-neighbour enlargement, then Gaussian blur, along one axis: a matrix (pixels, cells)."""
    from kornia.filters import gaussian_blur2d  # slow to import, and needed only once per size

    # The result is cached, and autograd cannot save a tensor that was made in inference mode.
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        # Torch scales the index in the input's precision, which can change which cell is nearest.
        precision = torch.float64 if dtype == torch.float64 else torch.float32
        basis = torch.eye(cells, dtype=precision).view(1, 1, cells, cells)
        enlarged = F.interpolate(basis, (pixels, cells), mode="nearest").double()
        blurred = gaussian_blur2d(enlarged, (kernel_size, 1), (sigma, sigma), border_type="reflect")
        return blurred[0, 0].to(device=device, dtype=dtype)


class Operators(NamedTuple):
    """The matrices that render a grid at one size.

    Args:
        axes: One matrix per axis, (pixels, cells): nearest-neighbour enlargement and blur.
        factors: Their triangular factors R / sqrt(pixels) from a QR decomposition, one per axis, (cells, cells).
            Rendering with them gives as few values as the grid has cells, with the root mean square of the real mask.
        share: Each cell's share of a rendered mask's spatial mean, (cells,).
        few_cells_map: For small grids, an offset (2 * cells + 2,) and a matrix (cells, 2 * cells + 2) that compute
            everything linear in the cells at once; see :func:`policy_noise.functional.cells.prepared`.
    """

    axes: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]
    share: Tensor
    few_cells_map: tuple[Tensor, Tensor] | None = None

    @classmethod
    def of(cls, tensors: Sequence[Tensor], axes: int) -> "Operators":
        """Build from the output of :func:`make_operators` for this number of axes."""
        return cls(tuple(tensors[:axes]), tuple(tensors[axes : 2 * axes]), tensors[2 * axes])


def operator_shapes(size: Sequence[int], grid: Sequence[int]) -> list[tuple[int, ...]]:
    """Shapes of the tensors that :func:`make_operators` returns."""
    return [*zip(size, grid, strict=True), *zip(grid, grid, strict=True), (math.prod(grid),)]


def make_operators(
    grid: tuple[int, ...],
    size: tuple[int, ...],
    kernel_size: tuple[int, ...],
    sigma: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> list[Tensor]:
    """Make the tensors of :class:`Operators`, as a flat list: axes, factors, share."""
    axes = [_axis_operator(*values, device, dtype) for values in zip(grid, size, kernel_size, sigma, strict=True)]
    with torch.inference_mode(False), torch.no_grad():
        share = torch.ones(1, device=device, dtype=dtype)
        for operator in axes:
            share = torch.outer(share, operator.mean(0)).flatten()
        triangles = [torch.linalg.qr(axis.cpu().double(), mode="r").R / len(axis) ** 0.5 for axis in axes]
        return [*axes, *(triangle.contiguous().to(axes[0]) for triangle in triangles), share]
