"""The mask module: a policy, a distribution and a rendering."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import functional as PF
from .policy import create_policy
from .presets import get_preset

__all__ = ["MaskSample", "PolicyNoiseMask"]

MIN_CONCENTRATION = 0.05
MAX_CONCENTRATION = 100.0


@dataclass(frozen=True)
class MaskSample:
    """One draw of masks for a batch, complete: given back to the module it replays the same masks.

    Args:
        action: Sampled values in (0, 1), detached, (B, 1, *grid).
        concentration1: Alpha of each cell, (B, 1, *grid).
        concentration0: Beta of each cell, (B, 1, *grid).
        log_prob: Log-probability of each image's whole action, (B,), differentiable in the policy.
        applied: Which images are masked, (B,) bool.
    """

    action: Tensor
    concentration1: Tensor
    concentration0: Tensor
    log_prob: Tensor
    applied: Tensor

    @property
    def entropy(self) -> Tensor:
        """Entropy in nats of each image's distribution, (B,), differentiable in the policy; computed when read."""
        return PF.beta_entropy(self.concentration1, self.concentration0).flatten(1).sum(1)

    def cell_log_prob(self) -> Tensor:
        """Log density of each cell, (B, cells): what :func:`policy_noise.functional.paper_objective` takes."""
        return PF.beta_log_prob(self.action, self.concentration1, self.concentration0).flatten(1)

    def detach(self) -> "MaskSample":
        """The same sample without its graph."""
        return MaskSample(**{name: value.detach() for name, value in vars(self).items()})


class PolicyNoiseMask(nn.Module):
    """Multiply each training image by a noise mask that a policy draws for it.

    The policy looks at the image and gives a Beta distribution for each cell of a grid; one action a cell is drawn,
    the grid is enlarged to the image and blurred, and the image is multiplied by it. In eval mode the module is the
    identity. It trains nothing by itself: see :func:`policy_noise.attach`, :class:`policy_noise.ReinforceHook`, or
    :func:`policy_noise.functional.reinforce_loss` for a loop of your own.

    Args:
        in_chans: Channels of the images.
        grid_size: Cells along each axis; a tuple of two for images, of three for volumes (B, C, D, H, W). One cell has
            no pattern: it needs ``mask_std=None``, and a ``level_std`` or ``mean_preserving=False``.
        kernel_size: Blur kernel in pixels; by default it follows sigma.
        sigma: Blur sigma in pixels; by default a third of a cell.
        policy: ``"spatial"`` (a few convolutions on a thumbnail), ``"static"`` (one distribution for all images), the
            name of a timm backbone (the paper's is ``"resnet10t"``), or a module; see :mod:`policy_noise.policy`.
        p: Probability that an image is masked.
        strength: How far the mask moves from 1; 0 switches it off.
        mean_preserving: Divide each mask by its own mean, so that it changes where the light is and not how much.
        mask_std: Also give each mask this standard deviation (at full ``strength``), a fixed dose: the policy then
            decides where the mask varies, and can neither switch it off nor make it a spotlight. None leaves the
            deviation to the policy.
        level_std: Also brighten or darken each image as a whole: let the mean of its mask vary about 1, its logarithm
            with this standard deviation where the mask is unlearned; see :func:`policy_noise.functional.mask_level`.
        domain: ``"intensity"`` multiplies intensities, so that 0 means black and the mask is a bias field;
            ``"normalized"`` multiplies the normalised image as it is, so that 0 means the mean grey (the paper's).
        mean: The images' normalisation, one number or one a channel: with ``std`` it says where black is. Without
            them, black is each image's own smallest value in each channel.
        std: See ``mean``.

    Shape:
        - images: (B, in_chans, H, W), or (B, in_chans, D, H, W) with a grid of three axes; floating point. One image
          without the first axis is a batch of one, so that the module fits into a data set's transforms.
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

    black: Tensor | None

    def __init__(
        self,
        in_chans: int = 3,
        grid_size: int | Sequence[int] = 2,
        kernel_size: int | None = None,
        sigma: float | None = None,
        *,
        policy: str | nn.Module = "spatial",
        p: float = 0.5,
        strength: float = 1.0,
        mean_preserving: bool = True,
        mask_std: float | None = 0.1,
        level_std: float = 0.2,
        domain: Literal["intensity", "normalized"] = "intensity",
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.grid_size = _grid(grid_size)
        if not isinstance(in_chans, int) or in_chans < 1:
            raise ValueError(f"in_chans must be a positive integer, got {in_chans!r}")
        for name, value in (("p", p), ("strength", strength)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must lie in [0, 1], got {value!r}")
        if mask_std is not None and not 0.0 < mask_std <= 1.0:
            raise ValueError(f"mask_std must lie in (0, 1], got {mask_std!r}")
        if not 0.0 <= level_std <= 1.0:
            raise ValueError(f"level_std must lie in [0, 1], got {level_std!r}")
        if not mean_preserving and (mask_std is not None or level_std):
            raise ValueError(
                "mean_preserving=False leaves the masks' deviation and mean to the policy: pass mask_std=None and "
                f"level_std=0 with it, got mask_std={mask_std!r} and level_std={level_std!r}"
            )
        if math.prod(self.grid_size) == 1 and (mask_std is not None or (mean_preserving and not level_std)):
            raise ValueError(
                f"grid_size={grid_size!r} is one cell, in which no mask of mean 1 can vary, got mask_std={mask_std!r} "
                f"and level_std={level_std!r}: take more cells, or mask_std=None and a level_std"
            )
        if domain not in ("intensity", "normalized"):
            raise ValueError(f"domain must be 'intensity' or 'normalized', got {domain!r}")
        # A side of any length stands for the image, whose size is known later: this checks the numbers alone.
        PF.blur_parameters((10**6,), (1,), kernel_size, sigma)
        self.in_chans = in_chans
        self.kernel_size = kernel_size
        self.sigma = sigma
        self.p = p
        self.strength = strength
        self.mean_preserving = mean_preserving
        self.mask_std = mask_std
        self.level_std = level_std
        self.domain = domain
        self.policy = create_policy(policy, in_chans, self.grid_size)
        # Not persistent: a policy's checkpoint says nothing about the normalisation of the next user's images.
        self.register_buffer("black", self._black_level(mean, std), persistent=False)

    @classmethod
    def from_preset(cls, preset: str = "default", in_chans: int = 3, **overrides: Any) -> "PolicyNoiseMask":
        """Build a mask from a preset's settings, any of which can be overridden.

        Args:
            preset: ``"default"``, ``"augment"`` or ``"paper"``.
            in_chans: Channels of the images.
            overrides: Arguments of the class.

        Raises:
            ValueError: If there is no preset of that name.
        """
        return cls(in_chans=in_chans, **{**get_preset(preset).mask, **overrides})

    def _black_level(self, mean: Any, std: Any) -> Tensor | None:
        if (mean is None) != (std is None):
            raise ValueError(f"mean and std belong together, got mean={mean!r} and std={std!r}")
        if mean is None or self.domain == "normalized":
            return None
        values = []
        for name, value in (("mean", mean), ("std", std)):
            tensor = torch.as_tensor(value, dtype=torch.float32).flatten()
            if tensor.numel() not in (1, self.in_chans) or not bool(torch.isfinite(tensor).all()):
                raise ValueError(f"{name} must be one finite number or {self.in_chans} (in_chans), got {value!r}")
            values.append(tensor)
        if bool((values[1] <= 0).any()):
            raise ValueError(f"std must be positive, got {std!r}")
        black = (-values[0] / values[1]).expand(self.in_chans)
        return black.reshape(1, self.in_chans, *[1] * len(self.grid_size)).clone()

    def _as_batch(self, images: Tensor) -> Tensor:
        """The images, one of them as a batch of one; refused where the mask does not fit them."""
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor, got {type(images).__name__}")
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point (and normalised), got dtype {images.dtype}")
        axes = len(self.grid_size)
        batch = images.unsqueeze(0) if images.ndim == axes + 1 else images
        if batch.ndim != axes + 2 or batch.shape[1] != self.in_chans:
            layout = "(B, C, H, W) or (C, H, W)" if axes == 2 else "(B, C, D, H, W) or (C, D, H, W)"
            shape = tuple(images.shape)
            raise ValueError(f"images must have shape {layout} with C = {self.in_chans}, got {shape}")
        size = batch.shape[2:]
        if any(pixels < cells for pixels, cells in zip(size, self.grid_size, strict=True)):
            raise ValueError(
                f"grid_size {self.grid_size} does not fit images of size {tuple(size)}: "
                "every cell needs a pixel; choose a smaller grid_size"
            )
        # Before anything is drawn, so that a refusal leaves policy and random state as they were.
        PF.blur_parameters(size, self.grid_size, self.kernel_size, self.sigma)
        return batch

    def sample(self, images: Tensor, generator: torch.Generator | None = None) -> MaskSample:
        """Draw masks for a batch. The policy runs in fp32, whatever the images' dtype and autocast.

        Args:
            images: A batch, or one image; see the class.
            generator: Source of randomness on the images' device; by default the global one.

        Returns:
            The sample, whose ``log_prob`` and ``entropy`` carry the policy's graph.
        """
        images = self._as_batch(images)
        with torch.autocast(images.device.type, enabled=False):
            log_concentration1, log_concentration0 = self.policy(images)
            expected = (images.shape[0], 1, *self.grid_size)
            if log_concentration1.shape != expected or log_concentration0.shape != expected:
                raise ValueError(
                    f"policy must give two tensors of shape {expected} (grid_size), got "
                    f"{tuple(log_concentration1.shape)} and {tuple(log_concentration0.shape)}"
                )
            # As one tensor, so that each step is one kernel for both, also backwards; in the sampler's layout.
            logarithms = torch.stack([log_concentration1, log_concentration0], dim=-1).float()
            low, high = math.log(MIN_CONCENTRATION), math.log(MAX_CONCENTRATION)
            concentration, action, log_prob = PF.draw(logarithms, low, high, generator)
            concentration1, concentration0 = concentration.unbind(-1)
            if self.p < 1.0:
                # torch.rand, in the form that compilers take with a batch of any size.
                chance = torch.empty(images.shape[0], device=images.device).uniform_(generator=generator)
                applied = chance < self.p
            else:
                applied = torch.ones(images.shape[0], device=images.device, dtype=torch.bool)
            return MaskSample(
                action=action,
                concentration1=concentration1,
                concentration0=concentration0,
                log_prob=log_prob,
                applied=applied,
            )

    def render(self, sample: MaskSample, size: Sequence[int]) -> Tensor:
        """The factor that each pixel is multiplied by, (B, 1, H, W): 1 where an image is not masked."""
        return PF.noise_mask(
            sample.action.new_ones(len(sample.action), 1, *size),
            sample.action,
            **self._rendering(),
            applied=sample.applied,
        )

    def _rendering(self) -> dict[str, Any]:
        return {
            "kernel_size": self.kernel_size,
            "sigma": self.sigma,
            "strength": self.strength,
            "mean_preserving": self.mean_preserving,
            "mask_std": self.mask_std,
            "level_std": self.level_std,
        }

    def forward(self, images: Tensor, sample: MaskSample | None = None) -> Tensor:
        """Mask a batch.

        Args:
            images: A batch, or one image; see the class.
            sample: Replay these masks, in either mode. Without it masks are drawn in training mode only.

        Returns:
            The masked images, or in eval mode without a sample the very same tensor.
        """
        if sample is None and not self.training:
            return images
        batch = self._as_batch(images)
        if sample is None:
            sample = self.sample(batch)
        elif len(sample.action) != len(batch):
            raise ValueError(f"sample holds {len(sample.action)} masks, got {len(batch)} images")
        black = None
        if self.domain == "intensity":
            black = self.black if self.black is not None else _darkest(batch)
        masked = PF.noise_mask(batch, sample.action, **self._rendering(), black=black, applied=sample.applied)
        return masked.squeeze(0) if images.ndim < batch.ndim else masked

    def extra_repr(self) -> str:
        names = (
            "in_chans",
            "grid_size",
            "kernel_size",
            "sigma",
            "p",
            "strength",
            "mean_preserving",
            "mask_std",
            "level_std",
            "domain",
        )
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _darkest(images: Tensor) -> Tensor:
    return images.detach().amin(dim=tuple(range(2, images.ndim)), keepdim=True)


def _grid(grid_size: int | Sequence[int]) -> tuple[int, ...]:
    grid: tuple[Any, ...] = (grid_size, grid_size)
    if isinstance(grid_size, Sequence):
        grid = tuple(grid_size)
    if len(grid) not in (2, 3) or any(not isinstance(cells, int) or cells < 1 for cells in grid):
        raise ValueError(f"grid_size must be a positive integer or two or three of them, got {grid_size!r}")
    return grid
