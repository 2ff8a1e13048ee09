"""A call of the criterion: which of its tensors are batches, and how to repeat it with other rows."""

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..utils.compat import TreeSpec, is_transformed, tree_flatten, tree_unflatten, version_of

__all__ = [
    "Call",
    "Structures",
    "devices_of",
    "has_state",
    "loss_of",
    "plain_tensor",
    "shapes_of",
    "tree_flatten",
    "tree_unflatten",
    "with_loss",
]

ATOMS = (type(None), bool, int, float, complex, str, bytes, type, torch.dtype, torch.device, torch.Size)
HALF = (torch.float16, torch.bfloat16)
LOSS_NAMES = ("loss", "total_loss")
"""Keys and attributes under which a criterion may return its loss."""


def plain_tensor(value: Tensor) -> Tensor:
    """Return the tensor as a plain ``torch.Tensor``, not a subclass."""
    return value if type(value) is Tensor else value.as_subclass(Tensor)


def _prepare(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = plain_tensor(value.detach())  # vmap cannot batch the metadata of MONAI's MetaTensor
    return value.float() if value.dtype in HALF else value


def has_state(value: Any) -> bool:
    """Whether an argument of a criterion may be changed by it: a model, a meter, an array."""
    return not isinstance(value, (Tensor, *ATOMS, types.FunctionType, types.BuiltinFunctionType))


def devices_of(leaves: Sequence[Any]) -> set[torch.device]:
    """The devices of a call's tensors."""
    return {leaf.device for leaf in leaves if isinstance(leaf, Tensor)}


def loss_of(returned: Any) -> Tensor | None:
    """Get the loss from what a criterion returned.

    That is a tensor, the first item of a tuple such as (loss, logs), or ``loss`` or ``total_loss`` of a mapping or an
    object. None if there is none, or if a tuple begins with several losses.
    """
    if isinstance(returned, Tensor):
        return returned
    if isinstance(returned, Mapping) or hasattr(returned, "keys"):
        found = [returned[name] for name in LOSS_NAMES if name in returned.keys()]  # noqa: SIM118
    else:
        found = [getattr(returned, name) for name in LOSS_NAMES if hasattr(returned, name)]
        if not found and isinstance(returned, tuple | list) and returned:
            others = [item for item in returned[1:] if isinstance(item, Tensor) and item.requires_grad]
            found = [] if any(item.numel() == 1 for item in others) else [returned[0]]
    return found[0] if found and isinstance(found[0], Tensor) else None


def with_loss(returned: Any, loss: Tensor) -> Any:
    """Put another loss in the place where :func:`loss_of` finds it. Mappings and objects are changed in place."""
    if isinstance(returned, Tensor):
        return loss
    if hasattr(returned, "keys"):
        returned[next(name for name in LOSS_NAMES if name in returned.keys())] = loss  # noqa: SIM118
        return returned
    name = next((name for name in LOSS_NAMES if hasattr(returned, name)), None)
    if hasattr(returned, "_replace"):  # a named tuple
        return returned._replace(**{name or returned._fields[0]: loss})
    if name is None:
        return type(returned)([loss, *returned[1:]])
    setattr(returned, name, loss)
    return returned


@dataclass(frozen=True)
class Call:
    """A criterion's arguments, detached and in fp32.

    Args:
        leaves: Everything in ``(args, kwargs)``, flattened.
        spec: How the leaves were nested.
        batched: Positions of the leaves whose first axis is the batch.
        size: Number of samples.
        structure: A key that is equal for calls whose leaves have the same meaning.
        anchor: Position of the leaf that gave the number of samples.
        half: Whether any leaf was in half precision.
        copied: Positions of the leaves of which each evaluation gets a copy.
        written: Positions of the copies that an evaluation has written to.
    """

    leaves: tuple[Any, ...]
    spec: TreeSpec
    batched: tuple[int, ...]
    size: int
    structure: Any
    anchor: int
    half: bool
    copied: frozenset[int] = frozenset()
    written: set[int] = field(default_factory=set)

    @property
    def shapes(self) -> tuple[Any, ...]:
        """The leaves' shapes, or their types if they are not tensors."""
        return shapes_of(self.leaves)

    @property
    def tensors(self) -> list[Tensor]:
        """The leaves whose first axis is the batch."""
        return [self.leaves[i] for i in self.batched]

    def with_objects(self, objects: Sequence[Any]) -> "Call":
        """The same call with other objects in place of those that the criterion may change."""
        given = iter(objects)
        return replace(self, leaves=tuple(next(given) if has_state(leaf) else leaf for leaf in self.leaves))

    def on(self, function: Callable[..., Any], tensors: Sequence[Tensor] | None = None) -> Any:
        """Call a function with these arguments. ``tensors``, if given, replace the batched leaves."""
        leaves = list(self.leaves)
        for i, tensor in zip(self.batched, self.tensors if tensors is None else tensors, strict=True):
            leaves[i] = tensor
        copies = {i: leaves[i].clone() for i in self.copied}
        versions = {i: version_of(copy) for i, copy in copies.items()}
        args, kwargs = tree_unflatten([copies.get(i, leaf) for i, leaf in enumerate(leaves)], self.spec)
        returned = function(*args, **kwargs)
        if not is_transformed():
            self.written.update(i for i, copy in copies.items() if version_of(copy) != versions[i])
        return returned


def shapes_of(leaves: Sequence[Any]) -> tuple[Any, ...]:
    """The shapes of tensors, the types of all else."""
    return tuple(leaf.shape if isinstance(leaf, Tensor) else type(leaf) for leaf in leaves)


class Structures:
    """Remember which leaves are batches, for each structure of a call.

    The first tensor with a gradient is taken as the model's output. Its length is the batch size. A leaf is a batch if
    it had that length in every call so far. So class weights that happen to be as long as a short last batch are not.
    """

    def __init__(self) -> None:
        self._batched: dict[Any, tuple[int, ...]] = {}

    def candidates(self, leaves: Sequence[Any], spec: TreeSpec, values: Mapping[int, Tensor]) -> list[Call]:
        """Interpret a call. There are several results, the likeliest first, as long as a length may be a coincidence.

        Args:
            leaves: The call's arguments, flattened.
            spec: How they were nested.
            values: The values of some leaves before the call, by position.

        Raises:
            ValueError: If there is no tensor with a batch axis.
        """
        tensors = {i: leaf for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.ndim > 0}
        if not tensors:
            raise ValueError("was called without a tensor that holds a batch")
        anchor = next((i for i, leaf in tensors.items() if leaf.requires_grad), None)
        if anchor is None:
            anchor = next((i for i, leaf in tensors.items() if leaf.is_floating_point()), next(iter(tensors)))
        size = len(tensors[anchor])
        key = (anchor, *((leaf.ndim, leaf.dtype) if i in tensors else None for i, leaf in enumerate(leaves)))
        known = self._batched.get(key)
        batched = tuple(i for i in (tensors if known is None else known) if len(tensors[i]) == size)
        if known != batched:
            self._batched[key] = batched
        prepared = tuple(_prepare(values.get(i, leaf)) for i, leaf in enumerate(leaves))
        half = any(leaf.dtype in HALF for leaf in tensors.values())
        # A vector as long as the batch may be one weight for each class.
        readings = [batched] + [
            tuple(k for k in batched if k != i)
            for i in batched
            if i != anchor and tensors[i].ndim == 1 and len(batched) > 2
        ]
        return [Call(prepared, spec, reading, size, key, anchor, half) for reading in readings]

    def settle(self, call: Call) -> None:
        """Keep the interpretation for which the losses agreed."""
        self._batched[call.structure] = call.batched
