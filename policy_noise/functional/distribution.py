"""The distribution of a grid of actions: a product of independent Beta distributions, one per cell.

``concentration1`` and ``concentration0`` are alpha and beta in the naming of :class:`torch.distributions.Beta`.
"""

from typing import Any

import torch
from torch import Tensor

from ..utils.compat import are_transforms_active, sample_dirichlet

__all__ = ["ACTION_EPS", "beta_entropy", "beta_log_prob", "draw", "sample_beta"]

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
    """
    if torch.compiler.is_compiling() and generator is None:
        return torch.ops.policy_noise.sample_beta(concentration1.detach(), concentration0.detach())
    return draw_beta(concentration1, concentration0, generator)


def draw_beta(concentration1: Tensor, concentration0: Tensor, generator: torch.Generator | None = None) -> Tensor:
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
    if torch.compiler.is_compiling() or are_transforms_active():
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
        action = draw_pairs(concentration, generator)
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
