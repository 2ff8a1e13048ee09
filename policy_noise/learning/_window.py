"""What was observed between two steps of the user's optimizer, and what it amounts to."""

import math
from collections import deque
from dataclasses import dataclass
from functools import reduce

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..augmentation import Sample
from ..functional import LossMoments
from ..utils.warn import Once

__all__ = ["Observation", "SampleCount", "WindowMoments", "check_costs", "check_loss", "moments_of", "sum_over_ranks"]


MAX_UNCOUNTED = 64
"""Batches of which it is kept whether their losses are finite, until they are counted in one go."""

PATIENCE = 5
"""Warn if no image has a loss in this many batches in a row. One may be unlabelled by chance or on purpose."""


@dataclass(frozen=True)
class Observation:
    """A batch's draw and what it cost.

    Args:
        sample: The draw.
        loss: Loss of each image, (B,), detached, fp32.
        valid: Images that have a loss at all, (B,) bool; None means all. The others have a loss of 0.
    """

    sample: Sample
    loss: Tensor
    valid: Tensor | None


def check_loss(images: int, loss: Tensor) -> None:
    """Refuse losses of which there is not one for each image."""
    if not isinstance(loss, Tensor) or loss.shape != (images,):
        shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"per_sample_loss must have shape ({images},), one loss for each image, got {shape}; "
            "compute it with reduction='none'"
        )


def check_costs(costs: Tensor, loss: Tensor) -> Tensor:
    """The costs that a ``reward`` function made of losses, fp32; refused where there is not one for each image."""
    if not isinstance(costs, Tensor) or costs.shape != loss.shape:
        shape = tuple(costs.shape) if isinstance(costs, Tensor) else type(costs).__name__
        raise ValueError(f"reward must give one cost for each loss, a tensor of shape {tuple(loss.shape)}, got {shape}")
    return costs.detach().float().to(loss.device)


class SampleCount:
    """How many samples were seen, and how many had no finite loss. Counting waits for no device; reading does."""

    def __init__(self) -> None:
        self.seen = 0
        self._checked = 0
        self._finite = 0
        self._uncounted: list[Tensor] = []
        self._unlabelled: deque[Tensor] = deque(maxlen=PATIENCE)
        self._once = Once()

    def valid(self, observation: Observation) -> Tensor:
        """Samples that count, (B,) bool: transformed, with a finite loss."""
        sample, loss = observation.sample, observation.loss
        finite = loss.abs() < math.inf
        if sample.log_prob is not None:
            finite = finite & (sample.log_prob.detach().abs() < math.inf)
        self._checked += len(finite)
        self._uncounted.append(finite)
        if len(self._uncounted) > MAX_UNCOUNTED:
            self._uncounted = [torch.cat(self._uncounted).sum().view(1)]
        if finite.device.type == "cpu":  # elsewhere it would wait for the device
            self.warn_dropped()
        counts = finite & sample.applied
        return counts if observation.valid is None else counts & observation.valid

    def labels(self, valid: Tensor | None) -> None:
        """Note which images of a batch have a loss, (B,) bool; None means all."""
        if valid is None:
            self._unlabelled.clear()
            return
        self._unlabelled.append(~valid.any())
        if valid.device.type == "cpu":
            self.warn_unlabelled()

    @property
    def dropped(self) -> int:
        """Samples whose loss was not finite."""
        self._finite += sum(int(finite.sum()) for finite in self._uncounted)
        self._uncounted.clear()
        return self._checked - self._finite

    def restore(self, seen: int, dropped: int) -> None:
        """Set both counts."""
        self.seen, self._checked, self._finite = seen, dropped, 0
        self._uncounted.clear()

    def warn_unlabelled(self) -> None:
        """Warn once if no image had a loss in several batches in a row. Nothing is learned from such batches."""
        if len(self._unlabelled) == PATIENCE and "labels" not in self._once.said and all(map(bool, self._unlabelled)):
            self._once.warn(
                "labels",
                f"no image of the last {PATIENCE} batches has a loss: their labels are all ignored or masked out, or "
                "the rows of the loss come from elsewhere (an index of -1). So the policy does not learn",
            )

    def warn_dropped(self) -> None:
        """Warn once of losses that were not finite."""
        dropped = self.dropped
        if dropped:
            self._once.warn(
                "dropped",
                f"{dropped} samples with a non-finite loss were ignored; metrics['samples_dropped'] goes on counting, "
                "without further warnings",
            )


@dataclass(frozen=True)
class WindowMoments:
    """A window's losses and entropies, over all ranks where there are several.

    Args:
        loss: Moments of the losses.
        seen: Samples in the window.
        entropy: Mean entropy per action in nats, over the samples; NaN if it is unknown, None if nobody asked for it.
        total_entropy: Mean entropy of a whole draw, over the ranks' samples; None with one process, whose samples tell.
    """

    loss: LossMoments
    seen: int | Tensor
    entropy: Tensor | None
    total_entropy: Tensor | None = None


def moments_of(
    window: list[Observation],
    count: SampleCount,
    average: Tensor | None,
    device: torch.device,
    *,
    with_entropy: bool,
    distributed: bool,
) -> WindowMoments | None:
    """Take the moments of a window; with several processes by one collective, which every rank must join.

    Args:
        window: This rank's observations.
        count: Where seen and dropped samples are counted.
        average: Moving average of the loss, equal on all ranks.
        device: Where the policy is.
        with_entropy: Whether the mean entropy is needed.
        distributed: Whether the window is that of all ranks.

    Returns:
        None if no rank has a sample.
    """
    loss = _join([seen.loss for seen in window], torch.float32, device)
    valid = _join([count.valid(seen) for seen in window], torch.bool, device)
    samples = [seen.sample for seen in window]
    if not distributed:
        entropy = _entropy_sums(samples, device, len(loss))[0] if with_entropy else None
        return WindowMoments(LossMoments.of(loss, valid, average), len(loss), entropy)
    entropies = torch.stack(_entropy_sums(samples, device))
    sums = torch.cat([LossMoments.sums(loss, valid, average), loss.new_tensor([len(loss)]), entropies])
    dist.all_reduce(sums)
    if not window and not bool(sums[3]):
        return None  # so all ranks stop here; only one without any sample has to look (and wait)
    seen = sums[3].clamp(min=1)
    return WindowMoments(LossMoments.of_all_ranks(loss, valid, sums[:3], average), seen, *(sums[4:] / seen))


def _entropy_sums(samples: list[Sample], device: torch.device, count: int = 1) -> tuple[Tensor, Tensor]:
    """Entropy of all draws: per action and over a count, and as it is. NaN where it is not known."""
    if not samples:
        return torch.zeros((), device=device), torch.zeros((), device=device)
    per_action, whole = [], []
    with torch.no_grad():
        for sample in samples:
            entropy = sample.entropy
            if entropy is None:
                unknown = torch.full((), math.nan, device=device)
                return unknown, unknown
            total = entropy.sum()
            per_action.append(total / (count * sample.actions))
            whole.append(total)
    return reduce(torch.add, per_action), reduce(torch.add, whole)


def sum_over_ranks(gradient: Tensor, module: nn.Module) -> Tensor:
    """Add up the ranks' gradients in one collective.

    Floating-point state of the module that is no parameter (a policy's moving averages) is averaged on the way.
    """
    kept = module.state_dict()
    buffers = [b for name, b in module.named_buffers() if name in kept and b.is_floating_point()]
    parts = [*(buffer.detach().float().flatten() / dist.get_world_size() for buffer in buffers), gradient]
    flat = torch.cat(parts)
    dist.all_reduce(flat)
    *averages, gradient = flat.split([part.numel() for part in parts])
    with torch.no_grad():
        for buffer, value in zip(buffers, averages, strict=True):
            buffer.copy_(value.view_as(buffer))
    return gradient


def _join(tensors: list[Tensor], dtype: torch.dtype, device: torch.device) -> Tensor:
    if not tensors:
        return torch.zeros(0, dtype=dtype, device=device)
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
