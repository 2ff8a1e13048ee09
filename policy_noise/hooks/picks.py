"""How autograd nodes that select by index or mask change the rows; see :mod:`policy_noise.hooks.moves`."""

import torch
from torch import Tensor

from .rows import Rows, Several, Step

__all__ = ["gather", "index", "index_select", "masked_select", "take"]


def index_select(step: Step, edge: int, rows: Rows) -> Several:
    axis = step.axis("dim", len(rows.sizes))
    if not rows.varies(axis):
        return (rows,)
    return (rows.of(rows.tensor().index_select(axis, step.saved("index").to(rows.device, non_blocking=True))),)


def _positions(mask: Tensor, count: int) -> Tensor:
    """Positions where a mask is true, if their count is known. :func:`torch.nonzero` would wait for the device."""
    mask = mask.reshape(-1)
    places = torch.where(mask, mask.cumsum(0) - 1, count)
    positions = torch.zeros(count + 1, dtype=torch.long, device=mask.device)
    return positions.scatter_(0, places, torch.arange(len(mask), device=mask.device))[:count]


def index(step: Step, edge: int, rows: Rows) -> Several:
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


def gather(step: Step, edge: int, rows: Rows) -> Several:
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


def masked_select(step: Step, edge: int, rows: Rows) -> Several:
    mask, source = step.saved("mask").to(rows.device, non_blocking=True), step.sources[edge]
    shape = torch.broadcast_shapes(mask.shape, source)
    numbers = rows.tensor().expand(source).expand(shape).reshape(-1)
    return (rows.of(numbers[_positions(mask.expand(shape), step.shape[0])]),)


def take(step: Step, edge: int, rows: Rows) -> Several:
    index = step.saved("index").to(rows.device, non_blocking=True)
    return (rows.of(rows.tensor().expand(step.sources[edge]).reshape(-1)[index]),)
