"""Check per-sample losses against the loss that the criterion returned: which samples count, and why they differ."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.compat import forward_hooks
from ._batch import Call, has_state, tree_flatten, tree_unflatten
from ._isolation import is_stateless
from ._ways import Parts

__all__ = [
    "Late",
    "Seen",
    "Verdict",
    "agree",
    "agree_weighted",
    "batch_argument",
    "close",
    "likely_causes",
    "pools",
    "supervised",
]

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


# -- why they differ ---------------------------------------------------------------------------------------------------

WEIGHTS = ("weight", "weights", "class_weights", "alpha", "pos_weight")


@dataclass
class Seen:
    """What was seen of a criterion while it was evaluated again.

    Args:
        reproduced: Whether the same call gave the same loss again.
        drew: Whether it drew random numbers.
        outside: Names of what it changed outside of itself.
        between: Whether the batch's loss may lie among the losses of single samples.
    """

    reproduced: bool = True
    drew: bool = False
    outside: list[str] = field(default_factory=list)
    between: bool = True


def _arguments(call: Call) -> list[tuple[str, Any]]:
    """The arguments, each with what to call it."""
    args, kwargs = tree_unflatten(list(call.leaves), call.spec)
    return [*((f"argument {i}", value) for i, value in enumerate(args)), *((f"{k}=", v) for k, v in kwargs.items())]


def _argument_name(call: Call, place: int) -> str:
    """The name of the argument that holds a leaf."""
    for name, value in _arguments(call):
        place -= len(tree_flatten(value)[0])
        if place < 0:
            return name
    raise IndexError(place)


def batch_argument(call: Call) -> str:
    """Describe the argument that was taken for the batch."""
    return (
        f"{_argument_name(call, call.anchor)}, shape {tuple(call.leaves[call.anchor].shape)}, was taken for the batch"
    )


def likely_causes(criterion: Any, call: Call, seen: Seen) -> list[str]:
    """The two likeliest causes, the first one first."""
    causes = []
    models = [i for i, leaf in enumerate(call.leaves) if isinstance(leaf, nn.Module)]
    if models:
        causes.append(f"it runs a model that it is given ({_argument_name(call, models[0])})")
    else:
        children = criterion.named_children() if isinstance(criterion, nn.Module) else ()
        held = [name for name, part in children if not is_stateless(part) and any(True for _ in part.parameters())]
        if held:
            causes.append(f"a model runs inside it ({held[0]})")
    if call.written:
        causes.append(f"it writes to {_argument_name(call, min(call.written))} in place")
    if not seen.reproduced and _has_hooks(criterion):
        causes.append("its own forward hooks change the loss")
    if seen.outside:
        causes.append(f"it changes {' and '.join(seen.outside[:2])} outside of itself")
    elif not seen.reproduced:
        causes.append("its value depends on something outside of it, since the same call gives another loss")
    if seen.drew:
        causes.append("it draws random numbers")
    constants = _lists(call)
    if constants:
        causes.append(f"{constants[0]} has one entry per image, but is no tensor and was taken for a constant")
    if seen.between:
        # A mean over samples with other weights than 1 lies among the losses of single samples.
        if _has_weights(criterion):
            causes.append("it divides by the sum of class weights over the batch")
        if _ignores(criterion, call):
            causes.append("it divides by the number of labels that are not ignored in the batch")
        causes.append("it divides by a count over the batch (positives, valid pixels)")
    causes.append("it couples the samples (contrastive losses, batch statistics)")
    return causes[:2]


def _has_hooks(criterion: Any) -> bool:
    if not isinstance(criterion, nn.Module):
        return False
    own = [hook for hook in forward_hooks(criterion) if not type(hook).__module__.startswith("policy_noise")]
    return bool(own) or any(forward_hooks(part) for part in criterion.modules() if part is not criterion)


def _has_weights(criterion: Any) -> bool:
    buffers = criterion.named_buffers(recurse=False) if isinstance(criterion, nn.Module) else ()
    values = {**getattr(criterion, "__dict__", {}), **dict(buffers)}
    return any(values.get(name) is not None for name in WEIGHTS) or any(
        isinstance(value, Tensor) and value.ndim == 1 and len(value) > 1 for value in values.values()
    )


def _ignores(criterion: Any, call: Call) -> bool:
    labels = [leaf for leaf in call.tensors if not leaf.is_floating_point() and leaf.dtype != torch.bool]
    return hasattr(criterion, "ignore_index") or any(bool((leaf == IGNORED).any()) for leaf in labels)


def _lists(call: Call) -> list[str]:
    """Arguments with one entry for each sample that are no tensors."""
    return [
        f"{name} ({type(value).__name__})"
        for name, value in _arguments(call)
        if not isinstance(value, Tensor | nn.Module | dict | str)
        and (isinstance(value, list | tuple) or has_state(value))
        and hasattr(value, "__len__")
        and len(value) == call.size > 1
        and not any(isinstance(leaf, Tensor) for leaf in tree_flatten(value)[0])
    ]
