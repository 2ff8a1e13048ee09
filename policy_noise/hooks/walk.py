"""Walk through autograd's graph, from what a criterion got to the forwards that it came from.

Between a model's output and its criterion a loop may slice, index, concatenate and reshape. Autograd has recorded what
it did: each node is replayed on row numbers, from the marked outputs down to the loss's inputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ..utils.compat import node_shapes
from .moves import JOINS, MOVES, STAYS, keep
from .rows import Origins, Rows, Step, union

__all__ = ["follow"]

SEARCH_LIMIT = 20_000
"""Autograd nodes looked at. What lies further is taken for another network's."""

Mark = Callable[[Any], int | None]
"""Tells whose output a node is: a forward's number, or None."""


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
        return {number: union(o.get(number, ()) for o in given) if keeps else () for number in numbers}
    sources = [() if s is None or n >= len(s) else s[n] for s, (_, n) in zip(shapes, parents, strict=True)]
    step = Step(node, output, shape, sources)
    result: Origins = {}
    for number in numbers:
        inputs = [origins.get(number, ()) for origins in given]
        try:
            if name in JOINS:
                result[number] = union([JOINS[name](step, inputs)])
            else:
                move = MOVES.get(name, keep)
                result[number] = union(
                    move(step, edge, rows) for edge, several in enumerate(inputs) for rows in several
                )
        except (AttributeError, RuntimeError, IndexError, TypeError):
            result[number] = ()  # its graph was freed, an index was changed in place, or torch saves something else
    return result
