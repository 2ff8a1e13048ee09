"""Check per-sample losses against the loss that the criterion returned, and find out which samples count."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .batch import Call
from .ways import Parts

__all__ = ["TOLERANCE", "Agreement", "agree", "agree_weighted", "pools", "supervised"]

POOLING = ("DiceLoss", "JaccardLoss", "TverskyLoss", "LovaszLoss", "MCCLoss")
"""Losses of segmentation_models_pytorch that sum over the batch before they divide."""
IGNORED = -100
"""The label that torch and Hugging Face ignore by default."""


TOLERANCE = {False: 1e-3, True: 3e-2}
"""Relative tolerance in single precision (a GPU's matrix products may be TF32) and in half precision."""


@dataclass(frozen=True)
class Agreement:
    """The result of a comparison in which the losses agreed.

    Args:
        sure: False if this batch proves nothing: a single sample, losses that are all 0, or a loss that is not finite.
        only_finite: True if samples whose own loss is not finite did not count.
    """

    sure: bool
    only_finite: bool = False


def agree(parts: Parts, valid: Tensor | None, loss: Tensor, tolerance: float) -> Agreement | None:
    """Compare a loss with the mean, the sum and the weighted mean of the samples that count.

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
    """Whether a loss is the weighted mean of unreduced losses that already include their weights.

    The loss of a single sample does not include its weight, because class weights cancel out. So the ratio of the two
    is the weight.
    """
    if loss.numel() != 1:
        return False
    weights = torch.nan_to_num(unreduced.values.double() / alone.values.double(), 0, 0, 0)
    total, mean = float(loss), float(unreduced.values.double().sum() / weights.sum())
    return len(weights) > 1 and abs(mean - total) <= tolerance * abs(total)


def supervised(criterion: Any, parts: Parts, call: Call) -> Tensor | None:
    """Find the samples that have a label, (N,) bool. None if there are no labels to look at.

    A sample has no label if its labels are all ignored or masked out and its loss is 0 or not finite. A mask is a
    boolean tensor, or a floating-point tensor that comes after output and target. 0 means masked out.
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
    """Whether a library's loss is known to sum over the batch before it divides."""
    if type(criterion).__module__.startswith("segmentation_models_pytorch."):
        return type(criterion).__name__ in POOLING
    return isinstance(criterion, nn.Module) and any(
        getattr(part, "batch", None) is True for part in criterion.modules()
    )
