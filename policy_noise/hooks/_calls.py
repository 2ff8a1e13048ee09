"""A call of the hooked model: whether it trains, which of its arguments are images, which calls it stands within.

A module may call itself, and a forward may fail.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from ._pairing import Pending

__all__ = ["Call", "InputName", "find_images", "is_training", "item_at", "replace"]

Path = tuple[Any, ...]
InputName = int | str | Sequence[int | str] | None


@dataclass
class Call:
    """One call of the hooked model.

    Args:
        masked: Its images, masked for it or for the call around it.
        unmasked: Its other inputs that look like images.
        pending: The batch that was masked for it, or for the call around it.
        reached: The batches of the calls within it.
        drawn: The batches that were masked for it and within it. They are dropped if it fails.
        is_part: Whether its images were made from masked ones, so that only the call around it knows their rows.
        is_list: Whether its images came as a list.
    """

    masked: Sequence[Tensor] = ()
    unmasked: Sequence[Tensor] = ()
    pending: Pending | None = None
    reached: list[Pending] = field(default_factory=list)
    drawn: list[Pending] = field(default_factory=list)
    is_part: bool = False
    is_list: bool = False

    @property
    def pendings(self) -> list[Pending]:
        """The masked batches that its output comes from."""
        return list(dict.fromkeys([*([] if self.pending is None else [self.pending]), *self.reached]))

    def masks(self, images: Sequence[Tensor]) -> bool:
        """Whether the images of a call within this one are masked already.

        All that is computed within a call comes from its masked images, except for its other inputs.
        """
        others = {_storage(tensor) for tensor in self.unmasked}
        return bool(self.masked) and not any(_storage(image) in others for image in images)

    def within(self, images: Sequence[Tensor]) -> "Call":
        """A call within this one, with images that are masked already: the very same ones, or some made from them."""
        same = bool(images) and all(any(image is masked for masked in self.masked) for image in images)
        return Call(images or self.masked, pending=self.pending if same else None, is_part=not same)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def find_images(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], name: InputName, axes: int, *, required: bool = True
) -> tuple[list[Path], list[Path]]:
    """Find the images in (args, kwargs).

    Args:
        args: The call's positional arguments.
        kwargs: Its keyword arguments.
        name: A position, a keyword's name or a key in a mapping, or several of them. None takes the first
            floating-point tensor with this number of axes, or else the first list of such tensors with one axis less.
        axes: Axes of a batch of images.
        required: Whether there must be images. Else the answer may be empty.

    Returns:
        The paths of keys that lead to them, and those of the other tensors with as many axes and channels.

    Raises:
        TypeError: If there are none.
    """
    named: list[tuple[Path, Any]] = []
    for path, value in [*(((0, i), v) for i, v in enumerate(args)), *(((1, k), v) for k, v in kwargs.items())]:
        named.append((path, value))
        if isinstance(value, Mapping):
            named += [((*path, key), item) for key, item in value.items()]
    batches = [path for path, value in named if _are_images(value, axes)]
    if name is None:
        chosen = (batches or [path for path, value in named if _is_list_of_images(value, axes)])[:1]
    else:
        found = [_named(each, named) for each in ([name] if isinstance(name, int | str) else name)]
        chosen = [path for path in found if path is not None]
        if required and None in found:
            raise TypeError(
                f"input_name is {name!r}, but the model was called with {len(args)} positional arguments "
                f"and the names {sorted(str(path[-1]) for path, _ in named if not isinstance(path[-1], int))}"
            )
    if required and not chosen:
        if any(path[-1] == "patches" for path, _ in named):
            raise TypeError(
                "the model was called with patches, which no longer form an image: mask images before they are cut, "
                "with policy_noise.RandomShading as one of the data set's transforms"
            )
        got = [f"{tuple(v.shape)} {v.dtype}" if isinstance(v, Tensor) else type(v).__name__ for _, v in named]
        raise TypeError(
            f"the model was called without images: no floating-point tensor of {axes} axes among {got}; normalize "
            "images before the model, or name the input that holds them with input_name"
        )
    values = dict(named)
    channels = [values[path].shape[1] for path in chosen if _are_images(values[path], axes)][:1]
    return chosen, [path for path in batches if path not in chosen and [values[path].shape[1]] == channels]


def _named(name: int | str, named: list[tuple[Path, Any]]) -> Path | None:
    for path, _ in named:
        if path[-1] == name and (len(path) > 2 or isinstance(name, int) == (not path[0])):
            return path
    return None


def _are_images(value: Any, axes: int) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim == axes


def _is_list_of_images(value: Any, axes: int) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(_are_images(item, axes - 1) for item in value)


def item_at(container: Any, path: Path) -> Any:
    """The item at a path in nested tuples and mappings."""
    for key in path:
        container = container[key]
    return container


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


def is_training(model: nn.Module) -> bool:
    """Whether a model is in training mode, and so is at least one of its layers that are trained.

    A wrapper stays in training mode when ``wrapper.inner.eval()`` puts everything that it calls into eval mode. A
    frozen backbone in eval mode, beside a head that is trained, is no reason not to train. The model's own parameters
    (a token, a temperature) decide only if no layer has any.
    """
    if not model.training:
        return False
    for trained in (True, False):  # layers that are trained decide, else any with parameters
        sleeping = False
        for layer in model.modules():
            if layer is not model and _has_parameters(layer, trained=trained):
                if layer.training:
                    return True
                sleeping = True
        if sleeping or _has_parameters(model, trained=trained):
            return not sleeping
    return True


def _has_parameters(module: nn.Module, *, trained: bool) -> bool:
    return any(parameter.requires_grad or not trained for parameter in module.parameters(recurse=False))
