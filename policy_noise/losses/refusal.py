"""Why a criterion's loss is not that of its samples: the likeliest causes, from what was seen."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.compat import forward_hooks
from .agreement import IGNORED
from .batch import Call, has_state, tree_flatten, tree_unflatten
from .isolation import is_stateless

__all__ = ["Seen", "batch_argument", "likely_causes"]

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
        held = [
            name
            for name, part in _children(criterion)
            if not is_stateless(part) and any(True for _ in part.parameters())
        ]
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


def _children(criterion: Any) -> list[tuple[str, nn.Module]]:
    return list(criterion.named_children()) if isinstance(criterion, nn.Module) else []


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
