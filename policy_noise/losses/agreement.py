"""Whether the samples' losses give the loss that the criterion returned, and which samples count."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .batch import Call
from .ways import Parts

__all__ = ["TOLERANCE", "Agreement", "agree", "agree_weighted", "pools", "supervised"]

POOLING = ("DiceLoss", "JaccardLoss", "TverskyLoss", "LovaszLoss", "MCCLoss")
"""Losses of segmentation_models_pytorch that pool the batch before they divide."""
IGNORED = -100
"""The label that torch and Hugging Face ignore by default."""


TOLERANCE = {False: 1e-3, True: 3e-2}
"""Relative tolerance in single precision (a GPU's matrix products may be TF32) and in half precision."""


@dataclass(frozen=True)
class Agreement:
    """The losses agree.

    Args:
        sure: False where this batch proves nothing: a single sample, no loss at all, a loss that is not finite.
        only_finite: Samples whose own loss is not finite did not count.
    """

    sure: bool
    only_finite: bool = False


def agree(parts: Parts, valid: Tensor | None, loss: Tensor, tolerance: float) -> Agreement | None:
    """Compare a loss with the samples' mean, their sum, their weighted mean, and the mean of those that count.

    Shape:
        - valid: (N,), bool.
        - loss: one number.

    Returns:
        None if they disagree.
    """
    if loss.numel() != 1:
        return None
    values, total = parts.values.detach().double().cpu(), float(loss)
    if not torch.tensor(total).isfinite():
        return Agreement(sure=False)
    counted = torch.ones_like(values, dtype=torch.bool) if valid is None else valid.cpu()
    finite = values.isfinite()
    only_finite = not bool(finite[counted].all())
    counted = counted & finite
    if not bool(counted.any()):
        return Agreement(sure=False) if total == 0 else None
    kept = values[counted]
    means = [kept.mean(), kept.sum(), kept.sum() / len(values)]
    if parts.weights is not None:
        weights = parts.weights.double().cpu()[counted]
        means.append((kept * weights).sum() / weights.sum())
    scale = max(abs(total), float(kept.abs().mean()))
    if not any(abs(float(mean) - total) <= tolerance * scale + 1e-7 for mean in means):
        return None
    return Agreement(sure=len(values) > 1 and bool(kept.any()), only_finite=only_finite)


def agree_weighted(unreduced: Parts, alone: Parts, loss: Tensor, tolerance: float) -> bool:
    """Whether a loss is the mean of unreduced losses, divided by the weights that they carry.

    A sample by itself shows its loss without its weight (class weights cancel out), so that the ratio is the weight.
    """
    if loss.numel() != 1:
        return False
    weights = torch.nan_to_num(unreduced.values.double() / alone.values.double(), 0, 0, 0)
    total, mean = float(loss), float(unreduced.values.double().sum() / weights.sum())
    return len(weights) > 1 and abs(mean - total) <= tolerance * abs(total)


def supervised(criterion: Any, parts: Parts, call: Call) -> Tensor | None:
    """False for samples without a label: a loss of 0 or none at all, and labels that are all ignored or masked out.

    A mask is a boolean tensor, or a floating-point one after output and target, that is 0 all over the sample.
    """
    if parts.valid is not None:
        return parts.valid
    ignored = getattr(criterion, "ignore_index", None)
    ignored = ignored if isinstance(ignored, int) else IGNORED
    valid = None
    for place, leaf in enumerate(call.tensors):
        if (leaf.is_floating_point() and place < 2) or leaf.is_complex():
            continue
        used = leaf != (0 if leaf.is_floating_point() or leaf.dtype == torch.bool else ignored)
        used = used.flatten(1).any(1) if used.ndim > 1 else used
        valid = used if valid is None else valid & used
    if valid is None:
        return None
    return valid | ((parts.values != 0) & parts.values.isfinite())


def pools(criterion: Any) -> bool:
    """Whether a library says of its loss that it pools the batch before it divides."""
    if type(criterion).__module__.startswith("segmentation_models_pytorch."):
        return type(criterion).__name__ in POOLING
    return isinstance(criterion, nn.Module) and any(
        getattr(part, "batch", None) is True for part in criterion.modules()
    )
