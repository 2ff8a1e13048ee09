"""The match of a loss: the masked forward that it belongs to, and the image that each of its rows came from."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..augmentation import Sample
from .rows import Rows, columns

if TYPE_CHECKING:
    from .trained import Term

__all__ = ["REMEDY", "Match", "PairingError", "Pending", "check_index", "match_of", "start"]

REMEDY = (
    "pass the image number of each row of the loss with hook.observe(losses, index=...), or run forwards that have no "
    "loss under hook.paused()"
)


class PairingError(RuntimeError):
    """Masked forwards and observed losses don't pair up."""


@dataclass(eq=False)
class Pending:
    """A masked forward whose loss has not been observed yet.

    Args:
        number: Its number.
        sample: The draw.
        marked: Whether its output is known.
        reached: Whether a backward pass reached its output. Known only in the first step.
        terms: The criterion's calls on its output, and how their rows match its images.
    """

    number: int
    sample: Sample
    marked: bool = False
    reached: bool = False
    terms: list[tuple["Term", "Match"]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sample.applied)


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


def start(pending: Pending | None, shape: tuple[int, ...] | None) -> Rows | None:
    """Return the rows of a forward's output.

    They lie along the first axis if it has the batch's length, else along the only axis that has it.
    """
    if pending is None:
        return None
    if shape is None:
        return Rows((len(pending),), None, pending.sample.applied.device)
    axes = [axis for axis, size in enumerate(shape) if size == len(pending)]
    if not axes or (axes[0] != 0 and len(axes) > 1):
        return None
    sizes = tuple(size if axis == axes[0] else 1 for axis, size in enumerate(shape))
    return Rows(sizes, None, pending.sample.applied.device)


def match_of(pending: Pending, several: list[Rows], rows: int) -> Match | None:
    """Match a loss with a forward, given the rows of the tensors that it came from. None if they don't fit."""
    kept: list[Rows] = []
    for part in several:
        beside = rows > 1 and part.last_axis > 0 and not part.varies(0)  # columns of a similarity matrix
        if not beside and not any(part.same(other) for other in kept):
            kept.append(part)
    plain = [part.numbers is None and part.last_axis <= 0 and part.sizes[:1] == (len(pending),) for part in kept]
    if len(pending) == rows and plain and all(plain):
        return Match(pending)
    indices = [index for part in kept if (index := columns(part, rows)) is not None]
    if not indices:
        return None
    index = indices[0] if len(indices) == 1 else torch.cat(indices, 1)
    return Match(pending, index.squeeze(1) if index.shape[1] == 1 else index)


def check_index(index: Any, rows: int, images: int) -> Tensor:
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
