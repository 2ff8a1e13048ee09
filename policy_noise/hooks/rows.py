"""Rows of a tensor, followed through autograd's graph to the rows of the forward that they came from.

Between a model's output and its criterion a loop may slice, index, concatenate and reshape. Autograd has recorded what
it did: each node is replayed on row numbers, from the marked outputs down to the loss's inputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import prod
from operator import mul
from typing import Any

import torch
from torch import Tensor

from ..utils.compat import node_shapes

__all__ = ["Origins", "Rows", "columns", "follow"]

SEARCH_LIMIT = 20_000
"""Autograd nodes looked at. What lies further is taken for another network's."""

MAX_ORIGINS = 64
"""Images that one row may come from: views that are averaged or compared."""

Mark = Callable[[Any], int | None]
"""Tells whose output a node is: a forward's number, or None."""


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


Origins = dict[int, tuple[Rows, ...]]
"""For each forward that a tensor comes from: the rows, several where images are joined. None: it cannot be told."""


@dataclass
class _Step:
    """A node as it is replayed: the shape of one of its outputs, and what it got."""

    node: Any
    output: int
    shape: tuple[int, ...]
    sources: list[tuple[int, ...]]

    def saved(self, name: str) -> Any:
        return getattr(self.node, "_saved_" + name)

    def axis(self, name: str, ndim: int) -> int:
        return _axis(self.saved(name), ndim)


def follow(
    tensors: Sequence[Tensor], mark: Mark, start: Callable[[int, tuple[int, ...] | None], Rows | None]
) -> list[Origins]:
    """Follow tensors to the forwards that they came from.

    Args:
        tensors: What a criterion got.
        mark: Tells whether a node is a forward's output, and which forward's.
        start: Rows of a forward's output of a shape; None where they cannot be told. The shape is None
            where torch does not tell it.

    Returns:
        For each tensor its origins. A forward that is there without rows was reached and cannot be followed.
    """
    edges: dict[Any, tuple[tuple[Any, int], ...]] = {}
    marks: dict[Any, int] = {}
    order: list[Any] = []
    stack: list[tuple[Any, bool]] = [(tensor.grad_fn, False) for tensor in tensors if tensor.grad_fn is not None]
    while stack and len(edges) < SEARCH_LIMIT:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in edges:
            number = mark(node)
            if number is not None:
                marks[node] = number
                edges[node] = ()
                continue
            edges[node] = parents = node.next_functions
            stack.append((node, True))
            stack += [(parent, False) for parent, _ in parents if parent is not None and parent not in edges]
    if not marks:
        return [{} for _ in tensors]
    reached = set(marks)
    for node in order:
        if any(parent in reached for parent, _ in edges[node]):
            reached.add(node)
    values: dict[tuple[Any, int], Origins] = {}

    def value(node: Any, output: int, shape: tuple[int, ...] | None = None) -> Origins:
        """What has been found out about a node's output; its parents have had their turn."""
        key = (node, output)
        if key not in values:
            shapes = node_shapes(node)
            if shapes is not None:
                shape = shapes[output]
            if node in marks:
                rows = start(marks[node], shape)
                values[key] = {marks[node]: () if rows is None else (rows,)}
            else:
                values[key] = _replay(node, output, shape, edges[node], values)
        return values[key]

    consumed: dict[Any, set[int]] = {}
    for node in reached:
        for parent, output in edges[node]:
            if parent in reached:
                consumed.setdefault(parent, set()).add(output)
    for node in [*marks, *(node for node in order if node in reached)]:
        for output in consumed.get(node, ()):
            value(node, output)
    return [
        value(tensor.grad_fn, tensor.output_nr, tuple(tensor.shape)) if tensor.grad_fn in reached else {}
        for tensor in tensors
    ]


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


def _replay(
    node: Any,
    output: int,
    shape: tuple[int, ...] | None,
    parents: tuple[tuple[Any, int], ...],
    values: dict[tuple[Any, int], Origins],
) -> Origins:
    given = [values.get(edge, {}) for edge in parents]
    numbers = dict.fromkeys(number for origins in given for number in origins)
    name = node.name().removesuffix("Backward0").removesuffix("Backward1").removesuffix("Backward2")
    shapes = [None if parent is None else node_shapes(parent) for parent, _ in parents]
    if shape is None or any(s is None for s, origins in zip(shapes, given, strict=True) if origins):
        # Shapes are not told: rows stay where they were, unless the node is one that moves them.
        keeps = name in STAYS or (name not in MOVES and name not in JOINS)
        keeps = keeps or (name in ("Slice", "Select", "Cat") and 0 < node._saved_dim < 2**63)
        return {number: _union(o.get(number, ()) for o in given) if keeps else () for number in numbers}
    sources = [() if s is None or n >= len(s) else s[n] for s, (_, n) in zip(shapes, parents, strict=True)]
    step = _Step(node, output, shape, sources)
    result: Origins = {}
    for number in numbers:
        inputs = [origins.get(number, ()) for origins in given]
        try:
            if name in JOINS:
                result[number] = _union([JOINS[name](step, inputs)])
            else:
                move = MOVES.get(name, _keep)
                result[number] = _union(
                    move(step, edge, rows) for edge, several in enumerate(inputs) for rows in several
                )
        except (AttributeError, RuntimeError, IndexError, TypeError):
            result[number] = ()  # its graph was freed, an index was changed in place, or torch saves something else
    return result


def _union(parts: Any) -> tuple[Rows, ...]:
    result: list[Rows] = []
    for part in parts:
        for rows in part:
            if not any(rows.same(other) for other in result):
                result.append(rows)
    return tuple(result) if len(result) <= MAX_ORIGINS else ()


Several = tuple[Rows, ...]


def _axis(value: int, ndim: int) -> int:
    """An axis as torch saves it: negative ones may come as unsigned numbers."""
    return _signed(value) % max(ndim, 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _axes(value: Any, ndim: int) -> list[int]:
    return [_axis(axis, ndim) for axis in ((value,) if isinstance(value, int) else value)]


def _keep(step: _Step, edge: int, rows: Rows) -> Several:
    """Any other node: a cast, an activation, a layer. Leading axes that it leaves alone keep their rows."""
    source, shape = step.sources[edge], step.shape
    name = step.node.name()
    if hasattr(step.node, "_saved_dim") and hasattr(step.node, "_saved_keepdim"):
        return _reduce(step, edge, rows)
    if hasattr(step.node, "_saved_dim") and not name.startswith(("Softmax", "LogSoftmax")):
        saved = step.saved("dim")
        if isinstance(saved, int | tuple) and any(rows.varies(axis) for axis in _axes(saved, len(source))):
            return ()  # sorted, accumulated or chosen across rows
    if source == shape:
        return (rows,)
    leading = rows.last_axis + 1
    if name.startswith(BROADCASTS):
        return (rows.like((1,) * (len(shape) - len(source)) + rows.sizes),)
    if leading and len(shape) >= leading and source[:leading] == shape[:leading]:
        return (rows.like(rows.sizes[:leading] + (1,) * (len(shape) - leading)),)
    if not leading and source and shape and source[0] == shape[0]:  # one image
        return (rows.like((1,) * len(shape)),)
    return ()


BROADCASTS = ("Add", "Sub", "Mul", "Div", "Where", "Pow", "Maximum", "Minimum", "Lerp", "Expand", "Rsub")


def _refuse(step: _Step, edge: int, rows: Rows) -> Several:
    return ()


def _reduce(step: _Step, edge: int, rows: Rows) -> Several:
    """Mean, sum, max, norm: rows that are joined become the several origins of one."""
    ndim = len(step.sources[edge])
    axes = _axes(step.saved("dim"), ndim) or list(range(ndim))
    joined = [axis for axis in axes if rows.varies(axis)]
    if step.saved("keepdim"):
        sizes = [1 if axis in axes else size for axis, size in enumerate(rows.sizes)]
    else:
        sizes = [size for axis, size in enumerate(rows.sizes) if axis not in axes]
    if not joined:
        return (rows.like(sizes),)
    count = prod(rows.sizes[axis] for axis in joined)
    if prod(rows.sizes) == count or count > MAX_ORIGINS:
        return ()  # over the batch
    numbers = rows.tensor().movedim(joined, tuple(range(len(joined)))).flatten(0, len(joined) - 1)
    return tuple(rows.of(part.reshape(sizes)) for part in numbers.unbind(0))


def _view(step: _Step, edge: int, rows: Rows) -> Several:
    """A new shape. Axes along which nothing differs stay out of it, so that pixels and channels cost nothing."""
    source, shape = step.sources[edge], step.shape
    if rows.last_axis <= 0 and source[:1] == shape[:1] and prod(source[1:]) == prod(shape[1:]):
        return (rows.like(rows.sizes[:1] + (1,) * (len(shape) - 1)),)
    bounds = {*accumulate(source, mul), *accumulate(shape, mul), 1}
    cuts = sorted(bounds)
    if 0 in bounds or any(high % low for low, high in pairwise(cuts)):
        return (rows.of(rows.tensor().expand(source).reshape(shape)),)
    factors = [high // low for low, high in pairwise(cuts)]
    ends = {cut: place for place, cut in enumerate(cuts)}
    fine = [1] * len(factors)
    for axis, (low, high) in enumerate(_spans(source, ends)):
        if rows.varies(axis):
            fine[low:high] = factors[low:high]
    full, sizes = list(fine), []
    for low, high in _spans(shape, ends):
        if any(size != 1 for size in fine[low:high]):
            full[low:high] = factors[low:high]
        sizes.append(prod(full[low:high]))
    if full == fine:
        return (rows.like(sizes),)
    return (rows.of(rows.tensor().reshape(fine).expand(full).reshape(sizes)),)


def _spans(shape: Sequence[int], ends: dict[int, int]) -> list[tuple[int, int]]:
    bounds = [0, *(ends[bound] for bound in accumulate(shape, mul))]
    return list(pairwise(bounds))


def _permuted(rows: Rows, axes: Sequence[int]) -> Several:
    moving = [axis for axis in axes if rows.varies(axis)]
    if moving == sorted(moving):
        return (rows.like([rows.sizes[axis] for axis in axes]),)
    return (rows.of(rows.tensor().permute(*axes)),)


def _permute(step: _Step, edge: int, rows: Rows) -> Several:
    return _permuted(rows, _axes(step.saved("dims"), len(rows.sizes)))


def _transpose(step: _Step, edge: int, rows: Rows) -> Several:
    axes = list(range(len(rows.sizes)))
    if len(axes) > 1:
        first, second = (
            (0, 1) if step.node.name() == "TBackward0" else (step.axis("dim0", len(axes)), step.axis("dim1", len(axes)))
        )
        axes[first], axes[second] = axes[second], axes[first]
    return _permuted(rows, axes)


def _slice(step: _Step, edge: int, rows: Rows) -> Several:
    axis = step.axis("dim", len(rows.sizes))
    length = step.sources[edge][axis]
    part = slice(_signed(step.saved("start")), _signed(step.saved("end")), step.saved("step")).indices(length)
    if not rows.varies(axis) or part == (0, length, 1):
        return (rows,)
    return (rows.of(rows.tensor()[(slice(None),) * axis + (slice(*part),)]),)


def _narrow(rows: Rows, axis: int, start: int, length: int) -> Several:
    return (rows.of(rows.tensor().narrow(axis, start, length)) if rows.varies(axis) else rows,)


def _split(step: _Step, edge: int, rows: Rows) -> Several:
    axis = step.axis("dim", len(rows.sizes))
    if hasattr(step.node, "_saved_split_sizes"):
        start = sum(step.saved("split_sizes")[: step.output])
    else:
        start = step.saved("split_size") * step.output
    return _narrow(rows, axis, start, step.shape[axis])


def _select(step: _Step, edge: int, rows: Rows) -> Several:
    axis = step.axis("dim", len(rows.sizes))
    index = step.output if step.node.name().startswith("Unbind") else step.saved("index")
    if rows.varies(axis):
        return (rows.of(rows.tensor().select(axis, _signed(index))),)
    return (rows.like(rows.sizes[:axis] + rows.sizes[axis + 1 :]),)


def _index_select(step: _Step, edge: int, rows: Rows) -> Several:
    axis = step.axis("dim", len(rows.sizes))
    if not rows.varies(axis):
        return (rows,)
    return (rows.of(rows.tensor().index_select(axis, step.saved("index").to(rows.device, non_blocking=True))),)


def _positions(mask: Tensor, count: int) -> Tensor:
    """Where a mask is true, whose count is known: :func:`torch.nonzero` would wait for the device."""
    mask = mask.reshape(-1)
    places = torch.where(mask, mask.cumsum(0) - 1, count)
    positions = torch.zeros(count + 1, dtype=torch.long, device=mask.device)
    return positions.scatter_(0, places, torch.arange(len(mask), device=mask.device))[:count]


def _index(step: _Step, edge: int, rows: Rows) -> Several:
    indices = [None if index is None else index.to(rows.device, non_blocking=True) for index in step.saved("indices")]
    given = [index for index in indices if index is not None]
    masks = [index for index in given if index.dtype in (torch.bool, torch.uint8)]
    source, sizes = step.sources[edge], list(rows.sizes)
    if masks:
        if len(given) > 1:
            return ()
        place, mask = next(i for i, index in enumerate(indices) if index is not None), masks[0].bool()
        axes = range(place, place + mask.ndim)
        positions = _positions(mask, step.shape[place])
        if not any(rows.varies(axis) for axis in axes):
            return (rows.like((*sizes[:place], 1, *sizes[place + mask.ndim :])),)
        sizes[place : place + mask.ndim] = source[place : place + mask.ndim]
        numbers = rows.tensor().expand(sizes).flatten(place, place + mask.ndim - 1)
        return (rows.of(numbers.index_select(place, positions)),)
    axes = range(len(indices))
    for axis in axes:
        if indices[axis] is not None:
            sizes[axis] = source[axis]
    if len(given) == 1 and given[0].ndim == 1:
        axis = next(i for i in axes if indices[i] is not None)
        if not rows.varies(axis):
            return (rows,)
    taken = tuple(slice(None) if index is None else index.long() for index in indices)
    return (rows.of(rows.tensor().expand(sizes)[taken]),)


def _gather(step: _Step, edge: int, rows: Rows) -> Several:
    if edge != 0:
        return ()
    axis, index = step.axis("dim", len(rows.sizes)), step.saved("index").to(rows.device, non_blocking=True)
    source = step.sources[edge]
    for other in range(index.ndim):
        if other != axis:
            if not rows.varies(other) and index.stride(other) == 0:
                index = index.narrow(other, 0, 1)  # an index that was expanded
            if rows.varies(other) and index.shape[other] != source[other]:
                rows = rows.of(rows.tensor().narrow(other, 0, index.shape[other]))
    if not rows.varies(axis):
        return (rows,)
    sizes = [rows.sizes[a] if a == axis or rows.varies(a) else index.shape[a] for a in range(index.ndim)]
    where = [index.shape[a] if a == axis else sizes[a] for a in range(index.ndim)]
    return (rows.of(rows.tensor().expand(sizes).gather(axis, index.expand(where))),)


def _masked_select(step: _Step, edge: int, rows: Rows) -> Several:
    mask, source = step.saved("mask").to(rows.device, non_blocking=True), step.sources[edge]
    shape = torch.broadcast_shapes(mask.shape, source)
    numbers = rows.tensor().expand(source).expand(shape).reshape(-1)
    return (rows.of(numbers[_positions(mask.expand(shape), step.shape[0])]),)


def _take(step: _Step, edge: int, rows: Rows) -> Several:
    index = step.saved("index").to(rows.device, non_blocking=True)
    return (rows.of(rows.tensor().expand(step.sources[edge]).reshape(-1)[index]),)


def _repeat(step: _Step, edge: int, rows: Rows) -> Several:
    repeats = tuple(step.saved("repeats"))
    rows = rows.like((1,) * (len(repeats) - len(rows.sizes)) + rows.sizes)
    repeats = tuple(times if rows.varies(axis) else 1 for axis, times in enumerate(repeats))
    return (
        (rows,)
        if max(repeats, default=1) == 1 == min(repeats, default=1)
        else (rows.of(rows.tensor().repeat(repeats)),)
    )


def _flip(step: _Step, edge: int, rows: Rows) -> Several:
    axes = [axis for axis in _axes(step.saved("dims"), len(rows.sizes)) if rows.varies(axis)]
    return (rows.of(rows.tensor().flip(axes)) if axes else rows,)


def _roll(step: _Step, edge: int, rows: Rows) -> Several:
    axes = _axes(step.saved("dims"), len(rows.sizes))
    shifts = [_signed(shift) for shift in step.saved("shifts")]
    if not axes:
        return () if rows.last_axis >= 0 else (rows,)
    moved = [(shift, axis) for shift, axis in zip(shifts, axes, strict=True) if rows.varies(axis)]
    if not moved:
        return (rows,)
    return (rows.of(rows.tensor().roll([shift for shift, _ in moved], [axis for _, axis in moved])),)


def _matmul(step: _Step, edge: int, rows: Rows) -> Several:
    """Rows of the left factor stay rows, columns of the right one columns; what is summed over is mixed."""
    left = edge == len(step.sources) - 2
    if edge < len(step.sources) - 2:  # the bias
        return _keep(step, edge, rows) if step.sources[edge] == step.shape else ()
    summed = len(rows.sizes) - 1 if left else len(rows.sizes) - 2
    return () if rows.varies(summed) else (rows,)


def _join(step: _Step, inputs: list[Several]) -> Several:
    """Cat and stack: where they lengthen the rows' own axis, the other parts' rows come from elsewhere."""
    stacks = step.node.name().startswith("Stack")
    axis = step.axis("dim", len(step.shape))
    if stacks:
        inputs = [tuple(rows.like((*rows.sizes[:axis], 1, *rows.sizes[axis:])) for rows in part) for part in inputs]
    present = [rows for part in inputs for rows in part]
    if not present:
        return ()
    alone = all(part and all(rows.same(other) for rows, other in zip(part, inputs[0], strict=False)) for part in inputs)
    apart = any(rows.varies(axis) or (axis == 0 and (stacks or rows.last_axis < 0)) for rows in present)
    if not apart or (alone and not any(rows.varies(axis) for rows in present)):
        return _union(inputs)
    sizes = [max(rows.sizes[other] for rows in present) for other in range(len(step.shape))]
    if any(min(rows.sizes[other] for rows in present) == 0 for other in range(len(step.shape))):
        sizes = list(step.shape)
    device = present[0].device
    elsewhere = torch.full((1,) * len(sizes), -1, device=device)
    lengths = [1 if stacks else source[axis] if source else None for source in step.sources]
    if lengths.count(None) > 1:
        return ()  # parts without a graph don't tell how long they are
    rest = step.shape[axis] - sum(length or 0 for length in lengths)
    joined = []
    for place in range(max(len(part) for part in inputs)):
        parts = []
        for part, length in zip(inputs, lengths, strict=True):
            sizes[axis] = rest if length is None else length
            numbers = part[place].tensor() if place < len(part) else elsewhere
            parts.append(numbers.expand(sizes))
        joined.append(present[0].of(torch.cat(parts, axis)))
    return tuple(joined)


MOVES: dict[str, Callable[[_Step, int, Rows], Several]] = {
    **dict.fromkeys(("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze"), _view),
    **dict.fromkeys(("Transpose", "T"), _transpose),
    **dict.fromkeys(("Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes"), _split),
    **dict.fromkeys(("Select", "Unbind"), _select),
    **dict.fromkeys(("Mm", "Addmm", "Bmm", "Baddbmm"), _matmul),
    **dict.fromkeys(("AsStrided", "Rot90", "Diagonal", "Unfold"), _refuse),
    "Permute": _permute,
    "Slice": _slice,
    "IndexSelect": _index_select,
    "Index": _index,
    "Gather": _gather,
    "MaskedSelect": _masked_select,
    "Take": _take,
    "Repeat": _repeat,
    "Flip": _flip,
    "Roll": _roll,
}
STAYS = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Mm", "Addmm", "Bmm", "Baddbmm")
"""Moves that mostly leave the first axis alone: where shapes are not told, the loss's length is the check."""
JOINS: dict[str, Callable[[_Step, list[Several]], Several]] = {"Cat": _join, "Stack": _join}
