"""Evaluate a criterion a second time without side effects: copy it, and restore the random generators."""

import copy
import functools
import random
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..utils.compat import version_of
from ._batch import has_state

__all__ = [
    "Isolation",
    "Snapshot",
    "evaluator",
    "is_hookable",
    "is_stateless",
    "outside",
    "random_states",
    "restore",
]

STATELESS = ("torch.nn.modules.loss", "torch.nn.functional", "timm.loss.")
"""The criteria in these modules keep no state, draw no random numbers and write to none of their arguments."""
LOCKS = ("lock", "RLock")


def is_hookable(criterion: nn.Module) -> bool:
    """Whether a module's forward hooks run when it is called. timm's JsdCrossEntropy overrides ``__call__``."""
    return type(criterion).__call__ is nn.Module.__call__


def evaluator(criterion: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that computes a criterion's loss without running its forward hooks."""
    return criterion.forward if isinstance(criterion, nn.Module) and is_hookable(criterion) else criterion


def is_stateless(criterion: Any) -> bool:
    """Whether a call certainly changes nothing: the losses of torch and timm."""
    if isinstance(criterion, nn.Module):
        return all(type(module).__module__.startswith(STATELESS) for module in criterion.modules())
    return isinstance(criterion, types.BuiltinFunctionType) or _is_of(criterion, STATELESS)


class Isolation:
    """Copies criteria, and remembers what of them cannot be copied.

    Parameters are shared and detached. Everything else is copied by :func:`copy.deepcopy`, except attributes that it
    cannot copy (locks, open files, a trainer with its loaders): the copy shares these.
    """

    def __init__(self) -> None:
        self._shared: dict[int, Any] = {}
        self.shared: dict[str, str] = {}
        """Types of the attributes that are shared, by name. Locks are left out."""
        self.elements = 0
        """Elements of the tensors that the last copy took."""

    def copy(self, objects: Sequence[Any]) -> list[Any]:
        """Copy objects together, so that what they share is shared by the copies.

        Raises:
            TypeError: If something in them cannot be copied.
        """
        modules = [value for value in objects if isinstance(value, nn.Module)]
        memo: dict[int, Any] = dict(self._shared)
        for module in modules:
            memo |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
        if modules and modules[0] is objects[0]:
            # The criterion's own hooks don't run on a copy, and what they hold (such as this package's) is not its.
            memo |= {id(v): type(v)() for name, v in vars(modules[0]).items() if "_hooks" in name and v is not None}
        copier = _Copier()
        try:
            with copier:
                copies = copy.deepcopy(list(objects), memo)
        except Exception:
            known = len(self._shared)
            self._find_shared(objects)
            if len(self._shared) == known:
                raise
            return self.copy(objects)
        self.elements = copier.elements
        return copies

    def _find_shared(self, objects: Sequence[Any]) -> None:
        for value in objects:
            for part in value.modules() if isinstance(value, nn.Module) else [value]:
                for name, attribute in getattr(part, "__dict__", {}).items():
                    if name == "_modules" or "_hooks" in name:
                        continue
                    try:
                        with _Copier():
                            copy.deepcopy(attribute)
                    except Exception:
                        self._shared[id(attribute)] = attribute
                        if type(attribute).__name__ not in LOCKS:
                            self.shared[name] = type(attribute).__name__


class _Copier(TorchFunctionMode):
    """Let deepcopy copy tensors that hang in a graph: without the graph. And measure what it copies."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not Tensor.__deepcopy__:
            return function(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            memo[id(tensor)] = tensor.detach().clone()
            self.elements += tensor.numel()
        return memo[id(tensor)]


class Snapshot:
    """A copy of a criterion and of the objects it is called with, which can be evaluated any number of times.

    Args:
        isolation: What copies them.
        criterion: The criterion.
        objects: Arguments that it may change.
        devices: Devices of its inputs, whose random states are saved.
    """

    def __init__(
        self, isolation: Isolation, criterion: Any, objects: Sequence[Any], devices: set[torch.device]
    ) -> None:
        self._isolation = isolation
        self._devices = devices
        self._random = random_states(devices)
        self._objects = isolation.copy([criterion, *objects])

    @contextmanager
    def evaluate(self, *, last: bool = False) -> Iterator[list[Any]]:
        """Yield criterion and objects to evaluate, with the saved random states. ``last`` saves a copy."""
        now = random_states(self._devices)
        restore(self._random)
        try:
            yield self._objects if last else self._isolation.copy(self._objects)
        finally:
            restore(now)


_States = list[tuple[Callable[..., Any], tuple[Any, ...]]]


def random_states(devices: set[torch.device]) -> _States:
    """The states of the global random generators, each with the function that restores it."""
    states: _States = [(random.setstate, (random.getstate(),)), (torch.set_rng_state, (torch.get_rng_state(),))]
    if "numpy" in sys.modules:
        numpy = sys.modules["numpy"]
        states.append((numpy.random.set_state, (numpy.random.get_state(),)))
    for device in devices:
        if device.type not in ("cpu", "meta"):
            module = torch.get_device_module(device)
            place = () if device.type == "mps" else (device,)  # torch.mps takes no device argument
            states.append((module.set_rng_state, (module.get_rng_state(*place), *place)))
    return states


def restore(states: _States) -> None:
    for function, state in states:
        function(*state)


# -- state that no copy holds ------------------------------------------------------------------------------------------


def outside(criterion: Any) -> dict[str, Any]:
    """Fingerprints of what a criterion's code can change outside of it, by name.

    These are attributes of its classes, and what its functions and those of the same file that they call name in
    closures and globals. Two fingerprints differ if a call has changed the value, or put another in its place.
    """
    values: dict[str, Any] = {}
    functions: list[Any] = []
    while isinstance(criterion, functools.partial):
        criterion = criterion.func
    for part in criterion.modules() if isinstance(criterion, nn.Module) else [criterion]:
        if isinstance(part, types.FunctionType):
            functions.append(part)
            continue
        functions += [
            value for value in getattr(part, "__dict__", {}).values() if isinstance(value, types.FunctionType)
        ]
        for kind in type(part).__mro__[:-1]:
            if not kind.__module__.startswith(("torch.", "timm.")):
                functions += [value for value in vars(kind).values() if isinstance(value, types.FunctionType)]
                values |= {f"{kind.__name__}.{k}": v for k, v in vars(kind).items() if not k.startswith("__")}
    seen: set[int] = set()
    while functions:
        function = functions.pop()
        if id(function) in seen:
            continue
        seen.add(id(function))
        names = {
            name: function.__globals__[name] for name in function.__code__.co_names if name in function.__globals__
        }
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                names[name] = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
        functions += [v for v in names.values() if _is_of(v, (function.__module__,)) and hasattr(v, "__code__")]
        values |= names
    return {name: _fingerprint(value) for name, value in values.items() if not callable(value) or has_state(value)}


def _is_of(function: Any, modules: tuple[str, ...]) -> bool:
    return isinstance(function, types.FunctionType) and function.__module__.startswith(modules)


def _fingerprint(value: Any, depth: int = 2) -> Any:
    if isinstance(value, Tensor):
        return id(value), version_of(value)
    if isinstance(value, int | float | str):
        return value
    if isinstance(value, nn.Module):
        return id(value), [version_of(t) for t in value.state_dict(keep_vars=True).values() if isinstance(t, Tensor)]
    if depth and isinstance(value, dict):
        return id(value), {key: _fingerprint(item, depth - 1) for key, item in list(value.items())[-100:]}, len(value)
    if depth and (isinstance(value, list | tuple | set) or type(value).__name__ == "deque"):
        return id(value), [_fingerprint(item, depth - 1) for item in list(value)[-100:]], len(value)
    if depth and hasattr(value, "__dict__") and not isinstance(value, type | types.ModuleType):
        return id(value), {key: _fingerprint(item, depth - 1) for key, item in vars(value).items()}
    return id(value)
