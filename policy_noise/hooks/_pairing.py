"""Find the masked forward that a loss belongs to, and the image that each of the loss's rows came from."""

import itertools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..augmentation import Sample
from ..utils.misc import tensors_in
from ..utils.warn import Once
from ._rows import Rows, follow

if TYPE_CHECKING:
    from ._trained import Term

__all__ = ["Match", "PairingError", "PairingQueue", "Pending"]

MARK = "policy_noise"
REMEDY = (
    "pass the image number of each row of the loss with hook.observe(losses, index=...), or run forwards that have no "
    "loss under hook.paused()"
)


class PairingError(RuntimeError):
    """Masked forwards and observed losses don't pair up. Then say which image each row of the loss belongs to.

    Example:
        >>> import policy_noise
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with policy_noise.attach(model, optimizer, preset="learned", in_chans=3) as hook:
        ...     output = model(torch.rand(2, 3, 4, 4)).flip(0)  # moves rows: without the index a PairingError
        ...     losses = hook.observe(output.square().mean(1), index=[1, 0])
    """


@dataclass(eq=False)
class Pending:
    """A masked forward whose loss has not been observed yet.

    Args:
        number: Its number.
        sample: The draw.
        views: Number of inputs that were masked. The sample holds the images of the first, then those of the second.
        marked: Whether its output is known.
        reached: Whether a backward pass reached its output. Known only in steps that are looked at.
        terms: The criterion's calls on its output, and how their rows match its images.
    """

    number: int
    sample: Sample
    views: int = 1
    marked: bool = False
    reached: bool = False
    terms: list[tuple["Term", "Match"]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sample.applied) // self.views

    def spread(self, values: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One loss for each image of the sample: all views of an image have its loss."""
        if self.views == 1:
            return values, valid
        return values.repeat(self.views), None if valid is None else valid.repeat(self.views)


@dataclass(frozen=True)
class Match:
    """A waiting forward that a loss belongs to, and the image that each of the loss's rows came from.

    Args:
        pending: The forward.
        index: For each row of the loss, the number of its image, or -1 if it came from elsewhere. None if the rows are
            the forward's images in order.

    Shape:
        - index: (N,), or (N, K) if a row came from several images (views that are averaged or compared).
    """

    pending: Pending
    index: Tensor | None = None

    def gather(self, values: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Average the rows of each image.

        Args:
            values: One loss per row.
            valid: Which losses count; by default all.

        Shape:
            - values, valid: (N,).

        Returns:
            The losses of the forward's images, (B,), and which images have one (None if all have).

        Raises:
            PairingError: If there is not one loss per row of the index.
        """
        if self.index is None:
            return values, valid
        if values.ndim != 1 or len(values) != len(self.index):
            raise PairingError(
                f"the loss has shape {tuple(values.shape)}, but its index {len(self.index)} rows: {REMEDY}"
            )
        images = len(self.pending)
        index = self.index.to(values.device, non_blocking=True).reshape(len(values), -1)
        counts = index >= 0 if valid is None else (index >= 0) & valid.unsqueeze(1)
        place = torch.where(counts, index, images).reshape(-1)  # one extra place, for rows that don't count
        spread = torch.where(counts, values.unsqueeze(1), 0).reshape(-1)
        total = values.new_zeros(images + 1).index_add(0, place, spread)[:images]
        number = values.new_zeros(images + 1).index_add(0, place, torch.ones_like(spread))[:images]
        return total / number.clamp(min=1), number > 0


class PairingQueue:
    """A queue of masked batches that wait for their losses.

    The model's output is marked in autograd's node metadata. So the batches and rows that a loss came from are found,
    whatever else ran in between. A loss without a graph belongs to the oldest batch.

    Args:
        max_pending: Maximum number of waiting batches. If none of the first ``max_pending`` batches gets a loss, that
            is an error.
    """

    _owners = itertools.count()

    def __init__(self, max_pending: int) -> None:
        self.max_pending = max_pending
        self._owner = next(PairingQueue._owners)
        self._pending: deque[Pending] = deque()
        self.scored: deque[Pending] = deque()
        """Batches with calls of the criterion. Whether and how these are trained on is known at the step."""
        self.number = 0
        self._observed = False
        self._once = Once()
        self._lost = 0

    def __len__(self) -> int:
        return len(self._pending)

    def check_room(self, remedy: str) -> None:
        """Make room for another batch. If the queue is full, drop the oldest batch and warn once.

        Args:
            remedy: What to do if no batch ever had a loss.

        Raises:
            PairingError: If the first ``max_pending`` batches all had no loss.
        """
        if not self._observed:
            unpaired = len(self._pending) + self._lost
            if unpaired >= self.max_pending:
                raise PairingError(
                    f"no loss was observed for the first {unpaired} masked forwards "
                    f"(max_pending={self.max_pending}): {remedy}"
                )
            return
        if len(self._pending) >= self.max_pending:
            self._pending.popleft()
            self._lost += 1
        if self._lost:
            self._once.warn(
                "lost",
                "a masked forward had no loss, and nothing is learned from it. If the criterion was made anew, call "
                "hook.rebind(criterion=criterion). Run forwards that have no loss (Grad-CAM, a sliding window) under "
                "torch.no_grad() or hook.paused(). If several must wait for their losses, raise max_pending (now "
                f"{self.max_pending}). A loss must be observed before the next step. This warning is not repeated.",
            )

    def make_room(self) -> None:
        """Drop the oldest batch if the queue is full, without a warning. For hooks that do not learn from losses."""
        if len(self._pending) >= self.max_pending:
            self._pending.popleft()

    def push(self, sample: Sample, views: int = 1) -> Pending:
        """Add a masked batch that waits for its loss."""
        self.number += 1
        self._pending.append(Pending(self.number, sample, views))
        return self._pending[-1]

    def drop(self, pending: Pending) -> None:
        """Remove a batch whose forward failed, as if it had never been masked."""
        if pending in self._pending:
            self._pending.remove(pending)

    @property
    def newest(self) -> Pending:
        """The batch that was masked last."""
        return self._pending[-1]

    def mark(self, output: Any, pending: Pending | None) -> None:
        """Mark a model's output as a batch's, or as unmasked. The mark holds no reference to the graph."""
        nodes = [tensor.grad_fn for tensor in tensors_in(output) if tensor.grad_fn is not None]
        for node in nodes:
            marks = node.metadata.setdefault(MARK, {})  # type: ignore[attr-defined]
            marks[self._owner] = 0 if pending is None else pending.number
        if nodes and pending is not None:
            pending.marked = True

    @property
    def unobserved(self) -> bool:
        """Whether a backward pass reached a batch that still waits for its loss, and nothing was said of such ones."""
        return "lost" not in self._once.said and any(pending.reached for pending in self._pending)

    def find(self, tensors: Sequence[Tensor]) -> list[Match]:
        """Find the batches that tensors came from, by their autograd graph: waiting ones, or ones with other calls.

        Without a graph, or if the batch's output was never marked, the oldest waiting batch is returned.

        Args:
            tensors: The criterion's inputs, or the loss itself.

        Returns:
            The matches. The list is empty if there is no batch, or if the graph leads elsewhere: to a batch that was
            not masked, to one whose loss was observed by hand, or to another network (a teacher).

        Raises:
            PairingError: If the graph leads to waiting batches, but the rows cannot be followed.
        """
        if not self.has_open:
            return []
        rooted = [tensor for tensor in tensors if tensor.grad_fn is not None]
        waiting = {pending.number: pending for pending in (*self._pending, *self.scored)}
        found = follow(rooted, self._number_of, lambda number, shape: _start(waiting.get(number), shape))
        reached = dict.fromkeys(number for origins in found for number in origins)
        if not reached:
            free = [pending for pending in self._pending if not (rooted and pending.marked)]
            if rooted and not free:  # another call of a criterion inside the hooked module, whose output is to come
                free = [pending for pending in self.scored if not pending.marked]
            return [Match(pending) for pending in free[:1]]
        numbers = [number for number in reached if number in waiting]
        sources = list(zip(rooted, found, strict=True))
        rows = next((len(t) for t, origins in sources if t.ndim and any(origins.get(n) for n in numbers)), 0)
        matches = []
        for number in numbers:
            parts = [origins[number] for t, origins in sources if number in origins and t.ndim and len(t) == rows]
            match = _match_of(waiting[number], parts, rows)
            if match is not None:
                matches.append(match)
            elif None in parts:
                matches.clear()
                break
        if numbers and not matches:
            sides = {
                n for origins in found for n, several in origins.items() for part in several or () if part.transposed
            }
            if all(n in sides and waiting[n].terms and len(waiting[n]) == rows for n in numbers):
                # The other side of pairs whose one side had a call before: logits.T, or texts @ images.T.
                return [Match(waiting[number]) for number in numbers]
            shapes = [tuple(tensor.shape) for tensor in rooted]
            raise PairingError(
                f"the loss was computed from a masked batch of {len(waiting[numbers[0]])} images through tensors of "
                f"shape {shapes}, whose rows can't be followed back to the images: {REMEDY}"
            )
        return matches

    def given(self, index: Any, rows: int, tensors: Sequence[Tensor] = ()) -> list[Match]:
        """Make matches from the user's index.

        Args:
            index: For each row of the loss, the number of its image, or -1 for none. Or a list of (forward, index)
                pairs, where forward 0 is the oldest waiting batch and -1 the newest.
            rows: The loss's length.
            tensors: The loss. If several batches wait, its graph shows which one is meant.

        Shape:
            - index: (N,), integers.

        Raises:
            PairingError: If several batches wait and it is not clear which one is meant.
            TypeError: If an index does not hold integers.
            ValueError: If an index does not fit.
        """
        if isinstance(index, Tensor) or not all(isinstance(pair, tuple) and len(pair) == 2 for pair in index):
            meant = list(self._pending)
            if len(meant) > 1:
                found = follow(tensors, self._number_of, lambda number, shape: None)
                meant = [pending for pending in meant if any(pending.number in origins for origins in found)]
            if len(meant) != 1:
                raise PairingError(
                    f"index belongs to one masked forward, but {len(self._pending)} wait for their losses: pass a list "
                    "of (forward, index) pairs, where 0 is the oldest waiting forward and -1 the newest"
                )
            return [Match(meant[0], _check_index(index, rows, len(meant[0])))]
        matches = []
        for forward, part in index:
            if not isinstance(forward, int) or not -len(self._pending) <= forward < len(self._pending):
                raise ValueError(f"index names forward {forward!r}, but {len(self._pending)} wait for their losses")
            pending = self._pending[forward]
            matches.append(Match(pending, _check_index(part, rows, len(pending))))
        return matches

    def _number_of(self, node: Any) -> int | None:
        marks = node.metadata.get(MARK)
        return None if marks is None else marks.get(self._owner)

    @property
    def has_open(self) -> bool:
        """Whether a loss may belong to any batch."""
        return bool(self._pending or self.scored)

    def score(self, pending: Pending) -> None:
        """Note that a batch has a call of the criterion."""
        if pending in self._pending:
            self.pop(pending)
            self.scored.append(pending)

    def pop(self, pending: Pending) -> None:
        """Remove a batch whose loss was observed."""
        (self._pending if pending in self._pending else self.scored).remove(pending)
        self._observed = True

    def invalidate(self) -> None:
        """Drop the waiting batches, but count them as batches without a loss."""
        self._lost += len(self._pending)
        self._pending.clear()
        self.scored.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._pending.clear()
        self.scored.clear()
        self._lost = 0


def _start(pending: Pending | None, shape: tuple[int, ...]) -> Rows | None:
    """Return the rows of a forward's output: the images in order, if its first axis has the batch's length."""
    if pending is None or shape[:1] != (len(pending),):
        return None
    return Rows(len(pending), pending.sample.applied.device)


def _match_of(pending: Pending, parts: Sequence[tuple[Rows, ...] | None], rows: int) -> Match | None:
    """Match a loss with a forward, given the rows of the tensors that it came from. None if they can't be followed."""
    kept: list[Rows] = []
    for several in parts:
        if several is None:
            return None
        kept += [new for new in several if not new.transposed and not any(new.same(old) for old in kept)]
    if not kept:
        return None
    if rows == len(pending) and all(part.numbers is None and part.count == rows for part in kept):
        return Match(pending)
    columns = [part.columns(rows) for part in kept]
    if any(column is None for column in columns):
        return None
    index = torch.cat(columns, 1)  # type: ignore[arg-type]
    if rows > 1 and index.shape[1] >= len(pending) > 1:
        return None  # each row came from the whole batch
    return Match(pending, index.squeeze(1) if index.shape[1] == 1 else index)


def _check_index(index: Any, rows: int, images: int) -> Tensor:
    """Check the user's index: one number per row of the loss, each from -1 to ``images - 1``.

    Raises:
        TypeError: If it does not hold integers.
        ValueError: If its length or a number in it does not fit.
    """
    index = torch.as_tensor(index)
    if index.is_floating_point() or index.dtype == torch.bool:
        raise TypeError(f"index must hold integers, got {index.dtype}")
    if index.ndim != 1 or len(index) != rows:
        raise ValueError(f"index must have one image number for each of the {rows} losses, got {tuple(index.shape)}")
    # Reading the numbers on another device would wait for it. There, out-of-range numbers fail when gathering.
    if index.device.type == "cpu" and rows and not -1 <= int(index.min()) <= int(index.max()) < images:
        raise ValueError(
            f"index must lie in -1 (elsewhere) to {images - 1}, got {int(index.min())} to {int(index.max())}"
        )
    return index.long()
