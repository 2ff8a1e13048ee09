"""What a criterion was called with: which tensors carry the batch, and the same call with other rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten  # the one place where it is imported

__all__ = ["Call", "Structures", "devices_of", "loss_of", "plain_tensor"]

HALF = (torch.float16, torch.bfloat16)


def plain_tensor(value: Tensor) -> Tensor:
    """The tensor itself for a subclass's instance."""
    return value if type(value) is Tensor else value.as_subclass(Tensor)


def _prepare(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = plain_tensor(value.detach())  # MONAI's MetaTensor keeps books that vmap cannot batch
    return value.float() if value.dtype in HALF else value


def devices_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[torch.device]:
    """Where a call's tensors are."""
    return {leaf.device for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)}


def loss_of(returned: Any) -> Tensor | None:
    """The loss in what a criterion returned: the tensor, or the ``loss`` of a mapping or a named tuple."""
    if isinstance(returned, Tensor):
        return returned
    try:
        loss = returned["loss"] if hasattr(returned, "keys") else getattr(returned, "loss", None)
    except (KeyError, TypeError):
        return None
    return loss if isinstance(loss, Tensor) else None


@dataclass(frozen=True)
class Call:
    """A criterion's arguments, detached and in fp32, with the leaves that carry the batch.

    Args:
        leaves: Everything in ``(args, kwargs)``, however nested.
        spec: How they were nested.
        batched: Positions of the leaves whose first axis is the batch.
        size: The number of samples.
        structure: What calls have in common whose leaves mean the same.
        half: Whether a leaf came in half precision.
    """

    leaves: tuple[Any, ...]
    spec: TreeSpec
    batched: tuple[int, ...]
    size: int
    structure: Any
    half: bool

    @property
    def shapes(self) -> tuple[Any, ...]:
        """The leaves' shapes, and the types of those that are no tensors."""
        return tuple(leaf.shape if isinstance(leaf, Tensor) else type(leaf) for leaf in self.leaves)

    @property
    def tensors(self) -> list[Tensor]:
        """The leaves that carry the batch."""
        return [self.leaves[i] for i in self.batched]

    def on(self, function: Callable[..., Any], tensors: Sequence[Tensor] | None = None) -> Any:
        """Call a function with these arguments, or with other tensors in the place of those that carry the batch."""
        leaves: Any = self.leaves
        if tensors is not None:
            leaves = list(leaves)
            for i, tensor in zip(self.batched, tensors, strict=True):
                leaves[i] = tensor
        args, kwargs = tree_unflatten(leaves, self.spec)
        return function(*args, **kwargs)


class Structures:
    """Remembers which leaves carry the batch, for every structure of a call.

    The first tensor with a gradient is the model's output and gives the batch's size. A leaf carries the batch if it
    has had that length in every call so far: class weights that happen to have the length of a short last batch don't.
    """

    def __init__(self) -> None:
        self._batched: dict[Any, tuple[int, ...]] = {}

    def candidates(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Call]:
        """Readings of a call, the likely one first; there are several while a length may be a coincidence.

        Raises:
            ValueError: If no tensor has a batch.
        """
        leaves, spec = tree_flatten((args, kwargs))
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
        prepared = tuple(_prepare(leaf) for leaf in leaves)
        half = any(leaf.dtype in HALF for leaf in tensors.values())
        # A vector as long as the batch may be one weight for each class.
        readings = [batched] + [
            tuple(k for k in batched if k != i)
            for i in batched
            if i != anchor and tensors[i].ndim == 1 and len(batched) > 2
        ]
        return [Call(prepared, spec, reading, size, key, half) for reading in readings]

    def settle(self, call: Call) -> None:
        """Keep the reading under which the losses agreed."""
        self._batched[call.structure] = call.batched
