"""From a grid of actions to a smooth mask at an image's size.

Enlargement and Gaussian blur are linear and act on one axis at a time. So each axis needs one small matrix, which is
made once per size and cached.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.misc import check_one_of, is_number

__all__ = ["Operators", "Upsample", "blur_parameters", "get_operators", "render", "render_mask"]

Upsample = Literal["nearest", "linear", "cubic"]
DEGREES = {"linear": 1, "cubic": 3}
FINER = 8
"""Knots that bound a cubic mask, for each of its own."""

SIGMAS_PER_CELL = 3
"""Default sigma: one third of a cell."""
KERNEL_IN_SIGMAS = 13 / 6
"""Default width of the kernel, in sigmas: the paper's ratio."""


def blur_parameters(
    size: Sequence[int],
    grid: Sequence[int],
    kernel_size: int | Sequence[int] | None = None,
    sigma: float | Sequence[float] | None = None,
    upsample: Upsample = "nearest",
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Compute the Gaussian's kernel size and sigma along each axis, in pixels, for an image size.

    By default sigma is a third of a cell along each axis, so that the mask has the same texture at every resolution and
    aspect ratio. Linear and cubic masks are smooth already: they are blurred only if a number is given. Numbers are in
    pixels, one for all axes or one for each. If only one of kernel size and sigma is given, the other follows in the
    paper's ratio of 13 to 6. The kernel size is the nearest odd number, at least 3.

    Args:
        size: The image's spatial size in pixels.
        grid: Cells along each of its axes.
        kernel_size: Odd and positive. Reflect padding limits it to twice the axis's length less one.
        sigma: Standard deviation, positive.
        upsample: See :func:`render_mask`.

    Returns:
        Kernel sizes and sigmas, one for each axis. A kernel size of 1 is no blur.

    Raises:
        ValueError: If a number is out of its range or the kernel does not fit the image.

    Example:
        >>> blur_parameters((96, 192), (4, 4)), blur_parameters((224, 224), (64, 64), kernel_size=13)
        (((17, 35), (8.0, 16.0)), ((13, 13), (6.0, 6.0)))
    """
    check_one_of("upsample", upsample, ("nearest", *DEGREES))
    if upsample != "nearest" and kernel_size is None and sigma is None:
        kernel_size = 1
    kernels = _along_axes("kernel_size", kernel_size, len(size))
    sigmas = _along_axes("sigma", sigma, len(size))
    for kernel in kernels:
        if kernel is not None and not (is_number(kernel) and kernel >= 1 and kernel % 2 == 1):
            raise ValueError(f"kernel_size must be an odd positive integer in pixels, got {kernel_size!r}")
    for deviation in sigmas:
        if deviation is not None and not (is_number(deviation) and deviation > 0):
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
        nearest_odd = 2 * math.floor(KERNEL_IN_SIGMAS * sigma / 2) + 1
        kernel_size = min(max(3, nearest_odd), 2 * pixels - 1)
    if kernel_size > 2 * pixels - 1:
        raise ValueError(
            f"kernel_size {kernel_size} does not fit an image of size {size}: reflect padding allows at most "
            f"{2 * pixels - 1} for an axis of {pixels} px; leave kernel_size out to have it follow the image"
        )
    return int(kernel_size), float(sigma)


def render_mask(
    action: Tensor,
    size: Sequence[int],
    kernel_size: int | Sequence[int] | None = None,
    sigma: float | Sequence[float] | None = None,
    upsample: Upsample = "nearest",
) -> Tensor:
    """Enlarge a grid of actions to an image's size, and blur it with a Gaussian (reflect padding).

    ``"nearest"`` gives each cell an equal part of the image; with its blur this is the paper's mask. ``"linear"`` and
    ``"cubic"`` place the first and the last cell on the image's edges and the others at equal distances between them:
    of 3 x 3 cells four lie in the corners, four in the middle of the edges and one in the centre. Between them the mask
    is a B-spline of degree 1 or 3 along each axis (at most one less than there are cells). A linear mask goes through
    the cells' values in straight lines, as :func:`torch.nn.functional.interpolate` with ``align_corners=True``. A cubic
    one has no kinks; it meets the values in the corners and averages the others, and with up to four cells it is one
    polynomial. Every pixel is an average of cells in all three.

    Args:
        action: One value per cell.
        size: Spatial size in pixels, as many numbers as the grid has axes, none smaller than the grid's.
        kernel_size: Gaussian kernel in pixels; see :func:`blur_parameters`.
        sigma: Gaussian standard deviation in pixels; see :func:`blur_parameters`.
        upsample: ``"nearest"``, ``"linear"`` or ``"cubic"``.

    Shape:
        - action: (B, C, G, G), or (B, C, G, G, G) for volumes; grids need not be square. C is 1, or the number of
          channels for a mask of each channel.
        - Output: (B, C, H, W) or (B, C, D, H, W), in the action's dtype and range.

    Raises:
        ValueError: If the size does not fit the grid, or kernel and sigma do not fit the size.

    Example:
        >>> render_mask(torch.rand(4, 1, 8, 8), (224, 224)).shape
        torch.Size([4, 1, 224, 224])
    """
    # Render in the action's precision. Under autocast the mask would be rounded, and differ from its replay outside.
    with without_autocast(action.device.type):
        return render(action, get_operators(action, size, kernel_size, sigma, upsample).axes)


def render(action: Tensor, axes: Sequence[Tensor]) -> Tensor:
    """Multiply by one operator per axis. Call it with autocast off."""
    # The last axis comes last, so that one matrix product gives a contiguous result.
    if len(axes) == 3:
        action = (axes[0] @ action.flatten(3)).unflatten(3, action.shape[3:])
    return axes[-2] @ action @ axes[-1].mT


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Turn autocast off. Costs nothing if it is off already."""
    enabled = torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if enabled else nullcontext()


class Operators(NamedTuple):
    """The matrices that render a grid at one size.

    Args:
        axes: One matrix per axis, (pixels, cells): enlargement and blur. Each row sums to 1, and none of its entries
            is negative.
        factors: Their triangular factors R / sqrt(pixels) from a QR decomposition, one per axis, (cells, cells).
            Rendering with them gives as few values as the grid has cells, with the root mean square of the real mask.
        share: Each cell's share of a rendered mask's spatial mean, (cells,).
        corners: Cubic splines stay well inside of their cells' range. These matrices, one per axis, compute more values
            from the cells: every pixel is an average of those too, and the lowest of them is little below the lowest
            pixel. Empty where the cells themselves are such values.
    """

    axes: tuple[Tensor, ...]
    factors: tuple[Tensor, ...]
    share: Tensor
    corners: tuple[Tensor, ...]


def get_operators(
    action: Tensor,
    size: Sequence[int],
    kernel_size: int | Sequence[int] | None,
    sigma: float | Sequence[float] | None,
    upsample: Upsample,
) -> Operators:
    """Return the operators for an action at a size. Also works under torch.compile and torch.export.

    Raises:
        ValueError: If the size does not fit the grid, or kernel and sigma do not fit the size.
    """
    if action.ndim not in (4, 5):
        raise ValueError(f"action must have shape (B, C, G, G) or (B, C, G, G, G), got {tuple(action.shape)}")
    if torch.compiler.is_compiling():
        resolved = _check_rendering(action.shape, size, kernel_size, sigma, upsample)
        found = torch.ops.policy_noise.operators(action.detach(), *(list(values) for values in resolved), upsample)
        return _as_operators(found, action.ndim - 2)
    kernel, deviation = (tuple(value) if isinstance(value, list) else value for value in (kernel_size, sigma))
    return _cached(tuple(action.shape[1:]), tuple(size), kernel, deviation, upsample, action.device, action.dtype)


@lru_cache(maxsize=256)
def _cached(
    shape: tuple[int, ...],
    size: tuple[int, ...],
    kernel_size: Any,
    sigma: Any,
    upsample: Upsample,
    device: torch.device,
    dtype: torch.dtype,
) -> Operators:
    """:func:`get_operators`, by the action's shape without the batch axis."""
    size, kernels, sigmas = _check_rendering((1, *shape), size, kernel_size, sigma, upsample)
    # The result is cached, and autograd cannot save a tensor that was made in inference mode.
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(device.type, enabled=False):
        precise = [
            _axis_operator(*values, upsample, dtype) for values in zip(shape[1:], size, kernels, sigmas, strict=True)
        ]
        share = torch.ones(1, dtype=torch.float64)
        for axis in precise:
            share = torch.outer(share, axis.mean(0)).flatten()
        triangles = [torch.linalg.qr(axis, mode="r").R / len(axis) ** 0.5 for axis in precise]
        corners = [_corners(cells) for cells in shape[1:]] if upsample == "cubic" else []
        tensors = [*precise, *triangles, share, *corners]
        return _as_operators([each.contiguous().to(device=device, dtype=dtype) for each in tensors], len(precise))


def _as_operators(tensors: Sequence[Tensor], axes: int) -> Operators:
    factors, corners = tensors[axes : 2 * axes], tensors[2 * axes + 1 :]
    return Operators(tuple(tensors[:axes]), tuple(factors), tensors[2 * axes], tuple(corners))


def _axis_operator(
    cells: int, pixels: int, kernel_size: int, sigma: float, upsample: Upsample, dtype: torch.dtype
) -> Tensor:
    """Enlargement, then blur, along one axis: a matrix (pixels, cells) in double precision."""
    if upsample == "nearest":
        # Torch scales the index in the input's precision, which can change which cell is nearest.
        precision = torch.float64 if dtype == torch.float64 else torch.float32
        basis = torch.eye(cells, dtype=precision).view(1, 1, cells, cells)
        enlarged = F.interpolate(basis, (pixels, cells), mode="nearest").double()[0, 0]
    else:
        enlarged = _spline(cells, pixels, DEGREES[upsample])
    if kernel_size == 1:
        return enlarged
    from kornia.filters import gaussian_blur2d  # slow to import, and needed only once per size

    return gaussian_blur2d(enlarged[None, None], (kernel_size, 1), (sigma, sigma), border_type="reflect")[0, 0]


def _spline(cells: int, pixels: int, degree: int) -> Tensor:
    """The B-splines of uniform knots whose first and last meet the edges, by the recursion of Cox and de Boor."""
    degree = min(degree, cells - 1)
    spans = cells - degree
    x = torch.linspace(0, spans, pixels, dtype=torch.float64).unsqueeze(1)
    knots = torch.arange(-degree, spans + degree + 1, dtype=torch.float64).clamp(0, spans)
    basis = F.one_hot(x[:, 0].long().clamp(max=spans - 1) + degree, spans + 2 * degree).double()
    for order in range(1, degree + 1):
        # Knots that coincide carry no function: 0 / 0 stands for 0.
        rising = ((x - knots[:-order]) / (knots[order:] - knots[:-order])).nan_to_num(0.0, 0.0, 0.0)
        basis = basis[:, :-1] * rising[:, :-1] + basis[:, 1:] * (1.0 - rising[:, 1:])
    return basis


def _corners(cells: int) -> Tensor:
    """Insert knots into a cubic spline: a matrix from its coefficients to those of a spline with :data:`FINER` knots.

    Both are the same function, so the matrix solves equations that hold at every point.
    """
    finer = _finer(cells)
    points = 8 * finer
    return torch.linalg.lstsq(
        _spline(finer, points, DEGREES["cubic"]), _spline(cells, points, DEGREES["cubic"])
    ).solution


def _finer(cells: int) -> int:
    degree = min(DEGREES["cubic"], cells - 1)
    return FINER * (cells - degree) + degree


def _check_rendering(
    shape: Sequence[int],
    size: Sequence[int],
    kernel_size: int | Sequence[int] | None,
    sigma: float | Sequence[float] | None,
    upsample: Upsample,
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    """Check that size, kernels and sigmas fit the action's shape and each other, and return them."""
    # Under torch.compile, this turns symbolic sizes into plain integers.
    size, grid = (tuple(len(range(length)) for length in lengths) for lengths in (size, shape[2:]))
    if len(size) != len(grid) or any(pixels < cells for pixels, cells in zip(size, grid, strict=True)):
        raise ValueError(f"size {size} does not fit a grid of {grid} cells: every axis needs a pixel for each cell")
    return size, *blur_parameters(size, grid, kernel_size, sigma, upsample)


# A compiler would trace through the cache, and make the operators again in each step. torch.library.custom_op would
# import Dynamo in older releases, which takes a second.
_LIBRARY = torch.library.Library("policy_noise", "DEF")
_LIBRARY.define("operators(Tensor action, int[] size, int[] kernel_size, float[] sigma, str upsample) -> Tensor[]")


def _operators(action: Tensor, size: Any, kernel_size: Any, sigma: Any, upsample: Any) -> list[Tensor]:
    found = get_operators(action, size, kernel_size, sigma, upsample)
    # Compiled code may write into what an operator returns.
    return [operator.clone() for operator in [*found.axes, *found.factors, found.share, *found.corners]]


_LIBRARY.impl("operators", _operators, "CompositeExplicitAutograd")


@torch.library.register_fake("policy_noise::operators", lib=_LIBRARY)
def _operator_shapes(action: Tensor, size: Any, kernel_size: Any, sigma: Any, upsample: Any) -> list[Tensor]:
    grid = action.shape[2:]
    shapes = [*zip(size, grid, strict=True), *zip(grid, grid, strict=True), (math.prod(grid),)]
    shapes += [(_finer(cells), cells) for cells in grid] if upsample == "cubic" else []
    return [action.new_empty(shape) for shape in shapes]
