"""What hooks register: their functions, on which modules, and on the torch optimizer inside of which wrapper."""

import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..utils.compat import remove_hook_functions

if TYPE_CHECKING:
    from .hook import ReinforceHook

__all__ = [
    "Functor",
    "detach",
    "enter",
    "follow_steps",
    "hooks_on",
    "leave",
    "leave_steps",
    "saves_itself",
    "stepping_optimizer",
    "was_hooked",
]

REASON = "policy_noise masks the input outside the graph: compile the model first, then attach to the compiled model"


class Functor:
    """A registered hook function. All work of the package in a training step runs inside such a call.

    Copies of a model (EMA, pickles) are not trained. A closure would be shared with the copy, and a bound method would
    clone the whole policy. The copy of a functor does nothing.

    Args:
        function: The function to call.
        on_copy: Called for each copy.
    """

    def __init__(self, function: Callable[..., Any], on_copy: Callable[[], None] | None = None) -> None:
        self.on_copy = on_copy
        # Inside a compiled module this causes a graph break. Importing Dynamo takes seconds. If it is not loaded,
        # nothing is compiled yet, and a module that is compiled later breaks its graph here anyway.
        self.function = _uncompiled(function) if "torch._dynamo" in sys.modules else function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., None]:
        if self.on_copy is not None:
            self.on_copy()
        return _inert

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _get_inert, ()


def _uncompiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # torch.compile(fullgraph=True) shows the reason, since torch 2.7.
    options = {"reason": REASON} if "reason" in inspect.signature(torch.compiler.disable).parameters else {}
    return torch.compiler.disable(function, **options)


def _inert(*args: Any, **kwargs: Any) -> None:
    """The copy of a hook function. It does nothing."""


def _get_inert() -> Callable[..., None]:
    return _inert


# -- who is hooked -----------------------------------------------------------------------------------------------------

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
    copied = target.modules() if isinstance(target, nn.Module) else ()
    return len(found) + sum(remove_hook_functions(module, _inert) for module in copied)


# -- optimizers inside of wrappers -------------------------------------------------------------------------------------

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


def saves_itself(optimizer: Any) -> bool:
    """Whether a wrapper inherits torch's own state_dict() (SAM). Most pass it on to the optimizer inside."""
    return isinstance(optimizer, torch.optim.Optimizer) and (
        type(optimizer).state_dict is torch.optim.Optimizer.state_dict
    )


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
