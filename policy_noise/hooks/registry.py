"""Keep track of the hooks on each model, criterion and optimizer."""

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from .copies import forget_copied

if TYPE_CHECKING:
    from .hook import ReinforceHook

__all__ = ["detach", "enter", "follow_steps", "hooks_on", "leave", "leave_steps", "was_hooked"]

_HOOKED: "weakref.WeakKeyDictionary[Any, weakref.WeakSet[ReinforceHook]]" = weakref.WeakKeyDictionary()
_FOLLOWING: "set[weakref.WeakMethod[Callable[[torch.optim.Optimizer], None]]]" = set()
_REGISTERED: list[Any] = []


def follow_steps(method: Callable[[torch.optim.Optimizer], None]) -> None:
    """Call an object's method after each step of any optimizer in the process, as long as the object exists.

    One function is registered with torch for all hooks, and never removed. One function per hook would keep model and
    optimizer alive, or be removed by a garbage collection while torch iterates over the functions.
    """
    if not _REGISTERED:
        _REGISTERED.append(register_optimizer_step_post_hook(_after_any_step))
    _FOLLOWING.add(weakref.WeakMethod(method, _FOLLOWING.discard))


def leave_steps(method: Callable[[torch.optim.Optimizer], None]) -> None:
    """Undo :func:`follow_steps`."""
    _FOLLOWING.discard(weakref.WeakMethod(method))


def _after_any_step(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for reference in list(_FOLLOWING):
        method = reference()
        if method is not None:
            method(optimizer)


def enter(target: Any, hook: "ReinforceHook") -> None:
    """Note that a hook is on a module or an optimizer."""
    _HOOKED.setdefault(target, weakref.WeakSet()).add(hook)


def leave(target: Any, hook: "ReinforceHook") -> None:
    """Undo :func:`enter`."""
    _HOOKED.get(target, set()).discard(hook)


def hooks_on(target: Any) -> list["ReinforceHook"]:
    """The hooks on a module or an optimizer."""
    return list(_HOOKED.get(target, ()))


def was_hooked(target: Any) -> bool:
    """Whether a module or an optimizer ever had a hook."""
    return target is not None and target in _HOOKED


def detach(target: Any) -> int:
    """Remove all hooks from a model, a criterion or an optimizer.

    A copy of a hooked model (an EMA, a best model, a loaded pickle) has hooks that do nothing. They are removed, too,
    also inside of it. Then the copy can be scripted, exported and loaded without this package.

    Args:
        target: A module or an optimizer.

    Returns:
        The number of hooks that were removed.

    Example:
        >>> import torch
        >>> detach(torch.nn.Linear(2, 2))
        0
    """
    found = hooks_on(target)
    for hook in found:
        hook.remove()
    return len(found) + (forget_copied(target) if isinstance(target, torch.nn.Module) else 0)
