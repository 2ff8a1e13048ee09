"""Check per-sample losses against the loss that the criterion returned, and find out which samples count."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .batch import Call
from .ways import Parts

__all__ = ["Late", "Verdict", "agree", "agree_weighted", "close", "pools", "supervised"]

POOLING = ("DiceLoss", "JaccardLoss", "TverskyLoss", "LovaszLoss", "MCCLoss")
"""Losses of segmentation_models_pytorch that sum over the batch before they divide."""
IGNORED = -100
"""The label that torch and Hugging Face ignore by default."""
TOLERANCE = 1e-3
"""Relative tolerance of a comparison in single precision. A GPU's matrix products may be TF32."""
HALF_TOLERANCE = 3e-2
"""Relative tolerance between a loss in half precision and the same loss in single precision."""


@dataclass(frozen=True)
class Verdict:
    """The result of a comparison.

    Args:
        agrees: Whether the samples' losses give the batch's.
        sure: False if this batch proves nothing: a single sample, losses that are all 0, or a loss that is not finite.
        only_finite: True if samples whose own loss is not finite did not count.
        mean: Mean of the losses that count.
        loss: The batch's loss.
    """

    agrees: bool
    sure: bool
    only_finite: bool
    mean: float
    loss: float


class Late:
    """A verdict on its way from the device. Reading it before it has arrived gives None, and waits for nothing."""

    def __init__(self, verdict: Tensor) -> None:
        self._values = verdict.to("cpu", non_blocking=verdict.is_cuda)  # other devices have no event to wait for
        self._event = torch.cuda.Event() if verdict.is_cuda else None
        if self._event is not None:
            self._event.record()

    def read(self, *, wait: bool = False) -> Verdict | None:
        """Return the verdict if it has arrived. With ``wait``, wait for it."""
        if self._event is not None and not self._event.query():
            if not wait:
                return None
            self._event.synchronize()
        agrees, sure, only_finite, mean, loss = self._values.tolist()
        return Verdict(bool(agrees), bool(sure), bool(only_finite), mean, loss)


def agree(parts: Parts, valid: Tensor | None, loss: Tensor) -> Tensor:
    """Compare a loss with the mean, the sum and the weighted mean of the samples that count, on their device.

    Shape:
        - valid: (N,), bool.
        - loss: one number.
        - Output: (5,), for :class:`Late`.
    """
    exact = torch.float32 if loss.device.type == "mps" else torch.float64
    values, total = parts.values.detach().to(exact), loss.detach().to(exact).reshape(())
    finite = values.isfinite()
    counted = finite if valid is None else finite & valid
    left_out = ~finite if valid is None else valid & ~finite
    kept, number = torch.where(counted, values, 0), counted.sum()
    sums = kept.sum()
    means = [sums / number, sums, sums / len(values)]
    if parts.weights is not None:
        weights = torch.where(counted, parts.weights.to(exact), 0)
        means.append((kept * weights).sum() / weights.sum())
    scale = torch.maximum(total.abs(), kept.abs().sum() / number.clamp(min=1))
    agrees = ((torch.stack(means) - total).abs() <= TOLERANCE * scale + 1e-7).any()
    agrees = torch.where(number > 0, agrees, total == 0) | ~total.isfinite()
    sure = total.isfinite() & kept.any() & (len(values) > 1)
    return torch.stack([agrees.to(exact), sure.to(exact), left_out.any().to(exact), means[0], total])


def close(loss: Tensor, again: Tensor) -> bool:
    """Whether a loss in half precision is what the same call gives in single precision."""
    first, second = float(loss), float(again)
    if not math.isfinite(first) or not math.isfinite(second):
        return True
    return abs(first - second) <= HALF_TOLERANCE * max(abs(first), abs(second)) + 1e-2


def agree_weighted(unreduced: Parts, alone: Parts, loss: Tensor) -> bool:
    """Whether a loss is the weighted mean of unreduced losses that already include their weights.

    The loss of a single sample does not include its weight, because class weights cancel out. So the ratio of the two
    is the weight.
    """
    weights = torch.nan_to_num(unreduced.values.double() / alone.values.double(), 0, 0, 0)
    total, mean = float(loss), float(unreduced.values.double().sum() / weights.sum())
    return len(weights) > 1 and abs(mean - total) <= TOLERANCE * abs(total)


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
