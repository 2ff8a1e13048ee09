"""One draw of masks for a batch."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import functional as PF
from ..augmentation import Sample

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


@dataclass(frozen=True, kw_only=True)
class MaskSample(ShadingSample):
    """Masks that a policy drew. Passed to the module again, they are the same masks.

    Args:
        log_prob: Log-probability of each image's whole action, (B,), differentiable in the policy.
        applied: Which images are masked, (B,) bool.
        entropy: Entropy of each image's distribution in nats, (B,), differentiable in the policy.
        action: Sampled values in (0, 1), detached, ``(B, 1, *grid)``.
        concentration1: Alpha of each cell, ``(B, 1, *grid)``.
        concentration0: Beta of each cell, ``(B, 1, *grid)``.
        pattern_std: See :class:`ShadingSample`.
        brightness_std: See :class:`ShadingSample`.
    """

    concentration1: Tensor
    concentration0: Tensor

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
