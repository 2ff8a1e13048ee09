"""The learned mask: a policy, a Beta distribution and rendering."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from .. import functional as PF
from ..functional.distribution import draw_pairs
from ..functional.rendering import without_autocast
from ..policy import SpatialPolicy, StaticPolicy, create_policy
from ._base import ShadingSample, SmoothMask

__all__ = ["MaskSample", "PolicyNoiseMask"]

LOW, HIGH = math.log(0.05), math.log(100.0)
"""Bounds of the logarithms of alpha and beta."""


@dataclass(frozen=True, kw_only=True)
class MaskSample(ShadingSample):
    """Masks that a policy drew. Passed to the module again, they are the same masks.

    Args:
        log_prob: Log-probability of each image's whole action, (B,), differentiable in the policy.
        applied: Which images are masked, (B,) bool.
        entropy: Entropy of each image's distribution in nats, (B,), differentiable in the policy.
        action: Sampled values in (0, 1), detached, ``(B, 1, *grid)``.
        concentration1: Alpha of each cell, ``(B, 1, *grid)``.
        concentration0: Beta of each cell, ``(B, 1, *grid)``.
        pattern_std: See :class:`ShadingSample`.
        brightness_std: See :class:`ShadingSample`.

    Example:
        >>> sample = PolicyNoiseMask(in_chans=1).sample(torch.rand(2, 1, 16, 16))
        >>> sample.log_prob.shape, sample.cell_log_prob().shape
        (torch.Size([2]), torch.Size([2, 4]))
    """

    concentration1: Tensor
    concentration0: Tensor

    @property
    def expected(self) -> Tensor:
        """Expected value of each cell, alpha / (alpha + beta), detached."""
        with torch.no_grad():  # activation checkpointing counts the tensors that a graph keeps
            return self.concentration1 / (self.concentration1 + self.concentration0)

    @property
    def actions(self) -> int:
        """Cells of each mask."""
        return math.prod(self.action.shape[1:])

    def cell_log_prob(self) -> Tensor:
        """Log density of each cell, (B, cells), for :func:`policy_noise.functional.paper_objective`."""
        return PF.beta_log_prob(self.action, self.concentration1, self.concentration0).flatten(1)


class PolicyNoiseMask(SmoothMask):
    """Multiply each training image by a noise mask that a policy draws for it.

    The policy looks at the image and outputs a Beta distribution for each cell of a grid. One action per cell is drawn.
    The grid is enlarged to the image's size and blurred, and the image is multiplied by it. In eval mode the module
    returns its input.

    The module does not train itself. Use :func:`policy_noise.attach` or :class:`policy_noise.ReinforceHook`, or
    :func:`policy_noise.functional.reinforce_loss` in a loop of your own.

    Args:
        in_chans: Channels of the images.
        grid_size: Cells along each axis; a tuple of two for images, of three for volumes (B, C, D, H, W). A grid of one
            cell has no pattern: it needs ``pattern_std=None``, and a ``brightness_std`` or ``mean_preserving=False``.
        kernel_size: Size of the blur kernel in pixels, one number or one per axis; by default it follows sigma.
        sigma: Standard deviation of the blur in pixels, likewise; by default one third of a cell along each axis.
        policy: ``"spatial"`` (a few convolutions on a thumbnail), ``"static"`` (one distribution for all images), the
            name of a timm backbone (the paper's is ``"resnet10t"``), or a module; see :mod:`policy_noise.policy`.
        p: Probability that an image is masked.
        strength: How far the mask moves from 1; 0 switches it off.
        mean_preserving: Normalize each mask to mean 1.
        pattern_std: Also give each mask this standard deviation across the image (at full ``strength``). The policy
            then decides where the mask is bright. It can neither switch the mask off nor make it a spotlight. With
            None, the policy decides the standard deviation too. A pair (low, high) has each image draw its own,
            uniformly; the policy does not see it.
        brightness_std: Also brighten or darken each image as a whole, by one factor. The factor's logarithm has this
            standard deviation if the mask is random; see :func:`policy_noise.functional.mask_brightness`. A pair
            (low, high) as above.
        center_brightness: Measure the brightness relative to the policy's own expectation. Then no policy can brighten
            or darken images on average. ``preset="learned"`` sets it.
        mean: See :class:`RandomShading`.
        std: See :class:`RandomShading`.
        black: See :class:`RandomShading`. With 0 the mask multiplies the normalized image directly, which pulls it
            towards the mean grey, as the paper does.
        white: See :class:`RandomShading`.
        clip: See :class:`RandomShading`.
        upsample: See :class:`RandomShading`.

    Shape:
        - images: (B, in_chans, H, W), or (B, in_chans, D, H, W) with a grid of three axes; floating point. A single
          image without the first axis works too, so that the module can be one of a data set's transforms.
        - Output: the same shape, dtype, device and memory format.

    Raises:
        ValueError: If a number is out of its range.
        TypeError: If the images are not floating point.

    Example:
        >>> mask = PolicyNoiseMask(in_chans=1)
        >>> images = torch.rand(4, 1, 64, 64)
        >>> sample = mask.sample(images)
        >>> torch.equal(mask(images, sample), mask(images, sample)), torch.equal(mask.eval()(images), images)
        (True, True)
    """

    largest_entropy = 0.0  # of Beta(1, 1)

    def __init__(
        self,
        in_chans: int = 3,
        grid_size: int | Sequence[int] = 2,
        kernel_size: int | Sequence[int] | None = None,
        sigma: float | Sequence[float] | None = None,
        *,
        policy: str | nn.Module = "spatial",
        p: float = 0.5,
        strength: float = 1.0,
        mean_preserving: bool = True,
        pattern_std: float | tuple[float, float] | None = 0.1,
        brightness_std: float | tuple[float, float] = 0.2,
        center_brightness: bool = False,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        black: float | Sequence[float] | Literal["minimum", "percentile"] | None = None,
        white: float | Sequence[float] | None = None,
        clip: bool = False,
        upsample: PF.Upsample = "nearest",
    ) -> None:
        super().__init__(
            in_chans,
            grid_size,
            kernel_size,
            sigma,
            p=p,
            strength=strength,
            mean_preserving=mean_preserving,
            pattern_std=pattern_std,
            brightness_std=brightness_std,
            center_brightness=center_brightness,
            mean=mean,
            std=std,
            upsample=upsample,
            black=black,
            white=white,
            clip=clip,
        )
        # The policy stays fp32 under any default dtype, in a model of any dtype, and under autocast.
        self.policy = create_policy(policy, in_chans, self.grid_size).float()

    @property
    def uses_generator(self) -> bool:  # type: ignore[override]
        """True for policies that draw no random numbers themselves. A backbone may contain dropout."""
        return isinstance(self.policy, SpatialPolicy | StaticPolicy)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PolicyNoiseMask":
        """Move to another device, but keep fp32."""

        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            changed = tensor.is_floating_point() and moved.dtype != tensor.dtype
            return tensor.to(moved.device) if changed else moved

        return super()._apply(keep, recurse)

    def sample(self, images: Tensor, generator: torch.Generator | None = None) -> MaskSample:
        """Draw masks for a batch. The policy always runs in fp32, whatever the images' dtype, even under autocast.

        Args:
            images: A batch, or one image; see the class.
            generator: Source of randomness on the images' device; by default the global one.

        Returns:
            The sample. Its ``log_prob`` and ``entropy`` are part of the policy's graph.

        Example:
            >>> sample = PolicyNoiseMask(in_chans=1).sample(torch.rand(4, 1, 16, 16))
            >>> sample.action.shape, sample.log_prob.requires_grad, sample.action.requires_grad
            (torch.Size([4, 1, 2, 2]), True, False)
        """
        images = self.as_batch(images)
        with without_autocast(images.device.type):
            concentration = PF.bounded_exp(self._logarithms(images), LOW, HIGH)
            action = draw_pairs(concentration, generator)
            batch, device = len(images), images.device
            if self.p < 1.0:
                applied = torch.rand(batch, generator=generator, device=device, dtype=torch.float32) < self.p
            else:
                applied = torch.ones(batch, device=device, dtype=torch.bool)
            own: dict[str, Tensor] = {}
            if self.ranges:
                own = self._within_ranges(torch.rand(batch, len(self.ranges), generator=generator, device=device))
            concentration1, concentration0 = concentration.unbind(-1)
            log_prob, entropy = PF.beta_score(action, concentration1, concentration0)
        return MaskSample(
            action=action,
            concentration1=concentration1,
            concentration0=concentration0,
            log_prob=log_prob,
            entropy=entropy,
            applied=applied,
            **own,
        )

    def _logarithms(self, images: Tensor) -> Tensor:
        log_concentration1, log_concentration0 = self.policy(images)
        expected = (images.shape[0], 1, *self.grid_size)
        if log_concentration1.shape != expected or log_concentration0.shape != expected:
            raise ValueError(
                f"policy must give two tensors of shape {expected} (grid_size), got "
                f"{tuple(log_concentration1.shape)} and {tuple(log_concentration0.shape)}"
            )
        # Stack both in the sampler's layout. Each operation, forward and backward, then needs one kernel for both.
        return torch.stack([log_concentration1, log_concentration0], dim=-1).float()
