"""A call of the criterion: which of its tensors are batches, and how to repeat it with other rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten  # private; imported only here

__all__ = ["Call", "Structures", "devices_of", "loss_of", "plain_tensor"]

HALF = (torch.float16, torch.bfloat16)


def plain_tensor(value: Tensor) -> Tensor:
    """Return the tensor as a plain ``torch.Tensor``, not a subclass."""
    return value if type(value) is Tensor else value.as_subclass(Tensor)


def _prepare(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = plain_tensor(value.detach())  # vmap cannot batch the metadata of MONAI's MetaTensor
    return value.float() if value.dtype in HALF else value


def devices_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> set[torch.device]:
    """The devices of a call's tensors."""
    return {leaf.device for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)}


def loss_of(returned: Any) -> Tensor | None:
    """Get the loss from what a criterion returned: a tensor, or the ``loss`` of a mapping or a named tuple."""
    if isinstance(returned, Tensor):
        return returned
    try:
        loss = returned["loss"] if hasattr(returned, "keys") else getattr(returned, "loss", None)
    except (KeyError, TypeError):
        return None
    return loss if isinstance(loss, Tensor) else None


@dataclass(frozen=True)
class Call:
    """A criterion's arguments, detached and in fp32.

    Args:
        leaves: Everything in ``(args, kwargs)``, flattened.
        spec: How the leaves were nested.
        batched: Positions of the leaves whose first axis is the batch.
        size: Number of samples.
        structure: A key that is equal for calls whose leaves have the same meaning.
        half: Whether any leaf was in half precision.
    """

    leaves: tuple[Any, ...]
    spec: TreeSpec
    batched: tuple[int, ...]
    size: int
    structure: Any
    half: bool

    @property
    def shapes(self) -> tuple[Any, ...]:
        """The leaves' shapes, or their types if they are not tensors."""
        return tuple(leaf.shape if isinstance(leaf, Tensor) else type(leaf) for leaf in self.leaves)

    @property
    def tensors(self) -> list[Tensor]:
        """The leaves whose first axis is the batch."""
        return [self.leaves[i] for i in self.batched]

    def on(self, function: Callable[..., Any], tensors: Sequence[Tensor] | None = None) -> Any:
        """Call a function with these arguments. ``tensors``, if given, replace the batched leaves."""
        leaves: Any = self.leaves
        if tensors is not None:
            leaves = list(leaves)
            for i, tensor in zip(self.batched, tensors, strict=True):
                leaves[i] = tensor
        args, kwargs = tree_unflatten(leaves, self.spec)
        return function(*args, **kwargs)


class Structures:
    """Remember which leaves are batches, for each structure of a call.

    The first tensor with a gradient is taken as the model's output. Its length is the batch size. A leaf is a batch if
    it had that length in every call so far. So class weights that happen to be as long as a short last batch are not.
    """

    def __init__(self) -> None:
        self._batched: dict[Any, tuple[int, ...]] = {}

    def candidates(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Call]:
        """Interpret a call. There are several results, the likeliest first, as long as a length may be a coincidence.

        Raises:
            ValueError: If there is no tensor with a batch axis.
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
        """Keep the interpretation for which the losses agreed."""
        self._batched[call.structure] = call.batched
