"""Find the images among the arguments of a model's call."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["find_images", "replace"]

Path = tuple[Any, ...]


def find_images(args: tuple[Any, ...], kwargs: Mapping[str, Any], name: int | str | None, axes: int) -> Path:
    """Find the images in (args, kwargs).

    Args:
        args: The call's positional arguments.
        kwargs: Its keyword arguments.
        name: A position, a keyword's name or a key in a mapping. None takes the first floating-point tensor with this
            number of axes.
        axes: Axes of a batch of images.

    Returns:
        The path of keys that leads to them.

    Raises:
        TypeError: If there are none.
    """
    named: list[tuple[Path, Any]] = []
    for path, value in [*(((0, i), v) for i, v in enumerate(args)), *(((1, k), v) for k, v in kwargs.items())]:
        named.append((path, value))
        if isinstance(value, Mapping):
            named += [((*path, key), item) for key, item in value.items()]
    if name is not None:
        for path, _ in named:
            if path[-1] == name and (len(path) > 2 or isinstance(name, int) == (not path[0])):
                return path
        raise TypeError(
            f"input_name is {name!r}, but the model was called with {len(args)} positional arguments "
            f"and the names {sorted(str(path[-1]) for path, _ in named if not isinstance(path[-1], int))}"
        )
    for path, value in named:
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == axes:
            return path
    if any(path[-1] == "patches" for path, _ in named):
        raise TypeError(
            "the model was called with patches, which no longer form an image: mask images before they are cut, with "
            "policy_noise.RandomShading as one of the data set's transforms"
        )
    got = [f"{tuple(v.shape)} {v.dtype}" if isinstance(v, Tensor) else type(v).__name__ for _, v in named]
    raise TypeError(
        f"the model was called without images: no floating-point tensor of {axes} axes among {got}; normalize "
        "images before the model, or name the input that holds them with input_name"
    )


def replace(container: Any, path: Path, function: Callable[[Any], Any]) -> Any:
    """Copy nested tuples and mappings, with a function applied to the item at a path."""
    if not path:
        return function(container)
    item = replace(container[path[0]], path[1:], function)
    if isinstance(container, Mapping):
        container = copy.copy(container)
        container[path[0]] = item  # type: ignore[index]
        return container
    return (*container[: path[0]], item, *container[path[0] + 1 :])
