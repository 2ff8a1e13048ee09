"""From a grid of actions to a smooth mask at an image's size.

Nearest-neighbour enlargement and Gaussian blur are linear and separable, so that each axis is one small matrix, made
once per size by Kornia and kept.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from numbers import Real
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["blur_parameters", "render", "render_mask"]

SIGMAS_PER_CELL = 3
"""Default sigma: one third of a cell."""
KERNEL_IN_SIGMAS = 13 / 6
"""Width of the kernel: the paper's ratio."""


def blur_parameters(
    size: Sequence[int],
    grid: Sequence[int],
    kernel_size: int | Sequence[int] | None = None,
    sigma: float | Sequence[float] | None = None,
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Resolve the Gaussian's kernel and sigma along each axis, in pixels, for an image size.

    Left out, sigma is a third of a cell along each axis, so that the mask has the same texture at every resolution and
    aspect ratio. A given number is taken as pixels, for all axes or one for each. Kernel and sigma follow each other in
    the paper's ratio of 13 to 6, a kernel as the nearest odd number, at least 3.

    Args:
        size: The image's spatial size in pixels.
        grid: Cells along each of its axes.
        kernel_size: Odd and positive. Reflect padding limits it to twice the axis's length less one.
        sigma: Standard deviation, positive.

    Returns:
        Kernel sizes and sigmas, one for each axis.

    Raises:
        ValueError: If a number is out of its range or the kernel does not fit the image.

    Example:
        >>> blur_parameters((96, 192), (4, 4)), blur_parameters((224, 224), (64, 64), kernel_size=13)
        (((17, 35), (8.0, 16.0)), ((13, 13), (6.0, 6.0)))
    """
    kernels = _along_axes("kernel_size", kernel_size, len(size))
    sigmas = _along_axes("sigma", sigma, len(size))
    for kernel in kernels:
        if kernel is not None and not (_is_number(kernel) and kernel >= 1 and kernel % 2 == 1):
            raise ValueError(f"kernel_size must be an odd positive integer in pixels, got {kernel_size!r}")
    for deviation in sigmas:
        if deviation is not None and not (_is_number(deviation) and deviation > 0):
            raise ValueError(f"sigma must be a positive number of pixels, got {sigma!r}")
    axes = [_axis_parameters(*values, tuple(size)) for values in zip(size, grid, kernels, sigmas, strict=True)]
    return tuple(kernel for kernel, _ in axes), tuple(deviation for _, deviation in axes)


def _along_axes(name: str, value: Any, axes: int) -> tuple[Any, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return (value,) * axes
    if len(value) != axes:
        raise ValueError(f"{name} must be one number or {axes}, one for each axis, got {value!r}")
    return tuple(value)


def _axis_parameters(
    pixels: int, cells: int, kernel_size: int | None, sigma: float | None, size: tuple[int, ...]
) -> tuple[int, float]:
    if sigma is None and kernel_size is not None:
        sigma = kernel_size / KERNEL_IN_SIGMAS
    elif sigma is None:
        sigma = pixels / (SIGMAS_PER_CELL * cells)
    if kernel_size is None:
        kernel_size = min(_nearest_odd(KERNEL_IN_SIGMAS * sigma), 2 * pixels - 1)
    if kernel_size > 2 * pixels - 1:
        raise ValueError(
            f"kernel_size {kernel_size} does not fit an image of size {size}: reflect padding allows at most "
            f"{2 * pixels - 1} for an axis of {pixels} px; leave kernel_size out to have it follow the image"
        )
    return int(kernel_size), float(sigma)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def _nearest_odd(value: float) -> int:
    return max(3, 2 * math.floor(value / 2) + 1)


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


@lru_cache(maxsize=256)
def cached_operators(
    grid: tuple[int, ...],
    size: tuple[int, ...],
    kernel_size: tuple[int, ...],
    sigma: tuple[float, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """What renders a grid at a size: an operator for each axis, and what is made from them.

    After the axes' own operators come their triangular factors R / sqrt(pixels), from a QR decomposition: rendered with
    them, which are as small as the grid, a mask keeps its root mean square. Then the first axis's operator with a
    column of ones: one more cell, whose value is added to every pixel. The last is each cell's share of a rendered
    mask's spatial mean, (cells,).
    """
    axes = [_axis_operator(*values, device, dtype) for values in zip(grid, size, kernel_size, sigma, strict=True)]
    with torch.inference_mode(False), torch.no_grad():
        share = torch.ones(1, device=device, dtype=dtype)
        for operator in axes:
            share = torch.outer(share, operator.mean(0)).flatten()
        triangles = [torch.linalg.qr(axis.cpu().double(), mode="r").R / len(axis) ** 0.5 for axis in axes]
        factors = [triangle.contiguous().to(axes[0]) for triangle in triangles]
        return *axes, *factors, F.pad(axes[0], (0, 1), value=1.0), share


def render_mask(
    action: Tensor,
    size: Sequence[int],
    kernel_size: int | Sequence[int] | None = None,
    sigma: float | Sequence[float] | None = None,
    *,
    method: Literal["matmul", "kornia"] = "matmul",
) -> Tensor:
    """Enlarge a grid of actions to an image's size (nearest neighbour) and blur it with a Gaussian (reflect padding).

    Both operations are linear and act on one axis at a time, so the whole is one small matrix product an axis. The
    matrices are made by Kornia once for each size and kept; ``method="kornia"`` is the readable reference,
    :func:`torch.nn.functional.interpolate` then :func:`kornia.filters.gaussian_blur2d`.

    Args:
        action: One value a cell.
        size: Spatial size in pixels, as many numbers as the grid has axes, none smaller than the grid's.
        kernel_size: Gaussian kernel in pixels; see :func:`blur_parameters`.
        sigma: Gaussian standard deviation in pixels; see :func:`blur_parameters`.
        method: ``"matmul"``, or ``"kornia"`` for two axes.

    Shape:
        - action: (B, 1, G, G), or (B, 1, G, G, G) for volumes; grids need not be square.
        - Output: (B, 1, H, W) or (B, 1, D, H, W), in the action's dtype and range.

    Raises:
        ValueError: If the size does not fit the grid, or kernel and sigma do not fit the size.

    Example:
        >>> render_mask(torch.rand(4, 1, 8, 8), (224, 224)).shape
        torch.Size([4, 1, 224, 224])
    """
    size, kernels, sigmas = check_rendering(action, size, kernel_size, sigma)
    if method == "kornia":
        if len(size) != 2:
            raise ValueError(f"method='kornia' renders two axes, got an action of shape {tuple(action.shape)}")
        from kornia.filters import gaussian_blur2d

        with torch.autocast(action.device.type, enabled=False):
            enlarged = F.interpolate(action, size, mode="nearest")
            return gaussian_blur2d(enlarged, (kernels[0], kernels[1]), (sigmas[0], sigmas[1]), border_type="reflect")
    if method != "matmul":
        raise ValueError(f"method must be 'matmul' or 'kornia', got {method!r}")
    operators = get_operators(action, size, kernels, sigmas)
    return render(action, operators[: len(size)])


def check_rendering(
    action: Tensor,
    size: Sequence[int],
    kernel_size: int | Sequence[int] | None,
    sigma: float | Sequence[float] | None,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """Size, kernels and sigmas, refused where they do not fit the grid or one another."""
    # This turns a compiler's symbolic sizes into the numbers they are.
    size, grid = (tuple(len(range(length)) for length in lengths) for lengths in (size, action.shape[2:]))
    if action.ndim not in (4, 5) or action.shape[1] != 1:
        raise ValueError(f"action must have shape (B, 1, G, G) or (B, 1, G, G, G), got {tuple(action.shape)}")
    if len(size) != len(grid) or any(pixels < cells for pixels, cells in zip(size, grid, strict=True)):
        raise ValueError(f"size {size} does not fit a grid of {grid} cells: every axis needs a pixel for each cell")
    return size, *blur_parameters(size, grid, kernel_size, sigma)


def get_operators(
    action: Tensor, size: tuple[int, ...], kernel_size: tuple[int, ...], sigma: tuple[float, ...]
) -> Sequence[Tensor]:
    """:func:`cached_operators` for an action, also while compiling."""
    if torch.compiler.is_compiling():
        return torch.ops.policy_noise.operators(action.detach(), list(size), list(kernel_size), list(sigma))
    return cached_operators(tuple(action.shape[2:]), size, kernel_size, sigma, action.device, action.dtype)


def render(action: Tensor, axes: Sequence[Tensor], offset: Tensor | None = None) -> Tensor:
    """The separable product with one operator an axis.

    With ``offset`` (B, 1, 1, ...) the first operator has a last column of ones: the offset is added to every pixel
    without a pass of its own.
    """
    # In the action's precision: a mask rounded to bf16 would be another mask than the one that is replayed outside.
    with torch.autocast(action.device.type, enabled=False):
        # The last axis first: it is contiguous, and the tensor is still small.
        mask = action @ axes[-1].mT
        if len(axes) == 3:
            mask = axes[1] @ mask
        if offset is not None:
            mask = torch.cat([mask, offset.expand(-1, -1, 1, *mask.shape[3:])], dim=2)
        if len(axes) == 3:
            return (axes[0] @ mask.flatten(3)).unflatten(3, mask.shape[3:])
        return axes[0] @ mask
