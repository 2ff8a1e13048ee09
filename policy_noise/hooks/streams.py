"""Draws with random numbers of the hook's own, so that the user's generators stay as they are."""

import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..augmentation import Drawing, Sample
from ..losses import plain_tensor
from ..utils.compat import is_saved_elsewhere, own_graph
from ..utils.distributed import is_distributed

__all__ = ["Draws", "derived_seed", "own_randomness"]

RECENT = 64
"""Draws since the last step that activation checkpointing can repeat."""


class Draws:
    """Draws for batches, each from a generator that is seeded by its place: seed, rank, step and number in the step.

    Four numbers say it all, so that any rank's checkpoint resumes all ranks. Equal seeds on all ranks, which loops set
    as often as not, still give each rank draws of its own.

    Args:
        augmentation: What draws, or its compiled form.
        generator: Draw from this one instead; None derives the seed from ``torch.initial_seed()``.
    """

    def __init__(self, augmentation: Drawing, generator: torch.Generator | None) -> None:
        self.augmentation = augmentation
        self.generator = generator
        self.seed = torch.initial_seed()
        self.steps = 0
        self._number = 0
        self._equal = is_distributed()
        self._recent: deque[tuple[weakref.ref[Tensor], tuple[Any, ...], Sample]] = deque(maxlen=RECENT)

    def draw(self, images: Tensor, *, with_graph: bool) -> Sample:
        """Draw for a batch, by default with the graph of the policy.

        Raises:
            RuntimeError: If the process group came after the hook.
        """
        seed = self._next_seed()
        generator = self.generator or torch.Generator(images.device).manual_seed(seed)
        # Dropout in a policy, or an augmentation that does not use the generator, draws from the global ones.
        isolated = nullcontext() if self.augmentation.uses_generator else own_randomness(images.device, seed)
        with own_graph(), torch.set_grad_enabled(with_graph), isolated:
            # A subclass (MONAI's MetaTensor) would go on through the policy into its gradients and its checkpoint.
            sample = self.augmentation.sample(plain_tensor(images), generator)
        check_sample(self.augmentation, sample, len(images), with_graph=with_graph)
        if is_saved_elsewhere():  # checkpointing may run this forward again
            self._recent.append((weakref.ref(images), _place(images), sample.detach()))
        return sample

    def repeat(self, images: Tensor) -> Sample:
        """The draw that these images had already, for activation checkpointing, which recomputes the hooked model.

        Raises:
            RuntimeError: If they had none, or several.
        """
        place = _place(images)
        # Where memory was used again the older images are gone.
        drawn = [sample for of, at, sample in self._recent if of() is images or (at == place and of() is not None)]
        if len(drawn) > 1:
            raise RuntimeError(
                f"{len(drawn)} forwards of the hooked model under torch.utils.checkpoint had the very same tensor, "
                "and which of their masks to repeat is not known: give each its own copy, model(images.clone())"
            )
        if drawn:
            return drawn[0]
        raise RuntimeError(
            "the hooked model itself runs under torch.utils.checkpoint, which cannot replay its masks here: "
            "checkpoint the blocks inside the model, or use use_reentrant=False"
        )

    def advance(self) -> None:
        """The next step begins."""
        self.steps += 1
        self._number = 0
        self._recent.clear()

    def restore(self, seed: int, steps: int) -> None:
        """Go on where others were."""
        self.seed, self.steps, self._number = seed, steps, 0
        self._recent.clear()

    def _next_seed(self) -> int:
        rank = 0
        if is_distributed():
            if not self._equal:
                raise RuntimeError(
                    "the hook was made before torch.distributed.init_process_group, so that each rank has a policy of "
                    "its own: attach after it"
                )
            rank = dist.get_rank()
        self._number += 1
        return derived_seed(self.seed, rank, self.steps, self._number - 1)


def derived_seed(seed: int, *place: int) -> int:
    """A seed for a place: one step of a linear congruential generator (Knuth's MMIX) for each number."""
    for part in place:
        seed = (seed * 6364136223846793005 + part + 1442695040888963407) % 2**64
    return seed >> 1


def check_sample(augmentation: object, sample: Any, batch: int, *, with_graph: bool) -> None:
    """Refuse a draw that the hook cannot learn from, naming what a subclass lacks.

    Raises:
        TypeError: If it is no sample, or has no log-probability.
        ValueError: If its length or its graph is wrong.
    """
    name = f"{type(augmentation).__name__}.sample"
    if not isinstance(sample, Sample):
        raise TypeError(f"{name} must return a policy_noise.Sample, got {type(sample).__name__}")
    for field in ("log_prob", "applied") if with_graph and sample.is_scored else ("applied",):
        value = getattr(sample, field)
        if not isinstance(value, Tensor) or value.shape != (batch,):
            shape = tuple(value.shape) if isinstance(value, Tensor) else value
            raise ValueError(f"{name} must give {field} of shape ({batch},), one for each image, got {shape}")
    if sample.applied.dtype != torch.bool:
        raise ValueError(f"{name} must give applied as bool, got {sample.applied.dtype}")
    if with_graph and not sample.has_graph:
        raise ValueError(
            f"{name} gave a log_prob without a graph: compute it from the augmentation's parameters with gradients, or "
            "pass frozen=True"
        )


def _place(images: Tensor) -> tuple[Any, ...]:
    return images.data_ptr(), images.shape, images.dtype, images.device


@contextmanager
def own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Run a block that draws from torch's global generators, seeded, and put these back.

    Args:
        device: Besides the CPU's generator, this device's is kept.
        seed: Of the block.
    """
    kept = torch.get_rng_state()
    kept_cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    torch.default_generator.manual_seed(seed)
    if kept_cuda is not None:
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(kept)
        if kept_cuda is not None:
            torch.cuda.set_rng_state(kept_cuda, device)
