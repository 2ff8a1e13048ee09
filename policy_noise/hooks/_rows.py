"""Follow the rows of a loss back through autograd's graph to the images that they came from.

Between a model's output and its criterion, a loop may slice, index and join along the batch axis. Autograd has recorded
these operations, and each is replayed on image numbers. Only the operations that are listed here are followed. Any
other may move rows.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any

import torch
from torch import Tensor

from ..utils.compat import node_shapes, saved

__all__ = ["Rows", "follow", "operation", "parents_first"]

Shape = tuple[int, ...]

MAX_ORIGINS = 64
"""Maximum number of images that one row may come from (views that are averaged or compared)."""


def _names(pattern: str) -> Callable[[str], Any]:
    return re.compile(pattern, re.VERBOSE).fullmatch


elementwise = _names("""
    Abs|Acosh?|Add(cdiv|cmul)?|Alias|Asinh?|Atan[2h]?|BinaryCrossEntropy(WithLogits)?|Ceil|Celu|Clamp(Max|Min)?|Clone
    |Copysign|Cosh?|Div|Elu|Erf(c|inv)?|Exp2?|Expand|Expm1|Floor|Fmax|Fmin|Frac|Gelu|Hard(shrink|sigmoid|swish|tanh)
    |HuberLoss|Hypot|LeakyRelu|Lerp|Lgamma|Log(10|1P|2)?|LogSigmoid|Logaddexp2?|Logit|MaskedFill|Maximum|Minimum|Mish
    |MseLoss|Mul|NanToNum|NativeDropout|Neg|Pow|PreluKernel|Reciprocal|Relu|Round|RreluWithNoise|Rsqrt|Rsub|Sgn|Sigmoid
    |Sign|Silu|Sinh?|SmoothL1Loss|SoftMarginLoss|Soft(plus|shrink)|Sqrt|Sub|Tanh?|Threshold|ToCopy|Trunc|Where|Xlogy
""")
is_view = _names("ReshapeAlias|Squeeze|Unsqueeze|(Unsafe)?View")
picks = _names("IndexSelect|Select|Slice|Unbind|(Unsafe)?Split(WithSizes)?")
works_along_axes = _names("""
    Amax|Amin|Cat|Cum(max|min|prod|sum)|Flip|Gather|Glu|IndexSelect|Kthvalue|LinalgVectorNorm|Log(cum)?sumexp
    |(Log)?Softmax|Max|Mean|Median|Min|Mode|Nansum|Norm|Prod|Roll|Select|Slice|Sort|(Unsafe)?Split(WithSizes)?|Stack
    |(Std|Var)(Mean)?|Sum|Topk|Unbind
""")
"""Torch saves the axes as ``dim`` or ``dims``."""
keeps_the_batch = _names(r"""
    Convolution|NativeGroupNorm|NllLoss(2D)?|Multi(label)?MarginLoss|Pixel(Un)?[Ss]huffle|Upsample\w+|GridSampler[23]D
    |(Adaptive)?(Avg|Max)Pool[23]D(WithIndices)?|(Reflection|Replication)Pad[123]D
""")
"""Layers of a first input whose first axis is the batch. They may mix all other axes."""
attends = _names(r"ScaledDotProduct\w*Attention\w*")
normalizes_batches = _names("(Cudnn|Miopen|Native)BatchNorm(Legit)?|BatchNormWithUpdate")


@dataclass(frozen=True, eq=False)
class Rows:
    """The images that a tensor's elements came from, in memory's order: its first elements from the first number, ...

    So the numbers stay the same in each view of the tensor.

    Args:
        count: How many numbers there are. Each stands for an equal share of the elements.
        device: Device of the numbers.
        numbers: The images' numbers, (count,); -1 for elements from elsewhere. None means 0, 1, 2, ...
        transposed: The numbers belong to the columns of a matrix, so to no row of it. With a count of 0 they are lost.
    """

    count: int
    device: torch.device
    numbers: Tensor | None = None
    transposed: bool = False

    def leading(self, shape: Shape) -> int:
        """The number of leading axes along which the images differ."""
        if not self.count or not shape:
            return 1
        return next(axes for axes, size in enumerate(accumulate(shape, mul), 1) if size % self.count == 0)

    def table(self, shape: Shape) -> Tensor:
        """The images' numbers in a shape that has at least the leading axes."""
        numbers = torch.arange(self.count, device=self.device) if self.numbers is None else self.numbers
        return numbers.repeat_interleave(prod(shape) // max(self.count, 1)).view(shape)

    def of(self, numbers: Tensor) -> "Rows":
        """Rows with other numbers."""
        return Rows(numbers.numel(), self.device, numbers.reshape(-1))

    def columns(self, length: int) -> Tensor | None:
        """The images of each of a tensor's rows, (length, K). None if they differ otherwise, or are too many."""
        more, fewer = max(length, self.count), min(length, self.count)
        if self.transposed or self.count > MAX_ORIGINS * length or (more and (not fewer or more % fewer)):
            return None
        return self.table((more,)).view(length, more // max(length, 1) or 1)

    def same(self, other: "Rows") -> bool:
        """Whether both are certainly equal, judged without comparing numbers."""
        return (self.count, self.transposed) == (other.count, other.transposed) and self.numbers is other.numbers


Several = tuple[Rows, ...]
"""The rows of a tensor: several if each of its rows combines several images."""
Origins = dict[int, Several | None]
"""The rows of a tensor in each forward that it came from, by the forward's number. None if they can't be followed."""


def follow(
    tensors: Sequence[Tensor], mark: Callable[[Any], int | None], start: Callable[[int, Shape], Rows | None]
) -> list[Origins]:
    """Follow tensors to the forwards that they came from.

    Args:
        tensors: The criterion's inputs.
        mark: Returns the number of the forward whose output a node is, or None.
        start: Returns the rows of a forward's output, given its number and the output's shape. None if they are
            unknown.

    Returns:
        The origins of each tensor.
    """
    inputs: dict[Any, list[Origins]] = {}
    known: dict[tuple[Any, int], Origins] = {}

    def origins(node: Any, output: int) -> Origins:
        """Return the origins of a node's output. Those of its inputs are known."""
        key = (node, output)
        if key not in known:
            known[key] = {}
            number = mark(node)
            if number is not None:
                rows = start(number, node_shapes(node)[output])
                known[key] = {number: None if rows is None else (rows,)}
            elif any(inputs[node]):
                step = _Step.of(node, output)
                reached = dict.fromkeys(number for given in inputs[node] for number in given)
                known[key] = {n: _replay(step, [given.get(n, ()) for given in inputs[node]]) for n in reached}
        return known[key]

    for node, parents in parents_first(tensors, mark):
        inputs[node] = [{} if parent is None else origins(parent, output) for parent, output in parents]
    return [{} if tensor.grad_fn is None else origins(tensor.grad_fn, tensor.output_nr) for tensor in tensors]


def parents_first(tensors: Sequence[Tensor], mark: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
    """Iterate over the nodes behind tensors with their parents. A node whose mark is not None has none."""
    entered: dict[Any, Any] = {}
    done: set[Any] = set()
    stack = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    while stack:
        node = stack[-1]
        if node not in entered:
            entered[node] = () if mark(node) is not None else node.next_functions
            stack += [parent for parent, _ in entered[node] if parent is not None and parent not in entered]
        else:
            stack.pop()
            if node not in done:
                done.add(node)
                yield node, entered[node]


def operation(node: Any) -> str:
    """The name of torch's operation that made a node. Empty for a user's Function, whose name has no number."""
    known = re.fullmatch(r"(\w+)Backward\d+", node.name())
    return known[1] if known else ""


@dataclass(frozen=True)
class _Step:
    """A node that is replayed: its name, which output, that output's shape, and the shapes of its inputs.

    Inputs without a graph have no shape. The name of a node that torch did not write itself is empty.
    """

    node: Any
    name: str
    output: int
    shape: Shape
    sources: list[Shape | None]

    @classmethod
    def of(cls, node: Any, output: int) -> "_Step":
        sources = [None if parent is None else node_shapes(parent)[n] for parent, n in node.next_functions]
        return cls(node, operation(node), output, node_shapes(node)[output], sources)

    def axis(self, name: str, ndim: int) -> int:
        return _signed(saved(self.node, name)) % max(ndim, 1)


def _signed(value: int) -> int:
    """Undo the wrap-around of a negative number that was saved as an unsigned one."""
    return value - 2**64 if value >= 2**63 else value


def _replay(step: _Step, inputs: list[Several | None]) -> Several | None:
    """Return the rows of a node's output, given those of its inputs. None if they can't be followed."""
    if not step.name or not step.shape or any(several is None for several in inputs):
        return None
    if step.name in ("Cat", "Stack") and step.axis("dim", len(step.shape)) == 0:
        return _join(step, inputs)  # type: ignore[arg-type]
    result: list[Rows] = []
    for edge, several in enumerate(inputs):
        for rows in several or ():
            moved = _move(step, edge, rows)
            if moved is None:
                return None
            result += [new for new in moved if not any(new.same(old) for old in result)]
    return tuple(result) if len(result) <= MAX_ORIGINS else None


def _move(step: _Step, edge: int, rows: Rows) -> Several | None:
    """Return what becomes of one input's rows."""
    source, shape = step.sources[edge], step.shape
    if not source:
        return None
    swapped = (
        step.name in ("Permute", "T", "Transpose") and len(source) == 2 and len(_axes(step, edge, source) or ()) == 2
    )
    if rows.transposed:
        right = step.name in ("Mm", "Addmm") and edge == len(step.sources) - 1
        if swapped:
            return (replace(rows, transposed=False),) if rows.count else None
        if right or (elementwise(step.name) and source == shape):
            return (rows,)
        # An operation that keeps rows in place keeps the columns out of them.
        beside = _move(step, edge, Rows(source[0], rows.device))
        return None if beside is None else (Rows(0, rows.device, transposed=True),)
    leading = rows.leading(source)
    if is_view(step.name):
        return (rows,)
    if swapped and leading == 1:
        return (replace(rows, transposed=True),)
    if step.name == "Index":
        return _index(step, rows, source, leading)
    if picks(step.name) and step.axis("dim", len(source)) < leading:
        return _pick(step, rows, source, leading)
    axes = _axes(step, edge, source)
    if axes is None:
        return None
    first = min(axes, default=len(source))
    if first >= leading and source[:leading] == shape[:leading]:
        return (rows,)
    if first >= 1 and source[0] == shape[0]:
        return _mixed(rows, source[0])
    return None


def _axes(step: _Step, edge: int, source: Shape) -> Sequence[int] | None:
    """The axes of an input that an operation mixes, moves or removes. None if they are unknown."""
    name, node, ndim = step.name, step.node, len(source)
    if elementwise(name):
        return () if ndim == len(step.shape) else None
    if works_along_axes(name):
        dims = saved(node, "dims" if name in ("Flip", "Roll") else "dim", None)  # a sum over all axes saves none
        axes = (dims,) if isinstance(dims, int) else dims or range(ndim)
        last = len(step.shape) if name == "Stack" else ndim
        return [_signed(axis) % last for axis in axes]
    if name == "T":
        return range(ndim)
    if name == "Transpose":
        swapped = sorted((step.axis("dim0", ndim), step.axis("dim1", ndim)))
        return swapped if swapped[0] != swapped[1] else ()
    if name == "Permute":
        return [axis for axis, place in enumerate(saved(node, "dims")) if _signed(place) % ndim != axis]
    if name == "Repeat":
        repeats = saved(node, "repeats")
        return [axis for axis, times in enumerate(repeats) if times != 1] if len(repeats) == ndim else None
    if name == "ConstantPadNd":
        return range(ndim - len(saved(node, "pad")) // 2, ndim)
    if attends(name):
        return range(1, ndim)
    if name in ("Mm", "Addmm", "Bmm", "Baddbmm", "Mv"):
        left = len(step.sources) - 2
        if edge < left:
            return () if ndim == len(step.shape) else None  # the bias
        return (ndim - 1,) if edge == left else (1, 2) if ndim == 3 else None
    if edge > 0:
        return None  # a layer's weights
    if name in ("Linear", "Cdist", "EuclideanDist"):
        return (ndim - 1,)
    if name in ("NativeLayerNorm", "FusedRmsNorm"):
        return range(ndim - len(saved(node, "normalized_shape")), ndim)
    if normalizes_batches(name):
        return ()
    return range(1, ndim) if keeps_the_batch(name) else None


def _mixed(rows: Rows, length: int) -> Several | None:
    """The rows of an operation that mixes all images of each row."""
    columns = rows.columns(length)
    return None if columns is None else tuple(rows.of(column) for column in columns.unbind(1))


def _pick(step: _Step, rows: Rows, source: Shape, leading: int) -> Several | None:
    """Take a part along an axis along which the images differ."""
    axis, name = step.axis("dim", len(source)), step.name.removeprefix("Unsafe")
    if name == "Slice":
        part = slice(_signed(saved(step.node, "start")), _signed(saved(step.node, "end")), saved(step.node, "step"))
        if part.indices(source[axis]) == (0, source[axis], 1):
            return (rows,)
        return (rows.of(rows.table(source[:leading])[(slice(None),) * axis + (part,)]),)
    table = rows.table(source[:leading])
    if name == "IndexSelect":
        index = saved(step.node, "index")
        return None if index is None else (rows.of(table.index_select(axis, index.to(rows.device, non_blocking=True))),)
    if name in ("Select", "Unbind"):
        return (rows.of(table.select(axis, step.output if name == "Unbind" else _signed(saved(step.node, "index")))),)
    if name == "SplitWithSizes":
        start = sum(saved(step.node, "split_sizes")[: step.output])
    else:
        start = saved(step.node, "split_size") * step.output
    return (rows.of(table.narrow(axis, start, step.shape[axis])),)


def _index(step: _Step, rows: Rows, source: Shape, leading: int) -> Several | None:
    """Index by numbers or by a mask, along the first axes or along later ones."""
    indices = saved(step.node, "indices")
    given = [place for place, index in enumerate(indices or ()) if index is not None]
    if not given or given != list(range(given[0], given[-1] + 1)):
        return None  # the graph was freed, or torch puts the picked axis first
    taken = [indices[place].to(rows.device, non_blocking=True) for place in given]
    masked = any(index.dtype in (torch.bool, torch.uint8) for index in taken)
    first, spans = given[0], taken[0].ndim if masked else len(taken)
    if masked and len(taken) > 1:
        return None
    if first >= leading:
        return (rows,) if source[:leading] == step.shape[:leading] else None
    if first > 0:
        return _mixed(rows, source[0]) if source[0] == step.shape[0] else None
    table = rows.table(source[: max(leading, spans)])
    if masked:
        places = _positions(taken[0].bool(), step.shape[0])
        return (rows.of(table.flatten(0, spans - 1).index_select(0, places)),)
    return (rows.of(table[tuple(index.long() for index in taken)]),)


def _positions(mask: Tensor, count: int) -> Tensor:
    """Positions where a mask is true, if their count is known. :func:`torch.nonzero` would wait for the device."""
    mask = mask.reshape(-1)
    places = torch.where(mask, mask.cumsum(0) - 1, count)
    positions = torch.zeros(count + 1, dtype=torch.long, device=mask.device)
    return positions.scatter_(0, places, torch.arange(len(mask), device=mask.device))[:count]


def _join(step: _Step, inputs: list[Several]) -> Several | None:
    """Cat or stack along the first axis. Parts that come from elsewhere are marked with -1."""
    present = [rows for several in inputs for rows in several]
    if any(rows.transposed for rows in present):
        return None
    whole = prod(step.shape)
    sizes = [-1 if source is None else prod(source) for source in step.sources]
    if step.name == "Stack":
        sizes = [whole // len(inputs)] * len(inputs)
    if sizes.count(-1) > 1:
        return None  # the lengths of parts without a graph are unknown
    sizes = [whole - sum(sizes) - 1 if size < 0 else size for size in sizes]
    # How many elements each number stands for must not differ.
    shares = {size // rows.count for size, several in zip(sizes, inputs, strict=True) for rows in several if rows.count}
    if len(shares) != 1 or any(size % next(iter(shares)) for size in sizes):
        return None
    (share,) = shares
    joined = []
    for place in range(max(len(several) for several in inputs)):
        parts = [
            several[place].table((several[place].count,))
            if place < len(several)
            else torch.full((size // share,), -1, device=present[0].device)
            for size, several in zip(sizes, inputs, strict=True)
        ]
        joined.append(present[0].of(torch.cat(parts)))
    return tuple(joined)
