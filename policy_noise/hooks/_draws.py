"""What is drawn for each batch: from which of the hook's own random streams, and at which strength."""

import dataclasses
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..augmentation import Sample, StochasticAugmentation, tensors_of
from ..losses import plain_tensor
from ..utils.compat import is_saved_elsewhere, own_graph
from ..utils.misc import is_distributed

__all__ = ["Draws", "StrengthSchedule", "derived_seed", "joined", "own_randomness"]

RECENT = 64
"""How many draws since the last step are kept, so that activation checkpointing can repeat them."""


@dataclass(frozen=True)
class StrengthSchedule:
    """Ramp the masks' strength up over the first steps, and switch masks off for the last ones.

    Args:
        total_steps: Optimizer steps of the whole training.
        warmup: Share of the steps, at the start, over which the strength rises linearly.
        clean: Share of the steps, at the end, without masks.

    Example:
        >>> schedule = StrengthSchedule(total_steps=100, warmup=0.1, clean=0.25)
        >>> [schedule(step) for step in (0, 4, 50, 75)]
        [0.1, 0.5, 1.0, 0.0]
    """

    total_steps: int
    warmup: float = 0.0
    clean: float = 0.25

    def __post_init__(self) -> None:
        if self.total_steps < 1:
            raise ValueError(f"total_steps must be positive, got {self.total_steps!r}")
        for name, value in (("warmup", self.warmup), ("clean", self.clean)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {value!r}")
        if self.warmup + self.clean > 1.0:
            raise ValueError(f"warmup and clean must leave some steps, got {self.warmup!r} and {self.clean!r}")

    def __call__(self, step: int) -> float:
        """Return the share of the full strength at a step. Steps count from 0."""
        if step >= self.total_steps * (1.0 - self.clean):
            return 0.0
        rising = self.total_steps * self.warmup
        return 1.0 if step + 1 >= rising else (step + 1) / rising


class Draws:
    """Draw for batches. Each draw has its own generator, seeded from seed, rank, step and number within the step.

    These four numbers determine every draw, so the checkpoint of any rank resumes all ranks. Ranks get different draws
    even if the loop seeds them all alike, as many loops do.

    Args:
        augmentation: The augmentation that draws.
        generator: Draw from this generator instead. None derives the seed from ``torch.initial_seed()``.
        number: Number of the hook among those with one optimizer, whose draws differ.
        schedule: Share of the augmentation's ``strength`` at each step.

    Raises:
        TypeError: If there is a schedule, but it is no function or the augmentation has no strength.
    """

    def __init__(
        self,
        augmentation: StochasticAugmentation,
        generator: torch.Generator | None,
        number: int = 0,
        schedule: Callable[[int], float] | None = None,
    ) -> None:
        self.augmentation = augmentation
        self._schedule = schedule
        self._strength: Any = getattr(augmentation, "strength", None)
        if schedule is not None and not callable(schedule):
            raise TypeError(
                "strength_schedule must be a function of the step, such as StrengthSchedule(total_steps), got "
                f"{schedule!r}: for a constant strength pass strength=..."
            )
        if schedule is not None and not isinstance(self._strength, float | int):
            raise TypeError(f"strength_schedule needs a strength, but {type(augmentation).__name__} has none")
        self.generator = generator
        self.seed = derived_seed(torch.initial_seed(), 2 * number) if number else torch.initial_seed()
        self.steps = 0
        self._number = 0
        self._equal = is_distributed()
        self._recent: deque[tuple[weakref.ref[Tensor], tuple[Any, ...], Sample]] = deque(maxlen=RECENT)

    def set_strength(self) -> bool:
        """Set the augmentation's strength for this step. Returns False if it is 0, so that nothing is to be masked."""
        if self._schedule is None:
            return True
        strength = self._strength * float(self._schedule(self.steps))
        self.augmentation.strength = strength  # type: ignore[assignment]
        return strength > 0

    def restore_strength(self) -> None:
        """Restore the full strength."""
        if self._schedule is not None:
            self.augmentation.strength = self._strength

    def draw(self, images: Tensor, *, with_graph: bool) -> Sample:
        """Draw for a batch.

        Args:
            images: The batch.
            with_graph: Keep the policy's graph, to learn from this draw.

        Raises:
            RuntimeError: If the process group was initialized after the hook was made.
        """
        seed = self._next_seed()
        generator = self.generator or torch.Generator(images.device).manual_seed(seed)
        # Dropout in a policy, and augmentations that do not use the generator, draw from the global generators.
        isolated = nullcontext() if self.augmentation.uses_generator else own_randomness(images.device, seed)
        with own_graph(), torch.set_grad_enabled(with_graph), isolated:
            # A tensor subclass (MONAI's MetaTensor) would end up in the policy's gradients and its checkpoint.
            sample = self.augmentation.sample(plain_tensor(images), generator)
        _check_sample(self.augmentation, sample, len(images), with_graph=with_graph)
        if is_saved_elsewhere():  # checkpointing may repeat this forward pass
            self._recent.append((weakref.ref(images), _place(images), sample.detach()))
        return sample

    def repeat(self, images: Tensor) -> Sample:
        """Return the earlier draw for the same images. Activation checkpointing recomputes the hooked model with them.

        Raises:
            RuntimeError: If there was none, or more than one.
        """
        place = _place(images)
        # If memory was reused, the older images no longer exist.
        drawn = [sample for of, at, sample in self._recent if of() is images or (at == place and of() is not None)]
        if len(drawn) > 1:
            raise RuntimeError(
                f"{len(drawn)} forwards of the hooked model under torch.utils.checkpoint had the very same tensor, so "
                "it is not known which of their masks to repeat: give each its own copy, model(images.clone())"
            )
        if drawn:
            return drawn[0]
        raise RuntimeError(
            "the hooked model itself runs under torch.utils.checkpoint, where its masks cannot be repeated: "
            "checkpoint the blocks inside the model, or pass use_reentrant=False"
        )

    def advance(self) -> None:
        """Go on to the next step."""
        self.steps += 1
        self._number = 0
        self._recent.clear()

    def restore(self, seed: int, steps: int) -> None:
        """Continue from a saved seed and step."""
        self.seed, self.steps, self._number = seed, steps, 0
        self._recent.clear()

    def _next_seed(self) -> int:
        rank = 0
        if is_distributed():
            if not self._equal:
                raise RuntimeError(
                    "the hook was made before torch.distributed.init_process_group, so each rank has its own policy: "
                    "attach after it"
                )
            rank = dist.get_rank()
        self._number += 1
        return derived_seed(self.seed, rank, self.steps, 2 * (self._number - 1))


def joined(samples: Sequence[Sample]) -> Sample:
    """One sample with the images of several."""
    if len(samples) == 1:
        return samples[0]
    tensors: dict[str, Any] = {
        name: torch.cat([getattr(sample, name) for sample in samples]) for name in tensors_of(samples[0])
    }
    return dataclasses.replace(samples[0], **tensors)


def derived_seed(seed: int, *place: int) -> int:
    """Derive a seed from numbers: one step of a linear congruential generator (Knuth's MMIX) for each.

    The lowest bit is dropped at the end. So a last number that counts must count in steps of two.
    """
    for part in place:
        seed = (seed * 6364136223846793005 + part + 1442695040888963407) % 2**64
    return seed >> 1


def _check_sample(augmentation: object, sample: Any, batch: int, *, with_graph: bool) -> None:
    """Check that the hook can learn from a draw. The errors say what a user's subclass must return.

    Raises:
        TypeError: If it is not a sample.
        ValueError: If ``log_prob`` or ``applied`` is missing or has a wrong shape, dtype or graph.
    """
    name = f"{type(augmentation).__name__}.sample"
    if not isinstance(sample, Sample):
        raise TypeError(f"{name} must return a policy_noise.Sample, got {type(sample).__name__}")
    for field in ("log_prob", "applied") if with_graph else ("applied",):
        value = getattr(sample, field)
        if not isinstance(value, Tensor) or value.shape != (batch,):
            shape = tuple(value.shape) if isinstance(value, Tensor) else value
            raise ValueError(f"{name} must return {field} of shape ({batch},), one per image, got {shape}")
    if sample.applied.dtype != torch.bool:
        raise ValueError(f"{name} must return applied as bool, got {sample.applied.dtype}")
    if with_graph and sample.log_prob is not None and not sample.log_prob.requires_grad:
        raise ValueError(
            f"{name} returned a log_prob without a graph: compute it from the augmentation's parameters with gradients "
            "on, or pass frozen=True"
        )


def _place(images: Tensor) -> tuple[Any, ...]:
    return images.data_ptr(), images.shape, images.dtype, images.device


@contextmanager
def own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's global generators for a block, and restore them afterwards.

    Args:
        device: If it is a GPU, its generator is seeded and restored too.
        seed: Seed for the block.
    """
    gpus = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=gpus):
        torch.default_generator.manual_seed(seed)
        for gpu in gpus:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
