"""What the hook drives: a random transform of images with a log-probability."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Sample", "StochasticAugmentation"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One draw for a batch. Passed to its augmentation again, it repeats the same transform.

    A frozen dataclass that is derived from it adds the fields that are needed for that.

    Args:
        log_prob: Log-probability of each image's draw, (B,), differentiable in the augmentation's parameters. None if
            there is nothing to learn.
        applied: Which images are transformed, (B,) bool. The others are returned unchanged, bit for bit.
        entropy: Entropy of each image's distribution in nats, (B,), differentiable. Only ``entropy_coef`` and
            ``entropy_target`` need it.

    Example:
        >>> log_prob = torch.zeros(4, requires_grad=True)
        >>> sample = Sample(log_prob=log_prob, applied=torch.tensor([True, False, True, True]))
        >>> sample.detach().log_prob.requires_grad
        False
    """

    log_prob: Tensor | None
    applied: Tensor
    entropy: Tensor | None = None

    @property
    def actions(self) -> int:
        """Number of independent actions in each draw, such as a mask's cells; the unit of ``entropy_target``."""
        return 1

    def detach(self) -> "Sample":
        """The same draw without its graph."""
        detached: dict[str, Any] = {name: tensor.detach() for name, tensor in tensors_of(self).items()}
        return dataclasses.replace(self, **detached)


def tensors_of(sample: Sample) -> dict[str, Tensor]:
    """The fields of a draw that are tensors, by name."""
    values = {field.name: getattr(sample, field.name) for field in dataclasses.fields(sample)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


class StochasticAugmentation(nn.Module):
    """A random transform of training images that :class:`policy_noise.ReinforceHook` can train.

    A subclass draws in :meth:`sample` and transforms in :meth:`transform`. The transform need not be differentiable:
    REINFORCE needs only the log-probability. In eval mode the module is the identity.

    Shape:
        - images: (B, C, H, W), or (B, C, D, H, W) with ``spatial_dims = 3``; floating point.
        - Output: the same.

    Example:
        >>> class RandomGain(StochasticAugmentation):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.logit = nn.Parameter(torch.zeros(()))
        ...
        ...     def sample(self, images, generator=None):
        ...         bright = torch.rand(len(images), generator=generator) < self.logit.sigmoid()
        ...         log_prob = torch.where(bright, self.logit.sigmoid(), 1 - self.logit.sigmoid()).log()
        ...         return Sample(log_prob=log_prob, applied=bright)
        ...
        ...     def transform(self, images, sample):
        ...         return 1.5 * images
        >>> images = torch.rand(2, 3, 8, 8)
        >>> torch.equal(RandomGain().eval()(images), images)
        True
    """

    spatial_dims: int = 2
    largest_entropy: float = math.inf
    """Largest entropy of one action in nats, which ``entropy_target`` cannot exceed."""
    uses_generator: bool = False
    """Whether :meth:`sample` draws from its generator alone. Where it may not, the hook guards the global ones too."""

    def sample(self, images: Tensor, generator: torch.Generator | None = None) -> Sample:
        """Draw for a batch.

        Args:
            images: The batch.
            generator: Source of randomness; the hook passes one of its own.

        Returns:
            The draw, whose ``log_prob`` carries the graph of the augmentation's parameters.
        """
        raise NotImplementedError(f"{type(self).__name__} must define sample(images, generator)")

    def transform(self, images: Tensor, sample: Sample) -> Tensor:
        """Transform a batch as drawn: every image, also those that are not ``applied``."""
        raise NotImplementedError(f"{type(self).__name__} must define transform(images, sample)")

    def forward(self, images: Tensor, sample: Sample | None = None) -> Tensor:
        """Transform a batch.

        Args:
            images: The batch.
            sample: Repeat this draw, in either mode. Without it the module draws, and only in training mode.

        Returns:
            The transformed images. In eval mode and without a sample, the very same tensor.
        """
        if sample is None:
            if not self.training:
                return images
            sample = self.sample(images)
        applied = sample.applied.view(-1, *[1] * (images.ndim - 1))
        return torch.where(applied, self.transform(images, sample), images)

    def describe(self, sample: Sample | None, size: Sequence[int] | None) -> dict[str, float]:
        """Numbers for ``hook.metrics`` about the last draw, at the last image's size; by default none.

        Both are None before there is a draw: the keys are the same then, and the values NaN.
        """
        return {}

    def check(self, images: Tensor) -> None:
        """Look at the first batch with a finite value, and warn if the settings do not fit the images."""
