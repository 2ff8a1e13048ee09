"""Find the masked batch that a loss belongs to."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from ..augmentation import Sample
from ..utils.trees import leaves_of
from ..utils.warn import warn
from .matching import REMEDY, Match, PairingError, Pending, check_index, match_of, start
from .walk import follow

__all__ = ["PairingQueue", "tensors_of"]

MARK = "policy_noise"


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
        self._unpaired = 0
        self._observed = self._warned = False
        self._lost = 0

    def __len__(self) -> int:
        return len(self._pending)

    def check_room(self) -> None:
        """Make room for another batch. If the queue is full, drop the oldest batch and warn once.

        Raises:
            PairingError: If the first ``max_pending`` batches all had no loss.
        """
        if not self._observed:
            if self._unpaired >= self.max_pending:
                raise PairingError(
                    f"no loss was observed for the first {self._unpaired} masked forwards "
                    f"(max_pending={self.max_pending}): call the hooked criterion or hook.observe(per_sample_loss) "
                    "once for each, or run forwards that have no loss under hook.paused()"
                )
            return
        if len(self._pending) >= self.max_pending:
            self._pending.popleft()
            self._lost += 1
        if self._lost and not self._warned:
            self._warned = True
            warn(
                "a masked forward had no loss, and nothing is learned from it: run forwards that have no loss "
                "(Grad-CAM, a sliding window) under torch.no_grad() or hook.paused(). If several must wait for their "
                f"losses, raise max_pending (now {self.max_pending}). A loss must be observed before the next step. "
                "This warning is not repeated."
            )

    def make_room(self) -> None:
        """Drop the oldest batch if the queue is full, without a warning. For hooks that do not learn from losses."""
        if len(self._pending) >= self.max_pending:
            self._pending.popleft()

    def push(self, sample: Sample) -> None:
        """Add a masked batch that waits for its loss."""
        self.number += 1
        self._unpaired += 1
        self._pending.append(Pending(self.number, sample))

    @property
    def newest(self) -> Pending:
        """The batch that was masked last."""
        return self._pending[-1]

    def mark(self, output: Any, *, masked: bool) -> None:
        """Mark a model's output as the newest batch's, or as unmasked. The mark holds no reference to the graph."""
        nodes = [tensor.grad_fn for tensor in tensors_of(output) if tensor.grad_fn is not None]
        for node in nodes:
            node.metadata.setdefault(MARK, {})[self._owner] = self.number if masked else 0  # type: ignore[attr-defined]
        # If the module computes its own loss (a timm task), it may have been observed and the batch be gone.
        pending = self._at(self.number) if masked else None
        if nodes and pending is not None:
            pending.marked = True

    def note_backward(self, output: Any) -> None:
        """Let the newest batch note whether a backward pass reaches its output."""
        pending = self._at(self.number)
        if pending is None:
            return

        def reached(gradient: Tensor) -> None:
            pending.reached = True

        for tensor in tensors_of(output):
            if tensor.requires_grad:
                tensor.register_hook(reached)

    @property
    def reached_backward(self) -> bool:
        """Whether a backward pass reached a batch that still waits for its loss."""
        return any(pending.reached for pending in self._pending)

    def find(self, tensors: Sequence[Tensor], rows: int | None = None) -> list[Match]:
        """Find the batches that tensors came from, by their autograd graph: waiting ones, or ones with other calls.

        Without a graph, or if the batch's output was never marked, the oldest waiting batch is returned.

        Args:
            tensors: The criterion's inputs, or the loss itself.
            rows: The loss's length, if it is known.

        Returns:
            The matches. The list is empty if there is no batch, or if the graph leads elsewhere: to a batch that was
            not masked, to one whose loss was observed by hand, or to another network (a teacher).

        Raises:
            PairingError: If the graph leads to waiting batches, but the rows cannot be followed.
        """
        if not self.has_open:
            return []
        rooted = [tensor for tensor in tensors if tensor.grad_fn is not None]
        direct = self._direct(rooted, rows)
        if direct is not None:
            return direct
        waiting = {pending.number: pending for pending in (*self._pending, *self.scored)}
        found = follow(rooted, self._number_of, lambda number, shape: start(waiting.get(number), shape))
        reached = dict.fromkeys(number for origins in found for number in origins)
        if not reached:
            free = [pending for pending in self._pending if not (rooted and pending.marked)]
            if rooted and not free:  # another call of a criterion inside the hooked module, whose output is to come
                free = [pending for pending in self.scored if not pending.marked]
            fitting = [pending for pending in free if rows is None or len(pending) == rows]
            if free and not fitting and not any(pending.marked for pending in free):
                raise PairingError(f"the loss has {rows} rows, but the waiting batch {len(free[0])} images: {REMEDY}")
            return [Match(pending) for pending in fitting[:1]]
        numbers = [number for number in reached if number in waiting]
        if rows is None:
            lengths = [len(t) for t, origins in zip(rooted, found, strict=True) if t.ndim and any(origins.values())]
            rows = lengths[0] if lengths else 0
        matches = []
        for number in numbers:
            several = [part for origins in found for part in origins.get(number, ())]
            match = match_of(waiting[number], several, rows)
            if match is not None:
                matches.append(match)
        if numbers and not matches:
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
            return [Match(meant[0], check_index(index, rows, len(meant[0])))]
        matches = []
        for forward, part in index:
            if not isinstance(forward, int) or not -len(self._pending) <= forward < len(self._pending):
                raise ValueError(f"index names forward {forward!r}, but {len(self._pending)} wait for their losses")
            pending = self._pending[forward]
            matches.append(Match(pending, check_index(part, rows, len(pending))))
        return matches

    def _at(self, number: int) -> Pending | None:
        return next((pending for pending in (*self._pending, *self.scored) if pending.number == number), None)

    def _number_of(self, node: Any) -> int | None:
        marks = node.metadata.get(MARK)
        return None if marks is None else marks.get(self._owner)

    def _direct(self, tensors: list[Tensor], rows: int | None) -> list[Match] | None:
        """Handle the common case: each tensor is a model's output, or a cast of it. None if it is not the case."""
        matches: dict[int, Match] = {}
        for tensor in tensors:
            node: Any = tensor.grad_fn
            number = self._number_of(node)
            while number is None and node.name() == "ToCopyBackward0":
                node = node.next_functions[0][0]
                number = self._number_of(node)
            if number is None:
                return None
            pending = self._at(number)
            if pending is None:
                continue
            if tensor.ndim == 0 or len(tensor) != len(pending) or rows not in (None, len(pending)):
                return None
            matches[number] = Match(pending)
        return list(matches.values()) if tensors else None

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
        self._unpaired = len(self._pending)
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
        self._unpaired = self._lost = 0


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Iterate over the tensors in a model's output or a call's arguments, however nested."""
    return (leaf for leaf in leaves_of(value) if isinstance(leaf, Tensor))
