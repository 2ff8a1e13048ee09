"""Evaluate a criterion a second time without side effects: copy it, and restore the random generators."""

import copy
import random
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["RandomState", "Snapshot", "evaluator", "is_hookable", "is_stateless"]

STATELESS = ("torch.nn.modules.loss", "timm.loss.")
"""The criteria in these modules keep no state and draw no random numbers."""
LARGE = 2**22
"""Copies of tensors with at least this many elements are reused, until autograd's version counter shows a change."""
ATOMS = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Size)

_Copies = dict[int, tuple[Tensor, int, Tensor, int]]
"""By a tensor's id: the tensor, its version, its copy and the copy's version."""


def is_hookable(criterion: nn.Module) -> bool:
    """Whether a module's forward hooks run when it is called. timm's JsdCrossEntropy overrides ``__call__``."""
    return type(criterion).__call__ is nn.Module.__call__


def evaluator(criterion: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that computes a criterion's loss without running its forward hooks."""
    return criterion.forward if isinstance(criterion, nn.Module) and is_hookable(criterion) else criterion


def is_stateless(criterion: Any) -> bool:
    """Whether a call certainly changes nothing in a criterion: functions, and the losses of torch and timm."""
    if not isinstance(criterion, nn.Module):
        return hasattr(criterion, "__code__") or isinstance(criterion, types.BuiltinFunctionType)
    return all(type(module).__module__.startswith(STATELESS) for module in criterion.modules())


class RandomState:
    """The states of the global random generators: torch's on the CPU and on a device, numpy's and Python's."""

    def __init__(self, devices: set[torch.device]) -> None:
        self._python = random.getstate()
        self._cpu = torch.get_rng_state()
        self._devices = [
            (device, torch.get_device_module(device).get_rng_state(*_index(device)))
            for device in devices
            if device.type not in ("cpu", "meta")
        ]
        numpy = sys.modules.get("numpy")
        self._numpy = None if numpy is None else numpy.random.get_state()

    def restore(self) -> None:
        """Restore the states."""
        random.setstate(self._python)
        torch.set_rng_state(self._cpu)
        for device, state in self._devices:
            torch.get_device_module(device).set_rng_state(state, *_index(device))
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)


def _index(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # torch.mps takes no device argument


class Snapshot:
    """A copy of a criterion in its current state, which can be evaluated from this state any number of times.

    Parameters are shared and detached. Buffers and all other Python state are copied. If a large tensor has not changed
    since the previous snapshot, its copy is reused, so a memory bank that never changes is copied once. Objects that
    cannot be copied (locks, open files) are shared.

    Args:
        criterion: The criterion.
        devices: Devices of its inputs, whose random states are saved.
        since: The previous snapshot.
    """

    def __init__(self, criterion: Any, devices: set[torch.device], since: "Snapshot | None" = None) -> None:
        self._devices = devices
        self._random = RandomState(devices)
        self._copies: _Copies
        self._spare: _Copies = {} if since is None else since._spare
        known: _Copies = {} if since is None else since._copies
        self._criterion, self._copies = _copy(criterion, known)

    @contextmanager
    def evaluate(self, *, last: bool = False) -> Iterator[Any]:
        """Yield the criterion to evaluate, with the saved random states. ``last`` saves a copy, for the last use."""
        now = RandomState(self._devices)
        self._random.restore()
        try:
            if not last:
                criterion, self._spare = _copy(self._criterion, self._spare)
            yield self._criterion if last else criterion
        finally:
            now.restore()


def _copy(criterion: Any, known: _Copies) -> tuple[Any, _Copies]:
    memo: dict[int, Any] = {}
    copies: _Copies = {}
    for value in _parts(criterion):
        if isinstance(value, nn.Parameter):
            memo[id(value)] = nn.Parameter(value.detach(), requires_grad=False)
        elif isinstance(value, Tensor):
            old = known.get(id(value))
            if old is None or old[0] is not value or old[1] != value._version or old[2]._version != old[3]:
                clone = value.detach().clone()
                old = (value, value._version, clone, clone._version)
            memo[id(value)] = old[2]
            if value.numel() >= LARGE:
                copies[id(value)] = old
        elif isinstance(value, torch.Generator):
            memo[id(value)] = torch.Generator(value.device).set_state(value.get_state())
        else:
            memo[id(value)] = value
    return copy.deepcopy(criterion, memo), copies


def _parts(root: Any) -> Iterator[Any]:
    """Iterate over everything inside an object that deepcopy must not copy by itself.

    These are tensors, generators, a module's own hooks, and objects that cannot be copied.
    """
    seen: set[int] = set()
    if isinstance(root, nn.Module):
        # The criterion's hooks don't run on a copy, and what they hold (such as this package's hook) is not its state.
        hooks = [value for name, value in vars(root).items() if name.startswith("_") and "_hooks" in name]
        seen.update(id(value) for value in hooks)
        yield from (value for value in hooks if value)
    stack = [root]
    while stack:
        value = stack.pop()
        if isinstance(value, ATOMS) or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Tensor | torch.Generator):
            yield value
        elif hasattr(type(value), "__deepcopy__"):
            continue  # it has its own deepcopy
        elif isinstance(value, Mapping):
            stack += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set | frozenset) or type(value).__name__ == "deque":
            stack += value
        elif hasattr(value, "__code__"):
            continue  # a function; deepcopy shares it too
        elif getattr(value, "__self__", None) is not None and hasattr(value, "__func__"):
            stack.append(value.__self__)
        elif hasattr(value, "__dict__"):
            stack += vars(value).values()
        else:
            try:
                copy.deepcopy(value)
            except Exception:  # locks, files, process groups, running generators
                yield value
