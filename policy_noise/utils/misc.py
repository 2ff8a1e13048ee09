"""Checks of arguments, nested containers, optional libraries, and whether several processes train together."""

import dataclasses
import math
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any, TypeGuard

import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["check_one_of", "extra", "is_distributed", "is_number", "keyed_leaves", "leaves_of", "tensors_in"]


def check_one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Check that a value is one of the allowed names.

    Raises:
        ValueError: If it is not. The message gives the argument's name, the allowed names and the value.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {tuple(allowed)}, got {value!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite real number."""
    return isinstance(value, Real) and math.isfinite(value)


@contextmanager
def extra(module: str, library: str, name: str) -> Iterator[None]:
    """Say what to install if the imports of an optional library fail inside this block.

    Args:
        module: The module that needs it.
        library: The library.
        name: The extra in ``setup.cfg`` that installs it.
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{module} needs {library}: pip install 'policy_noise[{name}]'") from error


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


DEPTH = 2
"""How deep objects within objects are searched for tensors. A trainer or a loader must not be searched as a whole."""
OTHER = (nn.Module, type, types.FunctionType, types.MethodType, types.ModuleType)


def leaves_of(value: Any) -> Iterator[Any]:
    """Iterate over the leaves of nested mappings, lists and tuples, in order."""
    return (leaf for _, leaf in keyed_leaves(value))


def keyed_leaves(value: Any, key: Any = None) -> Iterator[tuple[Any, Any]]:
    """:func:`leaves_of`, each with the innermost mapping's key that it stands under, or None."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from keyed_leaves(item, name)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from keyed_leaves(item, key)
    else:
        yield key, value


def tensors_in(value: Any, depth: int = DEPTH) -> Iterator[Tensor]:
    """Iterate over the tensors in nested mappings, lists, tuples, dataclasses and plain objects.

    Modules, classes and functions are not searched: what they hold is no output.
    """
    for leaf in leaves_of(value):
        if isinstance(leaf, Tensor):
            yield leaf
        elif depth and not isinstance(leaf, OTHER):
            yield from tensors_in(_attributes(leaf), depth - 1)


def _attributes(value: Any) -> list[Any]:
    if dataclasses.is_dataclass(value):  # with slots it has no dictionary
        return [getattr(value, field.name, None) for field in dataclasses.fields(value)]
    return list(getattr(value, "__dict__", {}).values())
