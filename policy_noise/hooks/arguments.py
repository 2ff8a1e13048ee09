"""Check a hook's arguments before anything is hooked."""

import math
from typing import Any

from torch import nn

from ..augmentation import StochasticAugmentation
from ..losses import is_hookable
from .registry import hooks_on

__all__ = ["check_arguments"]


def check_arguments(
    augmentation: Any, stepping: Any, optimizer: Any, model: Any, criterion: Any, output_loss: Any, max_pending: Any
) -> None:
    """Check a hook's arguments.

    Raises:
        TypeError: If one is of the wrong kind.
        ValueError: If a value is out of its range.
        RuntimeError: If model or optimizer is hooked already.
    """
    if not isinstance(augmentation, StochasticAugmentation):
        raise TypeError(f"augmentation must be a StochasticAugmentation, got {type(augmentation).__name__}")
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if criterion is not None and not isinstance(criterion, nn.Module):
        raise TypeError(
            f"criterion must be a torch.nn.Module, got {type(criterion).__name__}: if your loss is a function, omit "
            "criterion and call hook.observe(losses) with one loss per image, shape (B,)"
        )
    if criterion is not None and not is_hookable(criterion):
        raise TypeError(
            f"criterion {type(criterion).__name__} overrides __call__, so its forward hooks never run: omit "
            "criterion and call hook.observe(policy_noise.losses.per_sample_loss(criterion, output, target))"
        )
    if output_loss is not None and (model is None or criterion is not None):
        raise TypeError("output_loss replaces criterion: pass it with model and without criterion")
    if not max_pending >= 1 or not math.isfinite(max_pending):
        raise ValueError(f"max_pending must be at least 1, got {max_pending!r}")
    for name, target in (("optimizer", optimizer), ("optimizer", stepping), ("model", model)):
        if target is not None and hooks_on(target):
            raise RuntimeError(
                f"{name} is hooked already: call policy_noise.detach({name}) first, or attach(..., replace=True)"
            )
