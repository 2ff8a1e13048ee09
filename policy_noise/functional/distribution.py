"""The distribution of a grid of actions: a product of independent Beta distributions, one per cell.

``concentration1`` and ``concentration0`` are alpha and beta in the naming of :class:`torch.distributions.Beta`.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..utils.compat import are_transforms_active, sample_dirichlet

__all__ = ["ACTION_EPS", "beta_entropy", "beta_log_prob", "beta_score", "bounded_exp", "sample_beta"]

ACTION_EPS = 1e-6
"""Distance that sampled actions keep from 0 and 1, where Beta densities can be infinite."""


def sample_beta(concentration1: Tensor, concentration0: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Draw one action per cell, without gradient, at least :data:`ACTION_EPS` away from 0 and 1.

    With the same seed the draw is that of :meth:`torch.distributions.Beta.sample`, number for number. That one does not
    take a generator.

    Args:
        concentration1: Alpha, positive, fp32 or fp64 (the sampler does not exist in half precision).
        concentration0: Beta, likewise.
        generator: Source of randomness; by default the device's global one, which follows ``torch.manual_seed``.

    Shape:
        - concentration1, concentration0: any shape, the same.
        - Output: that shape, in [1e-6, 1 - 1e-6].

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> sample_beta(torch.ones(2, 3), torch.ones(2, 3), generator).shape
        torch.Size([2, 3])
    """
    return draw_pairs(torch.stack([concentration1, concentration0], dim=-1), generator)


def draw_pairs(concentration: Tensor, generator: torch.Generator | None) -> Tensor:
    """:func:`sample_beta` from alpha and beta side by side, in the last axis."""
    with torch.no_grad():
        action = sample_dirichlet(concentration, generator).select(-1, 0)
        return action.clamp(ACTION_EPS, 1.0 - ACTION_EPS)


def beta_log_prob(action: Tensor, concentration1: Tensor, concentration0: Tensor) -> Tensor:
    r"""Log density of each cell's action, differentiable in the concentrations.

    .. math:: (\alpha - 1) \log a + (\beta - 1) \log(1 - a) - \log B(\alpha, \beta)

    Shape:
        - action, concentration1, concentration0: any shape, the same.
        - Output: that shape; sum over cells for the log-probability of a mask.

    Example:
        >>> two = torch.tensor(2.0)  # Beta(2, 2) prefers the middle
        >>> beta_log_prob(torch.tensor([0.1, 0.5]), two, two)
        tensor([-0.6162,  0.4055])
    """
    log_beta = (
        torch.lgamma(concentration1) + torch.lgamma(concentration0) - torch.lgamma(concentration1 + concentration0)
    )
    return (concentration1 - 1) * torch.log(action) + (concentration0 - 1) * torch.log1p(-action) - log_beta


def bounded_exp(logarithm: Tensor, low: float, high: float) -> Tensor:
    """``logarithm.clamp(low, high).exp()`` in fewer operations; beyond the bounds there is no gradient.

    Shape:
        - logarithm: any shape.
        - Output: that shape.
    """
    if are_transforms_active():  # which need functions of another kind
        return logarithm.clamp(low, high).exp()
    return _BoundedExp.apply(logarithm, low, high)


class _BoundedExp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logarithm: Tensor, low: float, high: float) -> Tensor:
        bounded = logarithm.clamp(low, high)
        value = bounded.exp()
        ctx.save_for_backward(logarithm, bounded, value)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # type: ignore[override]
        logarithm, bounded, value = ctx.saved_tensors
        return (gradient * value).masked_fill(bounded != logarithm, 0.0), None, None


def beta_entropy(concentration1: Tensor, concentration0: Tensor) -> Tensor:
    r"""Differential entropy in nats of each cell's Beta distribution: 0 for Beta(1, 1), its largest value.

    .. math:: \log B(\alpha, \beta) - (\alpha - 1) \psi(\alpha) - (\beta - 1) \psi(\beta)
        + (\alpha + \beta - 2) \psi(\alpha + \beta)

    Shape:
        - concentration1, concentration0: any shape, the same.
        - Output: that shape.

    Example:
        >>> beta_entropy(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]))
        tensor([ 0.0000, -0.1251])
    """
    total = concentration1 + concentration0
    log_beta = torch.lgamma(concentration1) + torch.lgamma(concentration0) - torch.lgamma(total)
    spread = (total - 2) * torch.digamma(total)
    return (
        log_beta
        - (concentration1 - 1) * torch.digamma(concentration1)
        - (concentration0 - 1) * torch.digamma(concentration0)
        + spread
    )


def beta_score(action: Tensor, concentration1: Tensor, concentration0: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of each image's whole action: sums of :func:`beta_log_prob` and :func:`beta_entropy`.

    Their gradient in the concentrations is computed in closed form, in fewer operations than autograd's.

    Args:
        action: Drawn values in (0, 1), without gradient.
        concentration1: Alpha.
        concentration0: Beta.

    Shape:
        - action, concentration1, concentration0: (B, ...), the same.
        - Output: (B,) and (B,).
    """
    if are_transforms_active():  # which need functions of another kind
        cells = (beta_log_prob(action, concentration1, concentration0), beta_entropy(concentration1, concentration0))
        return cells[0].flatten(1).sum(1), cells[1].flatten(1).sum(1)
    return _BetaScore.apply(action, concentration1, concentration0)


class _BetaScore(torch.autograd.Function):
    """Alpha, beta and alpha + beta lie side by side, so that one operation serves all three."""

    @staticmethod
    def forward(ctx: Any, action: Tensor, concentration1: Tensor, concentration0: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        values = torch.stack([concentration1, concentration0, concentration1 + concentration0], dim=-1).flatten(1, -2)
        excess = values - _modes(values.device, values.dtype)
        digamma, log_gamma = values.digamma(), values.lgamma()
        logs = torch.stack([action, 1.0 - action], dim=-1).flatten(1, -2).log_()
        ctx.shape = action.shape
        ctx.save_for_backward(values, excess, digamma, logs)
        log_beta = (log_gamma[..., 0] + log_gamma[..., 1] - log_gamma[..., 2]).sum(1)
        log_prob = (excess[..., :2] * logs).sum((1, 2)) - log_beta
        slopes = excess * digamma
        entropy = log_beta - (slopes[..., 0] + slopes[..., 1] - slopes[..., 2]).sum(1)
        return log_prob, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight: Tensor | None, entropy_weight: Tensor | None) -> Any:  # type: ignore[override]
        values, excess, digamma, logs = ctx.saved_tensors
        gradient = None
        if weight is not None:  # log a - psi(alpha) + psi(alpha + beta)
            gradient = (logs - digamma[..., :2] + digamma[..., 2:]) * weight.view(-1, 1, 1)
        if entropy_weight is not None:  # (alpha + beta - 2) psi'(alpha + beta) - (alpha - 1) psi'(alpha)
            slopes = excess * torch.polygamma(1, values)
            own = (slopes[..., 2:] - slopes[..., :2]) * entropy_weight.view(-1, 1, 1)
            gradient = own if gradient is None else gradient.add_(own)
        if gradient is None:
            return None, None, None
        return None, *(each.view(ctx.shape) for each in gradient.unbind(-1))


@lru_cache(maxsize=16)
def _modes(device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return torch.tensor([1.0, 1.0, 2.0], device=device, dtype=dtype)
