"""Row numbers: the image that each element of a tensor comes from. And the autograd nodes that move them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

__all__ = ["MAX_ORIGINS", "Origins", "Rows", "Several", "Step", "axes_of", "columns", "distinct", "signed", "union"]

MAX_ORIGINS = 64
"""Maximum number of images that one row may come from (views that are averaged or compared)."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The row number that each element of a tensor comes from, in a shape that broadcasts to the tensor's.

    Args:
        sizes: For each axis of the tensor, its length, or 1 if the rows do not differ along it.
        numbers: The row numbers, flat; -1 if an element comes from elsewhere. None means 0, 1, 2, ...
        device: Device of the numbers.
    """

    sizes: tuple[int, ...]
    numbers: Tensor | None
    device: torch.device

    def tensor(self) -> Tensor:
        """The row numbers in their shape."""
        numbers = self.numbers
        if numbers is None:
            numbers = torch.arange(prod(self.sizes), device=self.device)
        return numbers.reshape(self.sizes)

    def like(self, sizes: Sequence[int]) -> "Rows":
        """The same numbers in the same order, with other sizes."""
        return Rows(tuple(sizes), self.numbers, self.device)

    def of(self, numbers: Tensor) -> "Rows":
        """Rows with other numbers and their shape, on the same device."""
        return Rows(tuple(numbers.shape), numbers.reshape(-1), self.device)

    def varies(self, axis: int) -> bool:
        """Whether the rows differ along an axis."""
        return self.sizes[axis] != 1

    @property
    def last_axis(self) -> int:
        """The last axis along which the rows differ, or -1 if they do not differ."""
        return max((axis for axis, size in enumerate(self.sizes) if size != 1), default=-1)

    def same(self, other: "Rows") -> bool:
        """Whether both are certainly equal, judged without comparing numbers."""
        return self.sizes == other.sizes and self.numbers is other.numbers


Several = tuple[Rows, ...]
"""The rows of a tensor: several if each element combines several images. Empty if the rows are unknown."""

Origins = dict[int, Several]
"""The rows of a tensor in each forward that it comes from, by the forward's number."""


@dataclass
class Step:
    """A node that is replayed: which output, that output's shape, and the shapes of the inputs (``sources``)."""

    node: Any
    output: int
    shape: tuple[int, ...]
    sources: list[tuple[int, ...]]

    def saved(self, name: str) -> Any:
        return getattr(self.node, "_saved_" + name)

    def axis(self, name: str, ndim: int) -> int:
        return axis_of(self.saved(name), ndim)


def union(parts: Iterable[Several]) -> Several:
    """Concatenate, leaving out rows that are certainly equal to earlier ones."""
    result: list[Rows] = []
    for part in parts:
        for rows in part:
            if not any(rows.same(other) for other in result):
                result.append(rows)
    return tuple(result)


def distinct(several: Several) -> Several:
    """Compare the numbers of rows, and keep one of each group of equal ones: the one with the fewest numbers."""
    shape = torch.broadcast_shapes(*(rows.sizes for rows in several))
    numbers = torch.stack([rows.tensor().expand(shape).reshape(-1) for rows in several])
    groups = torch.unique(numbers, dim=0, return_inverse=True)[1].tolist()
    kept: dict[int, Rows] = {}
    for group, rows in zip(groups, several, strict=True):
        if group not in kept or prod(rows.sizes) < prod(kept[group].sizes):
            kept[group] = rows
    return tuple(kept.values())


def columns(rows: Rows, length: int) -> Tensor | None:
    """The row numbers of each row of a loss, (length, K). None if they don't differ from row to row."""
    if (
        not rows.sizes
        or (rows.sizes[0] not in (1, length))
        or (length > 1 and rows.last_axis > 0 and not rows.varies(0))
    ):
        return None
    numbers = rows.tensor()
    return numbers.expand(length, *numbers.shape[1:]).unsqueeze(1).flatten(1)


def axis_of(value: int, ndim: int) -> int:
    """Convert an axis that torch saved. Negative axes may be saved as unsigned numbers."""
    return signed(value) % max(ndim, 1)


def signed(value: int) -> int:
    """Undo the wrap-around of a negative number that was saved as an unsigned one."""
    return value - 2**64 if value >= 2**63 else value


def axes_of(value: Any, ndim: int) -> list[int]:
    return [axis_of(axis, ndim) for axis in ((value,) if isinstance(value, int) else value)]
