"""Hook functions that are left out when their model is copied or pickled."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..utils.compat import remove_hook_functions

__all__ = ["Functor", "forget_copied"]

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


def forget_copied(model: nn.Module) -> int:
    """Remove the inert functions from a copy of a hooked model, which then needs this package no longer.

    Returns:
        How many of its modules had some.
    """
    return sum(remove_hook_functions(module, _inert) for module in model.modules())


def _get_inert() -> Callable[..., None]:
    return _inert
