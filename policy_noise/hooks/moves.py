"""How each kind of autograd node moves rows; see :mod:`policy_noise.hooks.walk`.

A function here takes the node as a :class:`Step`, the number of the input, and that input's rows. It returns the
output's rows, or an empty tuple if they cannot be followed.
"""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from math import prod
from operator import mul

import torch

from .picks import gather, index, index_select, masked_select, take
from .rows import MAX_ORIGINS, Rows, Several, Step, axes_of, signed, union

__all__ = ["JOINS", "MOVES", "STAYS", "keep"]


def keep(step: Step, edge: int, rows: Rows) -> Several:
    """Any other node: a cast, an activation, a layer. Rows stay if the node does not change the leading axes."""
    source, shape = step.sources[edge], step.shape
    name = step.node.name()
    if hasattr(step.node, "_saved_dim") and hasattr(step.node, "_saved_keepdim"):
        return _reduce(step, edge, rows)
    if hasattr(step.node, "_saved_dim") and not name.startswith(("Softmax", "LogSoftmax")):
        saved = step.saved("dim")
        if isinstance(saved, int | tuple) and any(rows.varies(axis) for axis in axes_of(saved, len(source))):
            return ()  # it sorts, accumulates or selects across rows
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


def _refuse(step: Step, edge: int, rows: Rows) -> Several:
    return ()


def _reduce(step: Step, edge: int, rows: Rows) -> Several:
    """Mean, sum, max, norm. A row that combines several rows has several origins."""
    ndim = len(step.sources[edge])
    axes = axes_of(step.saved("dim"), ndim) or list(range(ndim))
    joined = [axis for axis in axes if rows.varies(axis)]
    if step.saved("keepdim"):
        sizes = [1 if axis in axes else size for axis, size in enumerate(rows.sizes)]
    else:
        sizes = [size for axis, size in enumerate(rows.sizes) if axis not in axes]
    if not joined:
        return (rows.like(sizes),)
    count = prod(rows.sizes[axis] for axis in joined)
    if prod(rows.sizes) == count or count > MAX_ORIGINS:
        return ()  # reduced over the whole batch
    numbers = rows.tensor().movedim(joined, tuple(range(len(joined)))).flatten(0, len(joined) - 1)
    return tuple(rows.of(part.reshape(sizes)) for part in numbers.unbind(0))


def _view(step: Step, edge: int, rows: Rows) -> Several:
    """A new shape. Axes along which the rows do not differ are left out, so pixels and channels cost nothing."""
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


def _permute(step: Step, edge: int, rows: Rows) -> Several:
    return _permuted(rows, axes_of(step.saved("dims"), len(rows.sizes)))


def _transpose(step: Step, edge: int, rows: Rows) -> Several:
    axes = list(range(len(rows.sizes)))
    if len(axes) > 1:
        first, second = (
            (0, 1) if step.node.name() == "TBackward0" else (step.axis("dim0", len(axes)), step.axis("dim1", len(axes)))
        )
        axes[first], axes[second] = axes[second], axes[first]
    return _permuted(rows, axes)


def _slice(step: Step, edge: int, rows: Rows) -> Several:
    axis = step.axis("dim", len(rows.sizes))
    length = step.sources[edge][axis]
    part = slice(signed(step.saved("start")), signed(step.saved("end")), step.saved("step")).indices(length)
    if not rows.varies(axis) or part == (0, length, 1):
        return (rows,)
    return (rows.of(rows.tensor()[(slice(None),) * axis + (slice(*part),)]),)


def _narrow(rows: Rows, axis: int, start: int, length: int) -> Several:
    return (rows.of(rows.tensor().narrow(axis, start, length)) if rows.varies(axis) else rows,)


def _split(step: Step, edge: int, rows: Rows) -> Several:
    axis = step.axis("dim", len(rows.sizes))
    if hasattr(step.node, "_saved_split_sizes"):
        start = sum(step.saved("split_sizes")[: step.output])
    else:
        start = step.saved("split_size") * step.output
    return _narrow(rows, axis, start, step.shape[axis])


def _select(step: Step, edge: int, rows: Rows) -> Several:
    axis = step.axis("dim", len(rows.sizes))
    index = step.output if step.node.name().startswith("Unbind") else step.saved("index")
    if rows.varies(axis):
        return (rows.of(rows.tensor().select(axis, signed(index))),)
    return (rows.like(rows.sizes[:axis] + rows.sizes[axis + 1 :]),)


def _repeat(step: Step, edge: int, rows: Rows) -> Several:
    repeats = tuple(step.saved("repeats"))
    rows = rows.like((1,) * (len(repeats) - len(rows.sizes)) + rows.sizes)
    repeats = tuple(times if rows.varies(axis) else 1 for axis, times in enumerate(repeats))
    return (
        (rows,)
        if max(repeats, default=1) == 1 == min(repeats, default=1)
        else (rows.of(rows.tensor().repeat(repeats)),)
    )


def _flip(step: Step, edge: int, rows: Rows) -> Several:
    axes = [axis for axis in axes_of(step.saved("dims"), len(rows.sizes)) if rows.varies(axis)]
    return (rows.of(rows.tensor().flip(axes)) if axes else rows,)


def _roll(step: Step, edge: int, rows: Rows) -> Several:
    axes = axes_of(step.saved("dims"), len(rows.sizes))
    shifts = [signed(shift) for shift in step.saved("shifts")]
    if not axes:
        return () if rows.last_axis >= 0 else (rows,)
    moved = [(shift, axis) for shift, axis in zip(shifts, axes, strict=True) if rows.varies(axis)]
    if not moved:
        return (rows,)
    return (rows.of(rows.tensor().roll([shift for shift, _ in moved], [axis for _, axis in moved])),)


def _matmul(step: Step, edge: int, rows: Rows) -> Several:
    """Rows of the left factor stay rows, and columns of the right factor stay columns. The summed axis mixes rows."""
    left = edge == len(step.sources) - 2
    if edge < len(step.sources) - 2:  # the bias
        return keep(step, edge, rows) if step.sources[edge] == step.shape else ()
    summed = len(rows.sizes) - 1 if left else len(rows.sizes) - 2
    return () if rows.varies(summed) else (rows,)


def _join(step: Step, inputs: list[Several]) -> Several:
    """Cat and stack. If they join along the rows' axis, rows of parts from other sources are marked with -1."""
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
        return union(inputs)
    sizes = [max(rows.sizes[other] for rows in present) for other in range(len(step.shape))]
    if any(min(rows.sizes[other] for rows in present) == 0 for other in range(len(step.shape))):
        sizes = list(step.shape)
    device = present[0].device
    elsewhere = torch.full((1,) * len(sizes), -1, device=device)
    lengths = [1 if stacks else source[axis] if source else None for source in step.sources]
    if lengths.count(None) > 1:
        return ()  # the lengths of parts without a graph are unknown
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


MOVES: dict[str, Callable[[Step, int, Rows], Several]] = {
    **dict.fromkeys(("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze"), _view),
    **dict.fromkeys(("Transpose", "T"), _transpose),
    **dict.fromkeys(("Split", "SplitWithSizes", "UnsafeSplit", "UnsafeSplitWithSizes"), _split),
    **dict.fromkeys(("Select", "Unbind"), _select),
    **dict.fromkeys(("Mm", "Addmm", "Bmm", "Baddbmm"), _matmul),
    **dict.fromkeys(("AsStrided", "Rot90", "Diagonal", "Unfold"), _refuse),
    "Permute": _permute,
    "Slice": _slice,
    "IndexSelect": index_select,
    "Index": index,
    "Gather": gather,
    "MaskedSelect": masked_select,
    "Take": take,
    "Repeat": _repeat,
    "Flip": _flip,
    "Roll": _roll,
}
STAYS = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Mm", "Addmm", "Bmm", "Baddbmm")
"""Nodes in MOVES that usually keep the first axis. If shapes are unknown, that is assumed, and the loss's length is
checked."""
JOINS: dict[str, Callable[[Step, list[Several]], Several]] = {"Cat": _join, "Stack": _join}
