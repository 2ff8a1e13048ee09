"""Hook functions that do not follow their model into copies and pickles."""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["Functor"]

REASON = (
    "policy_noise masks the input outside the graph: compile the model first, then attach to what torch.compile gave"
)


class Functor:
    """A registered hook function. Everything that the package does in a training step runs in a call of one.

    Copies of a model (EMA, pickles) are not part of the training. A closure would be shared with the copy, and a bound
    method would clone the whole policy; a functor's copy does nothing.

    Args:
        function: What to call.
        on_copy: Told of each copy.
    """

    def __init__(self, function: Callable[..., Any], on_copy: Callable[[], None] | None = None) -> None:
        self.on_copy = on_copy
        # Around a module that is compiled from outside this is a graph break. Importing Dynamo takes seconds: where it
        # is not loaded nothing has been compiled yet, and what is compiled later breaks its graph here as well.
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
    # The reason is shown by torch.compile(fullgraph=True), since torch 2.7.
    told = {"reason": REASON} if "reason" in inspect.signature(torch.compiler.disable).parameters else {}
    return torch.compiler.disable(function, **told)


def _inert(*args: Any, **kwargs: Any) -> None:
    """What a copy of a hook function is."""


def _get_inert() -> Callable[..., None]:
    return _inert
