"""From a grid of actions to a smooth mask at an image's size.

Nearest-neighbour enlargement and Gaussian blur are linear and separable. So each axis needs one small matrix. Kornia
makes it once per size, and it is cached.
"""

import math
from collections.abc import Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from numbers import Real
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .operators import Operators, make_operators

__all__ = ["blur_parameters", "render", "render_mask"]

SIGMAS_PER_CELL = 3
"""Default sigma: one third of a cell."""
KERNEL_IN_SIGMAS = 13 / 6
"""Default width of the kernel, in sigmas: the paper's ratio."""


def blur_parameters(
    size: Sequence[int],
    grid: Sequence[int],
    kernel_size: int | Sequence[int] | None = None,
    sigma: float | Sequence[float] | None = None,
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Compute the Gaussian's kernel size and sigma along each axis, in pixels, for an image size.

    By default sigma is a third of a cell along each axis, so that the mask has the same texture at every resolution and
    aspect ratio. Numbers are in pixels, one for all axes or one for each. If only one of kernel size and sigma is
    given, the other follows in the paper's ratio of 13 to 6. The kernel size is the nearest odd number, at least 3.

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
    asked = tuple(size), tuple(grid), kernel_size, sigma
    # torch.compile warns about lru_cache. Lists and wrong types may not be hashable.
    cached = not torch.compiler.is_compiling() and isinstance(kernel_size, Hashable) and isinstance(sigma, Hashable)
    return _resolved(*asked) if cached else _resolve(*asked)


def _resolve(
    size: tuple[int, ...], grid: tuple[int, ...], kernel_size: Any, sigma: Any
) -> tuple[tuple[int, ...], tuple[float, ...]]:
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


_resolved = lru_cache(maxsize=256)(_resolve)


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


def render_mask(
    action: Tensor,
    size: Sequence[int],
    kernel_size: int | Sequence[int] | None = None,
    sigma: float | Sequence[float] | None = None,
    *,
    method: Literal["matmul", "kornia"] = "matmul",
) -> Tensor:
    """Enlarge a grid of actions to an image's size (nearest neighbour) and blur it with a Gaussian (reflect padding).

    Both operations are linear and act on one axis at a time, so each axis is one small matrix product. Kornia makes the
    matrices once for each size, and they are cached. ``method="kornia"`` is the readable reference:
    :func:`torch.nn.functional.interpolate`, then :func:`kornia.filters.gaussian_blur2d`.

    Args:
        action: One value per cell.
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
    size, kernels, sigmas = _check_rendering(action.shape, size, kernel_size, sigma)
    if method == "kornia":
        if len(size) != 2:
            raise ValueError(f"method='kornia' renders two axes, got an action of shape {tuple(action.shape)}")
        from kornia.filters import gaussian_blur2d

        with torch.autocast(action.device.type, enabled=False):
            enlarged = F.interpolate(action, size, mode="nearest")
            return gaussian_blur2d(enlarged, (kernels[0], kernels[1]), (sigmas[0], sigmas[1]), border_type="reflect")
    if method != "matmul":
        raise ValueError(f"method must be 'matmul' or 'kornia', got {method!r}")
    # Render in the action's precision. Under autocast the mask would be rounded, and differ from its replay outside.
    with without_autocast(action.device.type):
        return render(action, get_operators(action, size, kernel_size, sigma).axes)


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Turn autocast off. Costs nothing if it is off already."""
    enabled = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if enabled else nullcontext()


def _check_rendering(
    shape: Sequence[int],
    size: Sequence[int],
    kernel_size: int | Sequence[int] | None,
    sigma: float | Sequence[float] | None,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """Check that size, kernels and sigmas fit the action's shape and each other, and return them."""
    # Under torch.compile, this turns symbolic sizes into plain integers.
    size, grid = (tuple(len(range(length)) for length in lengths) for lengths in (size, shape[2:]))
    if len(shape) not in (4, 5) or shape[1] != 1:
        raise ValueError(f"action must have shape (B, 1, G, G) or (B, 1, G, G, G), got {tuple(shape)}")
    if len(size) != len(grid) or any(pixels < cells for pixels, cells in zip(size, grid, strict=True)):
        raise ValueError(f"size {size} does not fit a grid of {grid} cells: every axis needs a pixel for each cell")
    return size, *blur_parameters(size, grid, kernel_size, sigma)


def get_operators(
    action: Tensor,
    size: Sequence[int],
    kernel_size: int | Sequence[int] | None,
    sigma: float | Sequence[float] | None,
) -> Operators:
    """Return the operators for an action at a size. Also works under torch.compile.

    Raises:
        ValueError: If the size does not fit the grid, or kernel and sigma do not fit the size.
    """
    if torch.compiler.is_compiling():
        resolved = _check_rendering(action.shape, size, kernel_size, sigma)
        found = torch.ops.policy_noise.operators(action.detach(), *(list(values) for values in resolved))
        return Operators.of(found, action.ndim - 2)
    kernel, deviation = (tuple(value) if isinstance(value, list) else value for value in (kernel_size, sigma))
    return cached_operators(tuple(action.shape[1:]), tuple(size), kernel, deviation, action.device, action.dtype)


@lru_cache(maxsize=256)
def cached_operators(
    shape: tuple[int, ...],
    size: tuple[int, ...],
    kernel_size: Any,
    sigma: Any,
    device: torch.device,
    dtype: torch.dtype,
) -> Operators:
    """:func:`get_operators`, by the action's shape without the batch axis."""
    resolved = _check_rendering((1, *shape), size, kernel_size, sigma)
    return Operators.of(make_operators(shape[1:], *resolved, device, dtype), len(size))


def render(action: Tensor, axes: Sequence[Tensor]) -> Tensor:
    """Multiply by one operator per axis. Call it with autocast off."""
    # The last axis comes last, so that one matrix product gives a contiguous result.
    if len(axes) == 3:
        action = (axes[0] @ action.flatten(3)).unflatten(3, action.shape[3:])
    return axes[-2] @ action @ axes[-1].mT
