"""One draw of masks for a batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import functional as PF
from ..augmentation import Sample
from ..functional.distribution import BetaTerms

__all__ = ["MaskSample", "ShadingSample"]


@dataclass(frozen=True, kw_only=True)
class ShadingSample(Sample):
    """Random masks.

    Args:
        log_prob: None.
        applied: Which images are masked, (B,) bool.
        action: Values in (0, 1), ``(B, 1, *grid)``; with ``per_channel`` ``(B, C, *grid)``.
        pattern_std: Each image's own, (B,), where the mask draws it from a range.
        brightness_std: Likewise.
    """

    action: Tensor
    pattern_std: Tensor | None = None
    brightness_std: Tensor | None = None

    @property
    def expected(self) -> Tensor | None:
        """Expected value of each cell; None stands for 1/2."""
        return None


def per_cell(action: Tensor, weight: Tensor, entropy_weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weights of images, (B,), in the form in which they multiply an action's cells."""
    shape = (-1, *[1] * (action.ndim - 1))
    return weight.view(shape), None if entropy_weight is None else entropy_weight.view(shape)


class _LogProb:
    """The field ``log_prob`` of a :class:`MaskSample`: what was stored, or, for None, computed when it is read."""

    def __get__(self, sample: "MaskSample", owner: Any = None) -> Tensor:
        stored = vars(sample)["log_prob"]
        return sample.cell_log_prob().sum(1) if stored is None else stored

    def __set__(self, sample: "MaskSample", value: Tensor | None) -> None:
        vars(sample)["log_prob"] = value


@dataclass(frozen=True, kw_only=True)
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

    __slots__ = ("_terms",)  # beside the fields, so that vars() and replace() know of the fields alone
    log_prob = _LogProb()  # type: ignore[assignment]

    @property
    def is_scored(self) -> bool:
        """Whether the log-probability was given, and is not computed when it is read."""
        return vars(self)["log_prob"] is not None

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
        with torch.no_grad():
            gradients = self._gradients(weight, entropy_weight)
        return [self.concentration1, self.concentration0], [*gradients]

    def _gradients(self, weight: Tensor, entropy_weight: Tensor | None) -> Sequence[Tensor]:
        """Derivatives of the weighted sum in both concentrations, without graph."""
        return self._shared().gradient(self.action, *per_cell(self.action, weight, entropy_weight))

    def _entropy(self) -> Tensor:
        """The entropy without graph."""
        return self._shared().entropy().flatten(1).sum(1)

    def _shared(self) -> BetaTerms:
        """What entropy and gradient share, computed once."""
        terms: BetaTerms | None = getattr(self, "_terms", None)
        if terms is None:
            with torch.no_grad():
                terms = BetaTerms.of(self.concentration1, self.concentration0)
            object.__setattr__(self, "_terms", terms)
        return terms

    @property
    def entropy(self) -> Tensor:
        """Entropy in nats of each image's distribution, (B,), differentiable in the policy; computed when read."""
        if torch.is_grad_enabled() and self.has_graph:
            return PF.beta_entropy(self.concentration1, self.concentration0).flatten(1).sum(1)
        return self._entropy()

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
