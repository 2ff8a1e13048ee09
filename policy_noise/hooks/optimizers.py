"""The loop's optimizer: find the torch optimizer inside a wrapper, and hook it."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from .registry import Functor

__all__ = ["OptimizerLink", "stepping_optimizer"]

WRAPPED_OPTIMIZER = (
    "optimizer",
    "_optimizer",
    "original_optimizer",
    "optim",
    "base_optimizer",
    "_base_optimizer",
    "base",
)
"""Attributes in which wrappers keep their optimizer: accelerate and DeepSpeed, Lightning, Opacus, PostLocalSGD, SAM,
timm's Lookahead, schedule-free."""


class OptimizerLink:
    """Functions on a loop's optimizer: after its steps, and where its state is saved and loaded.

    Args:
        optimizer: A torch optimizer or a wrapper of one.
        after_step: A post hook for the steps of the optimizer inside.
    """

    def __init__(self, optimizer: Any, after_step: Callable[..., None]) -> None:
        self.stepping = stepping_optimizer(optimizer)
        self.targets = [optimizer, self.stepping]
        self._handles: list[RemovableHandle] = [self.stepping.register_step_post_hook(Functor(after_step))]

    def keep(self, save: Callable[..., dict[str, Any]], load: Callable[..., dict[str, Any]]) -> None:
        """Call ``save`` for each state dict of the optimizer, and ``load`` before one is loaded."""
        outer = self.targets[0]
        # Most wrappers forward state_dict() to the inner optimizer. Some (SAM) inherit torch's own.
        inherits = isinstance(outer, torch.optim.Optimizer) and (
            type(outer).state_dict is torch.optim.Optimizer.state_dict
        )
        saved: torch.optim.Optimizer = outer if inherits else self.stepping
        self._handles += [
            saved.register_state_dict_post_hook(Functor(save)),
            saved.register_load_state_dict_pre_hook(Functor(load)),
        ]

    def remove(self) -> None:
        """Take all functions off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def stepping_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """Find the optimizer whose ``step()`` really runs.

    Inside a ``torch.optim.Optimizer``, only the attributes that known wrappers use are searched, because an ordinary
    optimizer may hold another one for its own purposes. In any other wrapper, all attributes are searched.

    Args:
        optimizer: A torch optimizer or a wrapper that holds exactly one.

    Returns:
        The innermost optimizer.

    Raises:
        TypeError: If a wrapper holds no torch optimizer, or several.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        return _innermost(optimizer)
    found = dict(_inside(optimizer, "", {id(optimizer)}))
    if not found:  # some proxies expose the optimizer as a property
        named = ((name, getattr(optimizer, name, None)) for name in WRAPPED_OPTIMIZER)
        found = {name: _innermost(value) for name, value in named if isinstance(value, torch.optim.Optimizer)}
    kind = type(optimizer).__name__
    if isinstance(optimizer, type):
        raise TypeError(
            f"optimizer must be an object, got the class: pass {optimizer.__name__}(model.parameters(), ...)"
        )
    if not found:
        raise TypeError(
            f"optimizer must be a torch.optim.Optimizer or a wrapper that holds one; got {kind}, which holds none. "
            "For loops without a torch optimizer call attach(model, None, criterion), and hook.step() after each of "
            "the loop's own steps."
        )
    if len({id(inner) for inner in found.values()}) > 1:
        raise TypeError(
            f"optimizer must hold exactly one torch optimizer; got {kind}, which holds several, in "
            f"{', '.join(found)}. Pass the one that steps the model's weights. If all step together (one for each "
            "layer), pass the last."
        )
    return next(iter(found.values()))


def _innermost(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Unwrap torch optimizers that are wrappers themselves."""
    for name in WRAPPED_OPTIMIZER:
        inner = getattr(optimizer, name, None)
        if isinstance(inner, torch.optim.Optimizer) and inner is not optimizer:
            return _innermost(inner)
    return optimizer


def _inside(holder: Any, path: str, seen: set[int]) -> Iterator[tuple[str, torch.optim.Optimizer]]:
    """Iterate over the optimizers that an object holds, each with its path of attributes."""
    items: Iterator[tuple[Any, Any]] | Any
    if isinstance(holder, dict):
        items = ((f"{path}[{key!r}]", value) for key, value in holder.items())
    elif isinstance(holder, list | tuple):
        items = ((f"{path}[{position}]", value) for position, value in enumerate(holder))
    else:
        start = f"{path}." if path else ""
        items = ((start + name, value) for name, value in getattr(holder, "__dict__", {}).items())
    for name, value in items:
        if isinstance(value, torch.optim.Optimizer):
            yield name, _innermost(value)
        elif id(value) not in seen and _may_hold(value):
            seen.add(id(value))
            yield from _inside(value, name, seen)


def _may_hold(value: Any) -> bool:
    """Whether to search a value: containers and objects with ``step()``, but not models or trainers."""
    if isinstance(value, torch.nn.Module | torch.Tensor | type):
        return False
    return isinstance(value, dict | list | tuple) or callable(getattr(value, "step", None))
