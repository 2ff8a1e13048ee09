"""Keep track of the hooks on each model, criterion and optimizer."""

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

if TYPE_CHECKING:
    from .hook import ReinforceHook

__all__ = ["detach", "enter", "follow_steps", "hooks_on", "leave", "leave_steps", "was_hooked"]

_HOOKED: "weakref.WeakKeyDictionary[Any, weakref.WeakSet[ReinforceHook]]" = weakref.WeakKeyDictionary()


_FOLLOWING: "weakref.WeakSet[ReinforceHook]" = weakref.WeakSet()
_REGISTERED: list[Any] = []


def follow_steps(hook: "ReinforceHook") -> None:
    """Notify a hook of the steps of all optimizers in the process.

    One function is registered with torch for all hooks, and never removed. One function per hook would keep model and
    optimizer alive, or be removed by a garbage collection while torch iterates over the functions.
    """
    if not _REGISTERED:
        _REGISTERED.append(register_optimizer_step_post_hook(_after_any_step))
    _FOLLOWING.add(hook)


def leave_steps(hook: "ReinforceHook") -> None:
    """Undo :func:`follow_steps`."""
    _FOLLOWING.discard(hook)


def _after_any_step(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for hook in list(_FOLLOWING):
        hook.after_foreign_step(optimizer)


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
    return len(found)
