"""Tensor mathematics of the noise mask, without state.

Every function here is pure: random ones take a generator, and the only memory is that of the rendering operators,
which depend on sizes alone. The distribution of a mask is a product of independent Beta distributions, one for each
cell of a grid; ``concentration1`` and ``concentration0`` are alpha and beta in the naming of
:class:`torch.distributions.Beta`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "advantage",
    "apply_mask",
    "beta_entropy",
    "beta_log_prob",
    "blur_parameters",
    "mask_level",
    "noise_mask",
    "paper_objective",
    "reinforce_loss",
    "render_mask",
    "sample_beta",
    "scale_mask",
]

Baseline = Literal["none", "batch", "leave_one_out"]
Reward = Literal["cooperative", "adversarial"]

SIGMAS_A_CELL = 3
"""A default blur's share of a cell: neighbours run into each other, as the shading of coils and scanners does."""
KERNEL_IN_SIGMAS = 13 / 6
"""Width of the kernel: the paper's ratio."""

ACTION_EPS = 1e-6
"""Distance that sampled actions keep from 0 and 1, where Beta densities can be infinite."""


# -- the distribution --------------------------------------------------------------------------------------------------


def sample_beta(concentration1: Tensor, concentration0: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw one action a cell, without gradient, kept :data:`ACTION_EPS` away from 0 and 1.

    The draw is that of :meth:`torch.distributions.Beta.sample`, number for number under the same seed, with the
    generator that the distribution does not take.

    Args:
        concentration1: Alpha, positive, fp32 or fp64 (the sampler does not exist in half precision).
        concentration0: Beta, likewise.
        generator: Source of randomness; by default the device's global one, which follows ``torch.manual_seed``.

    Shape:
        - concentration1, concentration0: any shape, the same.
        - Output: that shape, in [1e-6, 1 - 1e-6].
    """
    if torch.compiler.is_compiling() and generator is None:
        return torch.ops.policy_noise.sample_beta(concentration1.detach(), concentration0.detach())
    return _draw(concentration1, concentration0, generator)


def _draw(concentration1: Tensor, concentration0: Tensor, generator: torch.Generator | None = None) -> Tensor:
    return _draw_pairs(torch.stack([concentration1, concentration0], dim=-1), generator)


def _draw_pairs(concentration: Tensor, generator: torch.Generator | None) -> Tensor:
    with torch.no_grad():
        action = torch._sample_dirichlet(concentration, generator=generator).select(-1, 0)
        return action.clamp(ACTION_EPS, 1.0 - ACTION_EPS)


# Compilers cannot trace the sampler, which has no meta kernel, nor keep a cache: they call these as they are. The
# plain form of registration, because torch.library.custom_op imports Dynamo in older releases, which takes a second.
_LIBRARY = torch.library.Library("policy_noise", "DEF")
_LIBRARY.define(
    "sample_beta(Tensor concentration1, Tensor concentration0) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,)
)
_LIBRARY.impl("sample_beta", _draw, "CompositeExplicitAutograd")


@torch.library.register_fake("policy_noise::sample_beta", lib=_LIBRARY)
def _fake_draw(concentration1: Tensor, concentration0: Tensor) -> Tensor:
    return torch.empty_like(concentration1)


def beta_log_prob(action: Tensor, concentration1: Tensor, concentration0: Tensor) -> Tensor:
    r"""Log density of each cell's action, differentiable in the concentrations.

    .. math:: (\alpha - 1) \log a + (\beta - 1) \log(1 - a) - \log B(\alpha, \beta)

    Shape:
        - action, concentration1, concentration0: any shape, the same.
        - Output: that shape; sum over cells for the log-probability of a mask.
    """
    log_beta = (
        torch.lgamma(concentration1) + torch.lgamma(concentration0) - torch.lgamma(concentration1 + concentration0)
    )
    return (concentration1 - 1) * torch.log(action) + (concentration0 - 1) * torch.log1p(-action) - log_beta


def draw(
    logarithm: Tensor, low: float, high: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Bound the concentrations, draw from them and score the draw, in few operations forwards and backwards.

    Args:
        logarithm: Logarithms of alpha and beta of each cell.
        low: Bound of the logarithms, beyond which they get no gradient.
        high: Likewise.
        generator: See :func:`sample_beta`.

    Shape:
        - logarithm: (B, ..., 2).
        - Output: concentrations, (B, ..., 2); actions as of :func:`sample_beta`, (B, ...); the sum over cells of their
          :func:`beta_log_prob`, (B,).
    """
    # Compilers fuse the plain form by themselves, and transforms need functions of another kind.
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        concentration = logarithm.clamp(low, high).exp()
        concentration1, concentration0 = concentration.unbind(-1)
        action = sample_beta(concentration1, concentration0, generator)
        return concentration, action, beta_log_prob(action, concentration1, concentration0).flatten(1).sum(1)
    return _Draw.apply(logarithm, low, high, generator)


class _Draw(torch.autograd.Function):
    """The score is in closed form: log a - digamma(alpha) + digamma(alpha + beta), and with 1 - a for beta."""

    @staticmethod
    def forward(ctx: Any, logarithm: Tensor, low: float, high: float, generator: torch.Generator | None) -> Any:
        bounded = logarithm.clamp(low, high)
        concentration = bounded.exp()
        action = _draw_pairs(concentration, generator)
        log_action = torch.stack([action, 1.0 - action], dim=-1).log_()
        total = concentration.sum(-1, keepdim=True)
        # Half of each cell's lgamma(alpha + beta) goes to each of its two terms.
        terms = ((concentration - 1.0) * log_action).sub_(concentration.lgamma()).add_(total.lgamma(), alpha=0.5)
        ctx.mark_non_differentiable(action)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logarithm, bounded, concentration, log_action)
        return concentration, action, terms.flatten(1).sum(1)

    @staticmethod
    def backward(ctx: Any, of_concentration: Tensor | None, _: None, of_log_prob: Tensor | None) -> Any:
        logarithm, bounded, concentration, log_action = ctx.saved_tensors
        gradient = of_concentration
        if of_log_prob is not None:
            total = concentration.sum(-1, keepdim=True)
            score = log_action - torch.digamma(concentration) + torch.digamma(total)
            gradient = score * of_log_prob.view(-1, *[1] * (score.ndim - 1))
            if of_concentration is not None:
                gradient = gradient + of_concentration
        if gradient is None:
            return None, None, None, None
        return (gradient * concentration).masked_fill_(bounded != logarithm, 0.0), None, None, None


def beta_entropy(concentration1: Tensor, concentration0: Tensor) -> Tensor:
    """Differential entropy in nats of each cell's Beta distribution: 0 for Beta(1, 1), its largest value.

    Shape:
        - concentration1, concentration0: any shape, the same.
        - Output: that shape.
    """
    total = concentration1 + concentration0
    log_beta = torch.lgamma(concentration1) + torch.lgamma(concentration0) - torch.lgamma(total)
    return (
        log_beta
        - (concentration1 - 1) * torch.digamma(concentration1)
        - (concentration0 - 1) * torch.digamma(concentration0)
        + (total - 2) * torch.digamma(total)
    )


# -- rendering ---------------------------------------------------------------------------------------------------------


def blur_parameters(
    size: Sequence[int], grid: Sequence[int], kernel_size: int | None = None, sigma: float | None = None
) -> tuple[int, float]:
    """Resolve the Gaussian's kernel and sigma, in pixels, for an image size.

    Left out, sigma is a third of a cell, along the axis where cells are shortest, so that the mask's texture is the
    same at every resolution. A given number is taken as pixels. Kernel and sigma follow each other in the paper's ratio
    of 13 to 6, a kernel as the nearest odd number, at least 3.

    Args:
        size: The image's spatial size in pixels.
        grid: Cells along each of its axes.
        kernel_size: Odd and positive. Reflect padding limits it to twice the shorter side less one.
        sigma: Standard deviation, positive.

    Raises:
        ValueError: If a number is out of its range or the kernel does not fit the image.

    Example:
        >>> blur_parameters((96, 128), (4, 4)), blur_parameters((224, 224), (64, 64), kernel_size=13)
        ((17, 8.0), (13, 6.0))
    """
    if kernel_size is not None and not (_is_number(kernel_size) and kernel_size >= 1 and kernel_size % 2 == 1):
        raise ValueError(f"kernel_size must be an odd positive integer in pixels, got {kernel_size!r}")
    if sigma is not None and not (_is_number(sigma) and sigma > 0):
        raise ValueError(f"sigma must be a positive number of pixels, got {sigma!r}")
    side = min(size)
    if sigma is None and kernel_size is not None:
        sigma = kernel_size / KERNEL_IN_SIGMAS
    elif sigma is None:
        sigma = min(pixels / (SIGMAS_A_CELL * cells) for pixels, cells in zip(size, grid, strict=True))
    if kernel_size is None:
        kernel_size = min(_nearest_odd(KERNEL_IN_SIGMAS * sigma), 2 * side - 1)
    if kernel_size > 2 * side - 1:
        raise ValueError(
            f"kernel_size {kernel_size} does not fit an image of size {tuple(size)}: reflect padding allows at most "
            f"{2 * side - 1} for a shorter side of {side} px; leave kernel_size out to have it follow the image"
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
def _operators(
    grid: tuple[int, ...],
    size: tuple[int, ...],
    kernel_size: int,
    sigma: float,
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """What renders a grid at a size: an operator for each axis, and what is made from them.

    After the axes' own operators come their triangular factors R / sqrt(pixels), from a QR decomposition: rendered with
    them, which are as small as the grid, a mask keeps its root mean square. Then the first axis's operator with a
    column of ones: one more cell, whose value is added to every pixel. The last is each cell's share of a rendered
    mask's spatial mean, (cells,).
    """
    axes = [
        _axis_operator(cells, pixels, kernel_size, sigma, device, dtype)
        for cells, pixels in zip(grid, size, strict=True)
    ]
    with torch.inference_mode(False), torch.no_grad():
        share = torch.ones(1, device=device, dtype=dtype)
        for operator in axes:
            share = torch.outer(share, operator.mean(0)).flatten()
        triangles = [torch.linalg.qr(axis.cpu().double(), mode="r").R / len(axis) ** 0.5 for axis in axes]
        factors = [triangle.contiguous().to(axes[0]) for triangle in triangles]
        return *axes, *factors, F.pad(axes[0], (0, 1), value=1.0), share


def _operators_for_compiler(action: Tensor, size: list[int], kernel_size: int, sigma: float) -> list[Tensor]:
    grid = tuple(action.shape[2:])
    found = _operators(grid, tuple(size), kernel_size, sigma, action.device, action.dtype)
    return [operator.clone() for operator in found]  # compiled code may write into what an operator returns


# A compiler would trace through the cache and make the operators anew in each step.
_LIBRARY.define("operators(Tensor action, int[] size, int kernel_size, float sigma) -> Tensor[]")
_LIBRARY.impl("operators", _operators_for_compiler, "CompositeExplicitAutograd")


@torch.library.register_fake("policy_noise::operators", lib=_LIBRARY)
def _fake_operators(action: Tensor, size: list[int], kernel_size: int, sigma: float) -> list[Tensor]:
    grid = tuple(action.shape[2:])
    shapes = [*zip(size, grid, strict=True), *zip(grid, grid, strict=True), (size[0], grid[0] + 1), (math.prod(grid),)]
    return [action.new_empty(shape) for shape in shapes]


def render_mask(
    action: Tensor,
    size: Sequence[int],
    kernel_size: int | None = None,
    sigma: float | None = None,
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
    size, kernel_size, sigma = _check_rendering(action, size, kernel_size, sigma)
    if method == "kornia":
        if len(size) != 2:
            raise ValueError(f"method='kornia' renders two axes, got an action of shape {tuple(action.shape)}")
        from kornia.filters import gaussian_blur2d

        with torch.autocast(action.device.type, enabled=False):
            enlarged = F.interpolate(action, size, mode="nearest")
            return gaussian_blur2d(enlarged, (kernel_size, kernel_size), (sigma, sigma), border_type="reflect")
    if method != "matmul":
        raise ValueError(f"method must be 'matmul' or 'kornia', got {method!r}")
    operators = _get_operators(action, size, kernel_size, sigma)
    return _render(action, operators[: len(size)])


def _check_rendering(
    action: Tensor, size: Sequence[int], kernel_size: int | None, sigma: float | None
) -> tuple[tuple[int, ...], int, float]:
    # This turns a compiler's symbolic sizes into the numbers they are.
    size, grid = (tuple(len(range(length)) for length in lengths) for lengths in (size, action.shape[2:]))
    if action.ndim not in (4, 5) or action.shape[1] != 1:
        raise ValueError(f"action must have shape (B, 1, G, G) or (B, 1, G, G, G), got {tuple(action.shape)}")
    if len(size) != len(grid) or any(pixels < cells for pixels, cells in zip(size, grid, strict=True)):
        raise ValueError(f"size {size} does not fit a grid of {grid} cells: every axis needs a pixel for each cell")
    return size, *blur_parameters(size, grid, kernel_size, sigma)


def _get_operators(action: Tensor, size: tuple[int, ...], kernel_size: int, sigma: float) -> Sequence[Tensor]:
    if torch.compiler.is_compiling():
        return torch.ops.policy_noise.operators(action.detach(), list(size), kernel_size, sigma)
    return _operators(tuple(action.shape[2:]), size, kernel_size, sigma, action.device, action.dtype)


def _render(action: Tensor, axes: Sequence[Tensor], offset: Tensor | None = None) -> Tensor:
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


FLAT = 1e-3
"""A mask whose lowest cell lies no further than this below its mean counts as flat."""


def _standardize(action: Tensor, share: Tensor, factors: Sequence[Tensor], mask_std: float) -> Tensor:
    """Cells whose rendered mask has mean 1 and standard deviation ``mask_std``, or less where a cell would pass 0."""
    ones = [1] * (action.ndim - 1)
    with torch.autocast(action.device.type, enabled=False):
        darkness = torch.mv(action.flatten(1), share).view(-1, *ones) - action
        deviation = _render(darkness, factors).flatten(1).norm(dim=1)
        # Rendering averages cells, so that no pixel is darker than the darkest cell.
        scale = torch.maximum(deviation / mask_std, darkness.flatten(1).amax(1)).clamp(min=FLAT)
        # A little less than all, so that rounding leaves no light negative.
        return torch.rsub(darkness / scale.view(-1, *ones), 1.0, alpha=1.0 - ACTION_EPS)


LEVEL_REACH = 3.0
"""Standard deviations that a mask's level keeps to, which unlearned actions pass once in thousands of draws."""


def mask_level(action: Tensor, level_std: float) -> Tensor:
    r"""How much brighter or darker an image becomes as a whole, by a mask whose own mean is 1.

    .. math:: \exp(\sigma z), \qquad z = \sqrt{12 n} \, (\overline{a} - 1/2)

    with the mean of the mask's n actions, so that z has a standard deviation of 1 where they are uniform, as an
    unlearned mask's are: images brighten as often as they darken, as under a random bias field. Within +-3, so that no
    policy can run away.

    Args:
        action: One value in (0, 1) a cell.
        level_std: Standard deviation of the level's logarithm under the uniform distribution.

    Shape:
        - action: (B, 1, G, G) or (B, 1, G, G, G).
        - Output: (B, 1, 1, 1) or (B, 1, 1, 1, 1).

    Example:
        >>> mask_level(torch.full((1, 1, 2, 2), 0.5), 0.2)
        tensor([[[[1.]]]])
    """
    centred = action.mean(dim=tuple(range(1, action.ndim)), keepdim=True) - 0.5
    z = centred * math.sqrt(12 * math.prod(action.shape[1:]))
    return torch.exp(level_std * z.clamp(-LEVEL_REACH, LEVEL_REACH))


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
    kernel_size: int | None = None,
    sigma: float | None = None,
    strength: float = 1.0,
    mean_preserving: bool = False,
    mask_std: float | None = None,
    level_std: float = 0.0,
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
        mask_std: Instead of ``mean_preserving``: give each mask a spatial mean of 1 and this standard deviation before
            ``strength`` counts, so that an action says where the mask varies and not how much. It is less where a cell
            would fall below 0, and 0 for an action that renders flat.
        level_std: Multiply each mask by its :func:`mask_level`, before ``strength`` counts.
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
    *operators, lifted, share = _get_operators(action, *_check_rendering(action, images.shape[2:], kernel_size, sigma))
    axes, factors = operators[: len(operators) // 2], operators[len(operators) // 2 :]
    # Rendering is linear: what scale_mask does to the pixels is done to the few cells, and costs no pass over pixels.
    offset = None
    level = mask_level(action, level_std) if level_std else None
    if mask_std is not None:
        action = _standardize(action, share, factors, mask_std)
    elif mean_preserving:
        mean = (action.flatten(1) * share).sum(1)
        action = action / mean.view(-1, *[1] * (action.ndim - 1))
    if level is not None:
        action = action * level
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
    return apply_mask(images, _render(action, axes, offset), black)


# -- the estimator -----------------------------------------------------------------------------------------------------


def advantage(
    loss: Tensor,
    *,
    baseline: Baseline | Tensor | float = "leave_one_out",
    normalize: bool = False,
    valid: Tensor | None = None,
) -> Tensor:
    r"""How much worse than expected each sample's loss was.

    .. math:: A_i = \frac{l_i - b_i}{s}

    with :math:`b_i` 0 (``"none"``), the batch mean (``"batch"``), the mean of the other samples
    (``"leave_one_out"``, which leaves the score-function estimator unbiased) or a given number (a moving average); and
    s the batch's standard deviation with ``normalize``, else 1.

    Args:
        loss: Loss of each sample; detached here.
        baseline: A name, or the value itself.
        normalize: Divide by the standard deviation of the valid losses, if there are two or more.
        valid: Samples that count; the others get an advantage of exactly 0, whatever their loss (also NaN).

    Shape:
        - loss: (B,).
        - valid: (B,), bool.
        - Output: (B,).

    Example:
        >>> advantage(torch.tensor([1.0, 2.0, 6.0]), baseline="batch")
        tensor([-2., -1.,  3.])
    """
    loss = loss.detach()
    valid = torch.ones_like(loss, dtype=torch.bool) if valid is None else valid
    moments = LossMoments.of(loss, valid)
    return moments.weights(baseline, normalize) * moments.samples


@dataclass(frozen=True)
class LossMoments:
    """What the valid losses of a batch have in common, and what sets them apart; each computed once."""

    valid: Tensor
    kept: Tensor
    count: Tensor
    samples: Tensor
    mean: Tensor
    average: Tensor
    many: Tensor
    centred: Tensor
    variance: Tensor

    @classmethod
    def of(cls, loss: Tensor, valid: Tensor, average: Tensor | None = None) -> "LossMoments":
        """Of losses (B,) and which of them count; one that alone does is compared with an average of earlier ones.

        Left out, or NaN, it is the mean; see :func:`average_or`.
        """
        kept = torch.where(valid, loss, 0)
        # As floating point, so that the numbers below need no casts; a half would count up to 256.
        count = valid.sum(dtype=torch.float64 if loss.dtype == torch.float64 else torch.float32)
        samples = count.clamp(min=1)
        mean = kept.sum() / samples
        many = count > 1
        average = average_or(mean, average)
        centred = (kept - torch.where(many, mean, average)) * valid
        return cls(valid, kept, count, samples, mean, average, many, centred, centred.square().sum() / samples)

    def weights(self, baseline: Baseline | Tensor | float, normalize: bool) -> Tensor:
        """The advantage over the number of samples, with all that is one number a batch multiplied first."""
        scale = self.samples
        if not isinstance(baseline, str):
            distance = torch.where(self.valid, self.kept - baseline, 0)
        elif baseline not in ("none", "batch", "leave_one_out"):
            raise ValueError(f"baseline must be 'none', 'batch', 'leave_one_out' or a number, got {baseline!r}")
        else:
            distance = self.kept if baseline == "none" else self.centred
            if baseline == "leave_one_out":
                # l_i - (S - l_i) / (n - 1) = (l_i - S / n) n / (n - 1)
                scale = self.count.clamp(min=2) - 1
        if normalize:
            # One loss has no deviation, and none has neither: 1 then, which is what ``samples`` is.
            scale = scale * torch.where(self.many, self.variance.sqrt().clamp(min=1e-6), self.samples)
        return distance / scale


def average_or(mean: Tensor, average: Tensor | None) -> Tensor:
    """A moving average, or the mean where there is none yet: None, or NaN as long as no sample has counted."""
    return mean if average is None else torch.where(average.isnan(), mean, average)


def reinforce_loss(
    log_prob: Tensor,
    loss: Tensor,
    *,
    baseline: Baseline | Tensor | float = "leave_one_out",
    normalize: bool = False,
    reward: Reward = "cooperative",
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    valid: Tensor | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    r"""Score-function surrogate (REINFORCE, Williams 1992) with a per-sample advantage.

    .. math:: L = \frac{1}{n} \sum_i \pm \log p(a_i \mid x_i) \, A_i - c \, H_i

    Its gradient is an estimate of the gradient of the expected loss, so minimising it lowers the loss that the masks
    cause (``"cooperative"``) or raises it (``"adversarial"``, the minus sign).

    Args:
        log_prob: Log-probability of each sample's whole mask.
        loss: Loss of each sample, one a sample: a scalar credits no image for its own mask. Detached here.
        baseline: See :func:`advantage`.
        normalize: See :func:`advantage`.
        reward: Whether a low loss is good (the paper's) or bad.
        entropy: Entropy of each sample's distribution, for the bonus.
        entropy_coef: Weight c of the entropy bonus.
        valid: Samples that count; see :func:`advantage`.
        reduction: ``"mean"`` over the valid samples, ``"sum"`` or ``"none"``.

    Shape:
        - log_prob, loss, entropy, valid: (B,).
        - Output: a scalar, or (B,) with ``reduction="none"``.

    Raises:
        ValueError: If shapes or names do not fit.

    Example:
        >>> log_prob = torch.zeros(4, requires_grad=True)
        >>> reinforce_loss(log_prob, torch.tensor([1.0, 2.0, 3.0, 4.0]), baseline="batch").backward()
        >>> log_prob.grad
        tensor([-0.3750, -0.1250,  0.1250,  0.3750])
    """
    if log_prob.ndim != 1 or loss.shape != log_prob.shape:
        raise ValueError(
            "log_prob and loss must both have shape (B,), one number a sample, got "
            f"{tuple(log_prob.shape)} and {tuple(loss.shape)}"
        )
    if reward not in ("cooperative", "adversarial"):
        raise ValueError(f"reward must be 'cooperative' or 'adversarial', got {reward!r}")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be 'mean', 'sum' or 'none', got {reduction!r}")
    weight = advantage(loss, baseline=baseline, normalize=normalize, valid=valid)
    surrogate = log_prob * (weight if reward == "cooperative" else -weight)
    if entropy_coef:
        if entropy is None:
            raise ValueError(f"entropy_coef is {entropy_coef} but entropy was not given")
        surrogate = surrogate - entropy_coef * entropy
    if valid is not None:
        surrogate = torch.where(valid, surrogate, 0)
    if reduction == "none":
        return surrogate
    total = surrogate.sum()
    if reduction == "sum":
        return total
    return total / (log_prob.numel() if valid is None else valid.sum().clamp(min=1))


def paper_objective(log_prob: Tensor, loss: Tensor) -> Tensor:
    r"""The published surrogate, as the authors' training code has it.

    .. math:: L = \frac{1}{B} \sum_b \log \Big( \sum_j p_j(a_{bj}) \Big) \cdot \overline{l}

    with the scalar mean loss of the batch. It is kept for comparison: it is no score function (the log of a sum of
    densities, not of their product), so its expected gradient is not zero for a constant loss, and every image gets
    the same credit. Its one backward trains both networks, and scales the classifier's gradient by the first factor.
    Computed by logsumexp, which does not overflow where the sum of exponentials does.

    Args:
        log_prob: Log density of each cell.
        loss: The batch's losses or their mean; not detached.

    Shape:
        - log_prob: (B, G * G).
        - loss: (B,) or a scalar.
        - Output: a scalar.
    """
    if log_prob.ndim != 2:
        raise ValueError(f"log_prob must have shape (B, G * G), one number a cell, got {tuple(log_prob.shape)}")
    return torch.logsumexp(log_prob, dim=1).mean() * loss.mean()
