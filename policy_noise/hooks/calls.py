"""The calls of the hooked model that are under way: a module may call itself, and a forward may fail."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from .pairing import Pending

__all__ = ["Call"]


@dataclass
class Call:
    """One call of the hooked model.

    Args:
        masked: Its images, masked for it or for the call around it.
        unmasked: Its other inputs that look like images.
        pending: The batch that was masked for it, or for the call around it.
        reached: The batches of the calls within it.
        drawn: The batches that were masked for it and within it. They are dropped if it fails.
        is_part: Whether its images were made from masked ones, so that only the call around it knows their rows.
        is_list: Whether its images came as a list.
    """

    masked: Sequence[Tensor] = ()
    unmasked: Sequence[Tensor] = ()
    pending: Pending | None = None
    reached: list[Pending] = field(default_factory=list)
    drawn: list[Pending] = field(default_factory=list)
    is_part: bool = False
    is_list: bool = False

    @property
    def pendings(self) -> list[Pending]:
        """The masked batches that its output comes from."""
        return list(dict.fromkeys([*([] if self.pending is None else [self.pending]), *self.reached]))

    def masks(self, images: Sequence[Tensor]) -> bool:
        """Whether the images of a call within this one are masked already.

        All that is computed within a call comes from its masked images, except for its other inputs.
        """
        others = {_storage(tensor) for tensor in self.unmasked}
        return bool(self.masked) and not any(_storage(image) in others for image in images)

    def within(self, images: Sequence[Tensor]) -> "Call":
        """A call within this one, with images that are masked already: the very same ones, or some made from them."""
        same = bool(images) and all(any(image is masked for masked in self.masked) for image in images)
        return Call(images or self.masked, pending=self.pending if same else None, is_part=not same)

    def finish(self, outer: "Call") -> None:
        """Tell the call around this one."""
        outer.drawn += self.drawn
        outer.reached += self.pendings


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
