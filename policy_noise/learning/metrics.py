"""Diagnostics of the policy's last step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..augmentation import Sample
from ..functional import Reward
from .window import WindowMoments

__all__ = ["KEYS", "LastStep"]

KEYS = ("reward", "baseline", "advantage_std", "entropy", "policy_grad_norm")
"""Numbers that every policy has; NaN until there is a window in which a sample counts."""


@dataclass(frozen=True)
class LastStep:
    """What the metrics are made of. Making them waits for the device, so that is left until somebody reads them.

    Args:
        moments: Of the window.
        gradient: The policy's, flat.
        samples: The window's draws, detached; those of an earlier window where this rank had none.
    """

    moments: WindowMoments
    gradient: Tensor
    samples: Sequence[Sample]

    def metrics(self, reward: Reward, baseline: str) -> dict[str, float]:
        """:data:`KEYS` as plain numbers."""
        loss, count = self.moments.loss, float(self.moments.loss.count)
        if not count:
            return dict.fromkeys(KEYS, math.nan) | {"entropy": self._entropy()}
        sign = -1.0 if reward == "cooperative" else 1.0
        mean = float(loss.mean)
        base = {"none": 0.0, "moving_average": float(loss.average)}.get(baseline, mean)
        return {
            "reward": sign * mean,
            "baseline": sign * base,
            "advantage_std": float(loss.variance) ** 0.5 if count > 1 else 0.0,
            "entropy": self._entropy(),
            "policy_grad_norm": float(self.gradient.norm()),
        }

    def _entropy(self) -> float:
        if self.moments.total_entropy is not None:
            return float(self.moments.total_entropy)
        entropies = [entropy for sample in self.samples if (entropy := sample.entropy) is not None]
        return float(torch.cat(entropies).mean()) if entropies else math.nan
