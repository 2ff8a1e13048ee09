"""Hold a policy's mean entropy in place instead of rewarding entropy at a fixed price."""

import math

import torch
from torch import Tensor

__all__ = ["EntropyConstraint"]

START = 0.1
"""Coefficient at the start."""
BOUNDS = (0.01, 20.0)
"""Range of the coefficient."""
RATE = 0.5
"""Eta, the exponent's share per nat."""


class EntropyConstraint:
    r"""An entropy bonus whose weight follows a target, as in InstaAug (Miao et al., ICML 2023).

    .. math:: c \leftarrow c \, \exp(\eta (h - \overline{H})), \qquad 0.01 \le c \le 20, \quad \eta = 0.5

    with the target h and the window's mean entropy H, both in nats per action. The policy can then distribute its noise
    between cells and images, and neither drop it nor collapse. The coefficient is a tensor, equal on all ranks, and
    changes without waiting for the device.

    Args:
        target: In nats per action. For Beta distributions 0 is uniform, the largest; Beta(1.5, 1.5) has about -0.05.
        start: The coefficient at the start; 0 stands for 0.1.

    Raises:
        ValueError: If the target is no finite number, or positive.
    """

    def __init__(self, target: float, start: float = 0.0) -> None:
        if not math.isfinite(target):
            raise ValueError(f"entropy_target must be a finite number of nats per action, got {target!r}")
        self.target = target
        self.coefficient = torch.tensor(start or START, dtype=torch.float32)

    def update(self, entropy: Tensor) -> None:
        """Follow a window's mean entropy.

        Args:
            entropy: Mean over the window's samples, in nats per action, a scalar; NaN changes nothing.
        """
        step = torch.rsub(entropy, RATE * self.target, alpha=RATE).nan_to_num_(0.0).exp_()
        self.coefficient = step.mul_(self.coefficient).clamp_(*BOUNDS)
