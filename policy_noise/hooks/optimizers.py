"""Which optimizer really steps."""

from typing import Any

import torch

__all__ = ["stepping_optimizer"]

WRAPPED_OPTIMIZER = ("optimizer", "_optimizer", "base_optimizer", "_base_optimizer", "base")
"""Where wrappers keep the optimizer that they step: accelerate and DeepSpeed, Lightning, SAM, timm's Lookahead,
schedule-free."""


def stepping_optimizer(optimizer: Any) -> Any:
    """The optimizer whose ``step()`` really runs, inside wrappers that are known to step another one."""
    for name in WRAPPED_OPTIMIZER:
        inner = getattr(optimizer, name, None)
        if isinstance(inner, torch.optim.Optimizer) and inner is not optimizer:
            return stepping_optimizer(inner)
    return optimizer
