"""What the hook drives: a random transform of images with a log-probability."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Sample", "StochasticAugmentation"]


@dataclass(frozen=True)
class Sample:
    """One draw for a batch. Passed to its augmentation again, it repeats the same transform.

    Subclasses add the fields that are needed for that.

    Args:
        log_prob: Log-probability of each image's draw, (B,), differentiable in the augmentation's parameters. None if
            there is nothing to learn.
        applied: Which images are transformed, (B,) bool. The others are returned unchanged, bit for bit.
    """

    log_prob: Tensor | None
    applied: Tensor

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "entropy" in cls.__annotations__:
            raise TypeError(f"{cls.__name__}.entropy must be a property that computes it, not a field")

    @property
    def entropy(self) -> Tensor | None:
        """Entropy of each image's distribution in nats, (B,), differentiable; None if it is not known."""
        return None

    @property
    def actions(self) -> int:
        """Number of independent actions in each draw, such as a mask's cells; the unit of ``entropy_target``."""
        return 1

    @property
    def is_scored(self) -> bool:
        """Whether ``log_prob`` is stored. A subclass may leave it out and compute it when it is read."""
        return True

    @property
    def has_graph(self) -> bool:
        """Whether the draw can be differentiated in the augmentation's parameters."""
        return self.log_prob is not None and self.log_prob.requires_grad

    def finite(self) -> Tensor | None:
        """Which draws have a finite log-probability, (B,) bool; None if all have one."""
        return None if self.log_prob is None else self.log_prob.detach().isfinite()

    def surrogate(self, weight: Tensor, entropy_weight: Tensor | None = None) -> tuple[list[Tensor], list[Tensor]]:
        r"""What :func:`torch.autograd.grad` takes to differentiate a weighted sum over the images.

        .. math:: \sum_i w_i \log p(a_i \mid x_i) - c_i H_i

        A subclass whose gradient has a closed form may return it, instead of having autograd derive it.

        Args:
            weight: The factor w of each log-probability.
            entropy_weight: The factor c of each entropy; None for no bonus.

        Shape:
            - weight, entropy_weight: (B,).

        Returns:
            ``outputs`` and ``grad_outputs``: tensors of the graph, and the derivative of the sum in each of them.

        Raises:
            TypeError: If the sample lacks what is weighted.
        """
        name = type(self).__name__
        if self.log_prob is None:
            raise TypeError(f"{name} has no log_prob to learn from: pass frozen=True")
        if entropy_weight is None:
            return [self.log_prob], [weight]
        entropy = self.entropy
        if entropy is None:
            raise TypeError(
                f"entropy_coef and entropy_target need an entropy, which {name} does not have: give it a property "
                "entropy of shape (B,)"
            )
        return [self.log_prob, entropy], [weight, -entropy_weight]

    def detach(self) -> "Sample":
        """The same draw without its graph."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "log_prob" or self.is_scored]
        values = {name: getattr(self, name) for name in names}
        kept: dict[str, Any] = {name: v.detach() for name, v in values.items() if isinstance(v, Tensor)}
        return dataclasses.replace(self, **{"log_prob": None, **kept})


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
