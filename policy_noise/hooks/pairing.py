"""Which loss belongs to which masked batch."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..mask import MaskSample

__all__ = ["PairingError", "PairingQueue", "Pending", "tensors_of"]

MARK = "policy_noise"
SEARCH_LIMIT = 64
"""Autograd nodes looked at between a loss's input and the model's output: casts, indexing, small heads."""


class PairingError(RuntimeError):
    """Masked forwards and observed losses don't pair up."""


@dataclass
class Pending:
    """A masked forward whose loss has not been seen yet."""

    number: int
    sample: MaskSample
    marked: bool = False


class PairingQueue:
    """Masked batches that wait for their loss, few at a time.

    A model's output is marked in autograd's own metadata, so that a loss finds the batch that it came from whatever
    else ran in between; where no graph leads there, the oldest batch is meant.

    Args:
        max_pending: Masked forwards in a row that may stay without a loss.
    """

    def __init__(self, max_pending: int) -> None:
        self.max_pending = max_pending
        self._pending: deque[Pending] = deque()
        self._number = 0
        self._unpaired = 0

    def __len__(self) -> int:
        return len(self._pending)

    def check_room(self) -> None:
        """Refuse another masked batch where losses plainly never come.

        Raises:
            PairingError: If ``max_pending`` batches in a row had no loss.
        """
        if self._unpaired >= self.max_pending:
            raise PairingError(
                f"{self._unpaired} masked forwards in a row had no loss observed (max_pending={self.max_pending}): "
                "call the hooked criterion or hook.observe(per_sample_loss) once for each, or run forwards that have "
                "no loss under hook.paused()"
            )

    def make_room(self) -> None:
        """Let the oldest batch go where losses need not come."""
        if len(self._pending) >= self.max_pending:
            self._pending.popleft()

    def push(self, sample: MaskSample) -> None:
        """Let a masked batch wait."""
        self._number += 1
        self._unpaired += 1
        self._pending.append(Pending(self._number, sample))

    @property
    def newest(self) -> Pending:
        """The batch masked last."""
        return self._pending[-1]

    def mark(self, output: Any, *, masked: bool) -> None:
        """Mark a model's output as the newest batch's, or as none's. The mark holds no reference to the graph."""
        nodes = [tensor.grad_fn for tensor in tensors_of(output) if tensor.grad_fn is not None]
        for node in nodes:
            node.metadata[MARK] = (id(self), self._number if masked else None)  # type: ignore[index]
        # A module that computes its own loss (a timm task) has had it observed by now.
        if nodes and masked and self._pending and self.newest.number == self._number:
            self.newest.marked = True

    def find(self, tensors: list[Tensor]) -> Pending | None:
        """The waiting batch that tensors came from, breadth first through their autograd graph.

        Without a graph, or for a batch whose output was never marked, it is the oldest.

        Returns:
            None if no batch waits, or if the graph leads elsewhere: to a batch that was not masked or whose loss has
            come already (an auxiliary loss), or to another network (a teacher, a peer).
        """
        nodes = deque(tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None)
        has_graph = bool(nodes)
        for _ in range(SEARCH_LIMIT):
            if not nodes:
                break
            node = nodes.popleft()
            owner, number = node.metadata.get(MARK, (None, None))  # type: ignore[attr-defined]
            if owner == id(self):
                return next((pending for pending in self._pending if pending.number == number), None)
            nodes.extend(parent for parent, _ in node.next_functions if parent is not None)
        return next((pending for pending in self._pending if not (has_graph and pending.marked)), None)

    def pop(self, pending: Pending) -> None:
        """A loss has come."""
        self._pending.remove(pending)
        self._unpaired = len(self._pending)

    def invalidate(self) -> None:
        """Let the waiting samples go, but go on counting the forwards without a loss."""
        self._pending.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._pending.clear()
        self._unpaired = 0


def tensors_of(value: Any) -> Iterator[Tensor]:
    """The tensors in a model's output or a call's arguments, however nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)
