"""Walk through autograd's graph from a criterion's inputs to the forward passes that they came from.

Between a model's output and its criterion, a loop may slice, index, concatenate and reshape. Autograd has recorded
these operations. Each is replayed on row numbers, from the marked outputs to the criterion's inputs.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor

from ..utils.compat import node_shapes
from .moves import JOINS, MOVES, STAYS, keep
from .rows import MAX_ORIGINS, Origins, Rows, Step, distinct, union

__all__ = ["follow"]

SEARCH_LIMIT = 20_000
"""Maximum number of autograd nodes to visit. A graph without a mark among them counts as another network's."""

FEW = 4
"""Up to this many origins of a row are kept without comparing them. Each residual connection doubles the origins, and
most of them are equal. Comparing them waits for the device."""

Edges = tuple[tuple[Any, int], ...]
"""A node's parents, each with the number of the output that is used."""

Mark = Callable[[Any], int | None]
"""Returns the number of the forward whose output a node is, or None."""


def follow(
    tensors: Sequence[Tensor], mark: Mark, start: Callable[[int, tuple[int, ...] | None], Rows | None]
) -> list[Origins]:
    """Follow tensors to the forwards that they came from.

    Args:
        tensors: The criterion's inputs.
        mark: Returns the number of the forward whose output a node is, or None.
        start: Returns the rows of a forward's output, given its number and the output's shape. The result is None if
            they are unknown; the shape is None if torch does not provide it.

    Returns:
        The origins of each tensor. If a forward has no rows there, it was reached, but its rows cannot be followed.
    """
    edges, marks = _search(tensors, mark)
    if not marks:
        return [{} for _ in tensors]
    reached = _above(marks, edges)
    values: dict[tuple[Any, int], Origins] = {}
    shapes: dict[Any, list[tuple[int, ...]] | None] = {}

    def value(node: Any, output: int, shape: tuple[int, ...] | None = None) -> Origins:
        """Return the origins of a node's output. Its parents must have been visited before."""
        key = (node, output)
        if key not in values:
            if node not in shapes:
                shapes[node] = node_shapes(node)
            known = shapes[node]
            if known is not None:
                shape = known[output]
            if node in marks:
                rows = start(marks[node], shape)
                values[key] = {marks[node]: () if rows is None else (rows,)}
            else:
                values[key] = _replay(node, output, shape, edges[node], values, shapes)
        return values[key]

    ordered = _parents_first(tensors, reached, edges)
    consumed: dict[Any, set[int]] = {}
    for node in ordered:
        for parent, output in edges[node]:
            if parent in reached:
                consumed.setdefault(parent, set()).add(output)
    for node in ordered:
        for output in consumed.get(node, ()):
            value(node, output)
    return [
        value(tensor.grad_fn, tensor.output_nr, tuple(tensor.shape)) if tensor.grad_fn in reached else {}
        for tensor in tensors
    ]


def _search(tensors: Sequence[Tensor], mark: Mark) -> tuple[dict[Any, Edges], dict[Any, int]]:
    """Collect all nodes behind tensors with their parents, and the marked ones among them. Most graphs have no mark."""
    edges: dict[Any, Edges] = {}
    marks: dict[Any, int] = {}
    stack = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    while stack and len(edges) < SEARCH_LIMIT:
        node = stack.pop()
        if node in edges:
            continue
        number = mark(node)
        if number is not None:
            marks[node] = number
            edges[node] = ()
            continue
        edges[node] = parents = node.next_functions
        for parent, _ in parents:
            if parent is not None:
                stack.append(parent)
    return edges, marks


def _above(marks: Iterable[Any], edges: dict[Any, Edges]) -> set[Any]:
    """Nodes that lead to a marked one. Only these are replayed."""
    children: dict[Any, list[Any]] = {}
    for node, parents in edges.items():
        for parent, _ in parents:
            children.setdefault(parent, []).append(node)
    reached = set(marks)
    stack = list(reached)
    while stack:
        for child in children.get(stack.pop(), ()):
            if child not in reached:
                reached.add(child)
                stack.append(child)
    return reached


def _parents_first(tensors: Sequence[Tensor], reached: set[Any], edges: dict[Any, Edges]) -> list[Any]:
    order: dict[Any, None] = {}
    entered: set[Any] = set()
    stack = [tensor.grad_fn for tensor in tensors if tensor.grad_fn in reached]
    while stack:
        node = stack[-1]
        if node in entered:
            order[stack.pop()] = None
        else:
            entered.add(node)
            stack += [parent for parent, _ in edges[node] if parent in reached and parent not in entered]
    return list(order)


def _replay(
    node: Any,
    output: int,
    shape: tuple[int, ...] | None,
    parents: Edges,
    values: dict[tuple[Any, int], Origins],
    known: dict[Any, list[tuple[int, ...]] | None],
) -> Origins:
    given = [values.get(edge, {}) for edge in parents]
    numbers = dict.fromkeys(number for origins in given for number in origins)
    name = node.name().removesuffix("Backward0").removesuffix("Backward1").removesuffix("Backward2")
    # Cat and stack need the lengths of all their inputs, also of those that come from elsewhere.
    shapes = [
        known.get(parent) if origins else node_shapes(parent) if name in JOINS else ()
        for (parent, _), origins in zip(parents, given, strict=True)
    ]
    if shape is None or any(s is None for s, origins in zip(shapes, given, strict=True) if origins):
        # Shapes are unknown: assume that rows stay where they are, unless this kind of node moves them.
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
                found = JOINS[name](step, inputs)
            else:
                move = MOVES.get(name, keep)
                found = union(move(step, edge, rows) for edge, several in enumerate(inputs) for rows in several)
            if len(found) > FEW and sum(map(bool, inputs)) > 1:
                found = distinct(found)
            result[number] = found if len(found) <= MAX_ORIGINS else ()
        except (AttributeError, RuntimeError, IndexError, TypeError):
            result[number] = ()  # freed graph, an index changed in place, or a torch that saves other things
    return result
