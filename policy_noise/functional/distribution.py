"""The distribution of a grid of actions: a product of independent Beta distributions, one per cell.

``concentration1`` and ``concentration0`` are alpha and beta in the naming of :class:`torch.distributions.Beta`.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..utils.compat import are_transforms_active, sample_dirichlet

__all__ = ["ACTION_EPS", "beta_entropy", "beta_gradient", "beta_log_prob", "bounded_exp", "sample_beta"]

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
    """
    return BetaTerms.of(concentration1, concentration0).entropy()


def beta_gradient(
    action: Tensor,
    concentration1: Tensor,
    concentration0: Tensor,
    weight: Tensor,
    entropy_weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Gradient of weighted log densities and entropies in the concentrations, in closed form.

    .. math:: \partial_\alpha (w \log p - c H) = w (\log a - \psi(\alpha) + \psi(\alpha + \beta))
        + c ((\alpha - 1) \psi'(\alpha) - (\alpha + \beta - 2) \psi'(\alpha + \beta))

    and with 1 - a and beta in the places of a and alpha. It equals autograd's gradient of :func:`beta_log_prob` and
    :func:`beta_entropy`, in fewer operations.

    Args:
        action: Drawn values in (0, 1).
        concentration1: Alpha.
        concentration0: Beta.
        weight: The factor w of each log density.
        entropy_weight: The factor c of each entropy; by default 0.

    Shape:
        - action, concentration1, concentration0: any shape, the same.
        - weight, entropy_weight: broadcast to it.
        - Output: two tensors of that shape.
    """
    with torch.no_grad():
        return BetaTerms.of(concentration1, concentration0).gradient(action, weight, entropy_weight)


class BetaTerms(NamedTuple):
    """What entropy and gradient share. Alpha, beta and alpha + beta lie side by side: one operation serves all three.

    Args:
        values: Alpha, beta and alpha + beta.
        excess: Alpha - 1, beta - 1 and alpha + beta - 2.
        digamma: Of the values.

    Shape:
        - values, excess, digamma: (..., 3).
    """

    values: Tensor
    excess: Tensor
    digamma: Tensor

    @classmethod
    def of(cls, concentration1: Tensor, concentration0: Tensor) -> "BetaTerms":
        """The terms of each cell."""
        total = concentration1 + concentration0
        values = torch.stack([concentration1, concentration0, total], dim=-1)
        return cls(values, values - _modes(values.device, values.dtype), values.digamma())

    def entropy(self) -> Tensor:
        """:func:`beta_entropy`."""
        terms = torch.addcmul(self.values.lgamma(), self.excess, self.digamma, value=-1)
        return terms[..., 0] + terms[..., 1] - terms[..., 2]

    def gradient(self, action: Tensor, weight: Tensor, entropy_weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """:func:`beta_gradient`."""
        weight = weight.unsqueeze(-1)
        slopes = self.digamma * weight
        if entropy_weight is not None:
            trigamma = torch.polygamma(1, self.values)
            slopes.addcmul_(self.excess * trigamma, entropy_weight.unsqueeze(-1), value=-1)
        log_action = torch.stack([action, 1.0 - action], dim=-1).log_()
        first, second = (slopes[..., 2:] - slopes[..., :2]).addcmul_(log_action, weight).unbind(-1)
        return first, second


@lru_cache(maxsize=16)
def _modes(device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        return torch.tensor([1.0, 1.0, 2.0], device=device, dtype=dtype)
