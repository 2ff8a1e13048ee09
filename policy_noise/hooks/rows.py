"""Rows: where each element of a tensor comes from, and a node of autograd's graph as it is replayed on them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

__all__ = ["MAX_ORIGINS", "Origins", "Rows", "Several", "Step", "axes_of", "columns", "signed", "union"]

MAX_ORIGINS = 64
"""Images that one row may come from: views that are averaged or compared."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Where each element of a tensor comes from: row numbers, in a shape that broadcasts to the tensor's.

    Args:
        sizes: For each axis of the tensor its length, or 1 where the rows are the same all along it.
        numbers: The row numbers, flat; -1 where an element comes from elsewhere. None: 0, 1, 2, ...
        device: Where numbers are made once they are needed.
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
        """The same numbers in the same order, in another shape."""
        return Rows(tuple(sizes), self.numbers, self.device)

    def of(self, numbers: Tensor) -> "Rows":
        """Other numbers."""
        return Rows(tuple(numbers.shape), numbers.reshape(-1), self.device)

    def varies(self, axis: int) -> bool:
        """Whether the rows differ along an axis."""
        return self.sizes[axis] != 1

    @property
    def last_axis(self) -> int:
        """The last axis along which the rows differ; -1 where all are the same."""
        return max((axis for axis, size in enumerate(self.sizes) if size != 1), default=-1)

    def same(self, other: "Rows") -> bool:
        """Whether the two are known to be the same, without looking at numbers."""
        return self.sizes == other.sizes and self.numbers is other.numbers


Several = tuple[Rows, ...]
"""Rows of a tensor that comes from a forward: several where images are joined. None: it cannot be told."""

Origins = dict[int, Several]
"""For each forward that a tensor comes from, by its number, its rows."""


@dataclass
class Step:
    """A node as it is replayed: the shape of one of its outputs, and what it got."""

    node: Any
    output: int
    shape: tuple[int, ...]
    sources: list[tuple[int, ...]]

    def saved(self, name: str) -> Any:
        return getattr(self.node, "_saved_" + name)

    def axis(self, name: str, ndim: int) -> int:
        return axis_of(self.saved(name), ndim)


def union(parts: Iterable[Several]) -> Several:
    result: list[Rows] = []
    for part in parts:
        for rows in part:
            if not any(rows.same(other) for other in result):
                result.append(rows)
    return tuple(result) if len(result) <= MAX_ORIGINS else ()


def columns(rows: Rows, length: int) -> Tensor | None:
    """The row numbers of each of a loss's rows, (length, K); None where they don't differ from row to row."""
    if (
        not rows.sizes
        or (rows.sizes[0] not in (1, length))
        or (length > 1 and rows.last_axis > 0 and not rows.varies(0))
    ):
        return None
    numbers = rows.tensor()
    return numbers.expand(length, *numbers.shape[1:]).unsqueeze(1).flatten(1)


def axis_of(value: int, ndim: int) -> int:
    """An axis as torch saves it: negative ones may come as unsigned numbers."""
    return signed(value) % max(ndim, 1)


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def axes_of(value: Any, ndim: int) -> list[int]:
    return [axis_of(axis, ndim) for axis in ((value,) if isinstance(value, int) else value)]
