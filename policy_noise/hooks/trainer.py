"""The steps that a loop can also call by hand: mask a batch, observe its losses, step the policy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..augmentation import StochasticAugmentation
from ..learning.window import check_loss
from ..losses import LossSplitter, SampleLosses
from ..utils.compat import is_in_backward, is_transformed
from .pairing import Match
from .schedule import ScheduledStrength
from .state import HookState

__all__ = ["PolicyTrainer"]


class PolicyTrainer(HookState):
    """The part of :class:`policy_noise.ReinforceHook` that works without hooks on model and criterion."""

    augmentation: StochasticAugmentation
    _splitter: LossSplitter | None
    _strength: ScheduledStrength | None
    _paused: int
    _masked: bool

    # -- for loops that mask and observe by hand -----------------------------------------------------------------------

    def apply(self, images: Tensor) -> Tensor:
        """Transform a batch, and remember the draw until its loss is observed.

        Outside training (gradients off, ``hook.augmentation.eval()``, :meth:`paused`) it returns the images unchanged.

        Raises:
            PairingError: If none of the first ``max_pending`` batches had a loss.
        """
        if self._paused or not torch.is_grad_enabled() or not self.augmentation.training:
            return images
        if is_transformed():
            self._watch.transformed()
            return images
        axes = self.augmentation.spatial_dims + 2
        if isinstance(images, Tensor) and images.ndim != axes:
            raise ValueError(f"images must be a batch with {axes} axes, got shape {tuple(images.shape)}")
        if is_in_backward():
            return self._draws.augmentation(images, self._draws.repeat(images))
        if isinstance(images, Tensor) and not len(images):
            self._watch.masked()
            return images
        if self._strength is not None and not self._strength.set(self._draws.steps):
            self._watch.masked()
            return images
        if self._learns:
            self._queue.check_room()
        else:
            self._queue.make_room()
        if images.is_floating_point() and images.device != self.learner.device:
            self.learner.to(images.device)
        sample = self._draws.draw(images, with_graph=self._learning and self._learns)
        masked = self._draws.augmentation(images, sample)
        if self._size is None:
            self.augmentation.check(images)
        self._size = tuple(images.shape[2:])
        self._queue.push(sample)
        self._watch.masked()
        self._masked = True
        return masked

    def observe(self, per_sample_loss: Tensor, *, valid: Tensor | None = None, index: Any = None) -> Tensor:
        """Tell the policy the loss of each image of a masked batch.

        If the loss's autograd graph leads to an output of the hooked model, the loss belongs to that batch. Otherwise
        it belongs to the oldest batch that still waits for its loss.

        Args:
            per_sample_loss: One loss per image, with or without gradient.
            valid: Which losses count, bool; by default all.
            index: Needed if there is not exactly one loss per image of one batch. For each loss, the number of its
                image, or -1 for none. Or a list of (forward, index) pairs, where forward 0 is the oldest waiting batch
                and -1 the newest.

        Shape:
            - per_sample_loss: (B,), or (N,) with an index.
            - valid, index: the same.

        Returns:
            The loss to train on: the same loss, or with the paper's estimator the scaled one. While :meth:`paused`, the
            loss is returned unchanged and not observed.

        Raises:
            RuntimeError: If no masked batch waits for a loss.
            ValueError: If there is not one loss per image.
        """
        if not isinstance(per_sample_loss, Tensor):
            raise TypeError(f"per_sample_loss must be a tensor of shape (B,), got {type(per_sample_loss).__name__}")
        if self._paused or not per_sample_loss.numel():
            return per_sample_loss
        if self._queue and per_sample_loss.ndim != 1:
            check_loss(self._queue.newest.sample, per_sample_loss)
        if index is None:
            matches = self._queue.find([per_sample_loss])
        else:
            matches = self._queue.given(index, len(per_sample_loss), [per_sample_loss])
        if not matches:
            raise RuntimeError(
                "observe was called but no masked batch waits for this loss: mask one first (hook.apply(images), or a "
                "forward of the hooked model in training mode with gradients on), and observe it once, before the step"
            )
        for match in matches:
            if match.index is None:
                check_loss(match.pending.sample, per_sample_loss)
        factor = self._observe(matches, lambda: _given(per_sample_loss, valid), by_hand=True)
        return per_sample_loss if factor is None else per_sample_loss * factor

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Neither mask nor observe inside this block."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def step(self, lr: float | None = None) -> None:
        """Step the policy. Call it only if your loop has no torch optimizer, after each of the loop's own steps.

        Args:
            lr: The loop's current learning rate, which the policy's rate follows. None keeps the policy's rate at its
                peak.
        """
        self._step({} if lr is None else {"lr": lr})

    # -- details -------------------------------------------------------------------------------------------------------

    @property
    def _learns(self) -> bool:
        return not self.learner.frozen

    @property
    def _learning(self) -> bool:
        """Whether the policy learns from this window (``update_every``). All ranks agree."""
        return self._draws.steps % self.learner.update_every == 0

    def _observe(
        self, matches: Sequence[Match], losses: Callable[[], SampleLosses], *, by_hand: bool = False
    ) -> Tensor | None:
        """Pass the losses of batches to the learner. They are not computed if nothing is learned from them."""
        if not matches:
            return None
        factors = []
        if self._learning and (self._learns or by_hand):
            found = losses()
            for match in matches:
                values, valid = match.gather(found.values, found.valid)
                factors.append(self.learner.observe(match.pending.sample, values, valid))
        else:
            factors = [self.learner.loss_scale(match.pending.sample) for match in matches]
        for match in matches:
            self._queue.pop(match.pending)
        known = [factor for factor in factors if factor is not None]
        return torch.stack(known).mean() if len(known) > 1 else next(iter(known), None)

    def _step(self, group: Mapping[str, Any]) -> None:
        self._watch.first_step(self._describe)
        if self._learning:
            self.learner.step(group)
        else:
            self.learner.skip(group)
        self._draws.advance()
        # The policy has changed, so the graphs of earlier masks are no longer valid.
        self._queue.invalidate()
        self._watch.stepped(paused=bool(self._paused))

    def _describe(self) -> str:
        how = "observe()" if self._splitter is None else f"{type(self._splitter.criterion).__name__}, {self._splitter}"
        shape = "no images yet" if self._size is None else f"images of {' x '.join(map(str, self._size))} px"
        stepping = "hook.step()" if self._stepping is None else type(self._stepping).__name__
        return f"{type(self.augmentation).__name__} on {shape}; losses: {how}; steps with {stepping}"

    def _equalize(self) -> None:
        """Copy the first rank's policy and seed to all ranks, with one broadcast when the hook is made."""
        content: list[Any] = [self.augmentation.state_dict(), self._draws.seed]
        dist.broadcast_object_list(content)
        self.augmentation.load_state_dict(content[0])
        self._draws.seed = content[1]


def _given(losses: Tensor, valid: Tensor | None) -> SampleLosses:
    values = losses.detach().float()
    return SampleLosses(values if valid is None else torch.where(valid, values, 0.0), valid)
