"""Which hooks are on what."""

import weakref
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .hook import ReinforceHook

__all__ = ["detach", "enter", "hooks_on", "leave", "was_hooked"]

_HOOKED: "weakref.WeakKeyDictionary[Any, weakref.WeakSet[ReinforceHook]]" = weakref.WeakKeyDictionary()


def enter(target: Any, hook: "ReinforceHook") -> None:
    """Note that a hook is on a module or an optimizer."""
    _HOOKED.setdefault(target, weakref.WeakSet()).add(hook)


def leave(target: Any, hook: "ReinforceHook") -> None:
    """Note that it is off again."""
    _HOOKED.get(target, set()).discard(hook)


def hooks_on(target: Any) -> list["ReinforceHook"]:
    """The hooks on a module or an optimizer."""
    return list(_HOOKED.get(target, ()))


def was_hooked(target: Any) -> bool:
    """Whether a module or an optimizer ever had a hook."""
    return target is not None and target in _HOOKED


def detach(target: Any) -> int:
    """Take off whatever hooks are on a model, a criterion or an optimizer.

    Args:
        target: A module or an optimizer.

    Returns:
        How many hooks were taken off.

    Example:
        >>> import torch
        >>> detach(torch.nn.Linear(2, 2))
        0
    """
    found = hooks_on(target)
    for hook in found:
        hook.remove()
    return len(found)
