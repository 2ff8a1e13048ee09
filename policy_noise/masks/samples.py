"""One draw of masks for a batch."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .. import functional as PF
from ..augmentation import Sample
from ..functional.distribution import BetaTerms

__all__ = ["MaskSample", "ShadingSample"]


@dataclass(frozen=True)
class ShadingSample(Sample):
    """Random masks.

    Args:
        log_prob: None.
        applied: Which images are masked, (B,) bool.
        action: Values in (0, 1), ``(B, 1, *grid)``.
    """

    action: Tensor

    @property
    def expected(self) -> Tensor | None:
        """Expected value of each cell; None stands for 1/2."""
        return None


@dataclass(frozen=True)
class MaskSample(ShadingSample):
    """Masks that a policy drew. Passed to the module again, they are the same masks.

    Args:
        log_prob: Log-probability of each image's whole action, (B,), differentiable in the policy; None has it computed
            when it is read.
        applied: Which images are masked, (B,) bool.
        action: Sampled values in (0, 1), detached, ``(B, 1, *grid)``.
        concentration1: Alpha of each cell, ``(B, 1, *grid)``.
        concentration0: Beta of each cell, ``(B, 1, *grid)``.
    """

    concentration1: Tensor
    concentration0: Tensor

    def __post_init__(self) -> None:
        if self.log_prob is None:
            del self.__dict__["log_prob"]

    @property
    def is_scored(self) -> bool:
        """Whether the log-probability was given, and is not computed when it is read."""
        return "log_prob" in vars(self)

    @property
    def has_graph(self) -> bool:
        """Whether the draw can be differentiated in the policy's parameters."""
        return super().has_graph if self.is_scored else self.concentration1.requires_grad

    def finite(self) -> Tensor | None:
        """None if the log-probability was not given: bounded concentrations and actions always have a finite one."""
        return super().finite() if self.is_scored else None

    def surrogate(self, weight: Tensor, entropy_weight: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """The gradient in the concentrations, in closed form."""
        if self.is_scored:
            return super().surrogate(weight, entropy_weight)
        broad = (-1, *[1] * (self.action.ndim - 1))
        bonus = None if entropy_weight is None else entropy_weight.view(broad)
        with torch.no_grad():
            gradients = self._terms.gradient(self.action, weight.view(broad), bonus)
        return [self.concentration1, self.concentration0], [*gradients]

    @cached_property
    def _terms(self) -> BetaTerms:
        with torch.no_grad():
            return BetaTerms.of(self.concentration1, self.concentration0)

    def __getattr__(self, name: str) -> Tensor:
        if name == "log_prob":
            return self.cell_log_prob().sum(1)
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @property
    def entropy(self) -> Tensor:
        """Entropy in nats of each image's distribution, (B,), differentiable in the policy; computed when read."""
        if torch.is_grad_enabled() and self.has_graph:
            cells = PF.beta_entropy(self.concentration1, self.concentration0)
        else:
            cells = self._terms.entropy()
        return cells.flatten(1).sum(1)

    @property
    def expected(self) -> Tensor:
        """Expected value of each cell, alpha / (alpha + beta), detached."""
        with torch.no_grad():  # activation checkpointing counts the tensors that a graph keeps
            return self.concentration1 / (self.concentration1 + self.concentration0)

    @property
    def actions(self) -> int:
        """Cells of each mask."""
        return math.prod(self.action.shape[1:])

    def cell_log_prob(self) -> Tensor:
        """Log density of each cell, (B, cells), for :func:`policy_noise.functional.paper_objective`."""
        return PF.beta_log_prob(self.action, self.concentration1, self.concentration0).flatten(1)
