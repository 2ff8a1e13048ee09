"""What all smooth masks share, however they are drawn: settings, rendering, multiplication, and where black lies."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from .. import functional as PF
from ..augmentation import Sample, StochasticAugmentation
from ..utils.misc import check_one_of, is_number
from ..utils.warn import warn
from ._inputs import apply_to_images

__all__ = ["ShadingSample", "SmoothMask", "low_percentile", "smallest"]

ENOUGH = 16
"""Images whose values a transform looks at before it says that they don't fit."""
SHARE = 0.01
"""Share of the pixels that lie below :func:`low_percentile`."""
PIXELS = 4096
"""Pixels of each channel that :func:`low_percentile` looks at, evenly spaced."""


@dataclass(frozen=True, kw_only=True)
class ShadingSample(Sample):
    """Random masks.

    Args:
        log_prob: None.
        applied: Which images are masked, (B,) bool.
        action: Values in (0, 1), ``(B, 1, *grid)``; with ``per_channel`` ``(B, C, *grid)``.
        pattern_std: Each image's own, (B,), where the mask draws it from a range.
        brightness_std: Likewise.
    """

    action: Tensor
    pattern_std: Tensor | None = None
    brightness_std: Tensor | None = None

    @property
    def expected(self) -> Tensor | None:
        """Expected value of each cell; None stands for 1/2."""
        return None


class SmoothMask(StochasticAugmentation):
    """Base of :class:`PolicyNoiseMask` and :class:`RandomShading`, which document the settings."""

    black: Tensor | None
    white: Tensor | None

    def __init__(
        self,
        in_chans: int | None,
        grid_size: int | Sequence[int],
        kernel_size: int | Sequence[int] | None,
        sigma: float | Sequence[float] | None,
        *,
        p: float,
        strength: float,
        mean_preserving: bool,
        pattern_std: float | tuple[float, float] | None,
        brightness_std: float | tuple[float, float],
        center_brightness: bool,
        mean: float | Sequence[float] | None,
        std: float | Sequence[float] | None,
        upsample: PF.Upsample,
        black: float | Sequence[float] | Literal["minimum", "percentile"] | None,
        white: float | Sequence[float] | None,
        clip: bool,
    ) -> None:
        super().__init__()
        self.grid_size = _grid(grid_size)
        if in_chans is not None and (not isinstance(in_chans, int) or in_chans < 1):
            raise ValueError(f"in_chans must be a positive integer, got {in_chans!r}")
        for name, value in (("p", p), ("strength", strength)):
            if not (is_number(value) and 0.0 <= value <= 1.0):
                raise ValueError(f"{name} must be a number in [0, 1], got {value!r}")
        brightness_std = _deviation("brightness_std", brightness_std)
        if pattern_std is not None:
            pattern_std = _deviation("pattern_std", pattern_std)
            if pattern_std in (0.0, (0.0, 0.0)):
                raise ValueError(f"pattern_std must be larger than 0, or None for no limit, got {pattern_std!r}")
        if not mean_preserving and (pattern_std is not None or brightness_std):
            raise ValueError(
                "mean_preserving=False leaves the masks' mean and standard deviation to the policy: also pass "
                f"pattern_std=None and brightness_std=0, got pattern_std={pattern_std!r} and "
                f"brightness_std={brightness_std!r}"
            )
        if math.prod(self.grid_size) == 1 and (pattern_std is not None or (mean_preserving and not brightness_std)):
            raise ValueError(
                f"grid_size={grid_size!r} is a single cell, so a mask of mean 1 cannot vary, got "
                f"pattern_std={pattern_std!r} and brightness_std={brightness_std!r}: use more cells, or "
                "pattern_std=None and a brightness_std"
            )
        # The image size is not known yet. With a huge one in its place, this checks only the numbers themselves.
        PF.blur_parameters((10**6,) * len(self.grid_size), self.grid_size, kernel_size, sigma, upsample)
        self.spatial_dims = len(self.grid_size)
        self.in_chans = in_chans
        self.kernel_size = kernel_size
        self.sigma = sigma
        self.p = p
        self.strength = strength
        self.mean_preserving = mean_preserving
        self.pattern_std = pattern_std
        self.brightness_std = brightness_std
        self.center_brightness = center_brightness
        self.upsample = upsample
        self.clip = clip
        # Not persistent: the images that the policy is used on later may be normalized differently.
        levels = self._levels(mean, std, black, white)
        for name, level in zip(("black", "white"), levels, strict=True):
            self.register_buffer(name, level, persistent=False)
        self._find_black = "percentile" if black == "percentile" else "minimum"
        self._black_is_zero = self.black is not None and not bool(self.black.any())  # usually images in [0, 1]
        self._is_normalized = mean is not None and black is None
        self._seen: list[_ValueRange] = []
        self._judged = False

    def _levels(self, mean: Any, std: Any, black: Any, white: Any) -> tuple[Tensor | None, Tensor | None]:
        """Black and white, (1, C or 1, 1, 1), as far as they are known."""
        if (mean is None) != (std is None):
            raise ValueError(f"mean and std belong together, got mean={mean!r} and std={std!r}")
        if isinstance(black, str):
            check_one_of("black", black, ("minimum", "percentile"))
        low = None if black is None or isinstance(black, str) else self._per_channel("black", black)
        high = None if white is None else self._per_channel("white", white)
        if mean is not None:
            center, spread = self._per_channel("mean", mean), self._per_channel("std", std)
            if bool((spread <= 0).any()):
                raise ValueError(f"std must be positive, got {std!r}")
            low = -center / spread if black is None else low
            high = (1 - center) / spread if white is None else high
        if self.clip and high is None:
            raise ValueError("clip=True needs to know white: pass mean and std, or white=...")
        if low is not None and high is not None and bool((high <= low).any()):
            raise ValueError(f"white must be brighter than black, got {_as_list(high)} and {_as_list(low)}")
        return low, high

    def _per_channel(self, name: str, value: Any) -> Tensor:
        try:
            level = torch.as_tensor(value, dtype=torch.float32).flatten()
        except (TypeError, ValueError, RuntimeError):
            level = torch.tensor(math.nan)
        fits = self.in_chans is None or level.numel() in (1, self.in_chans)
        if not fits or not bool(torch.isfinite(level).all()):
            allowed = "one finite number per channel" if self.in_chans is None else f"{self.in_chans} (in_chans)"
            raise ValueError(f"{name} must be one finite number or {allowed}, got {value!r}")
        return level.view(1, -1, *[1] * len(self.grid_size))

    def as_batch(self, images: Any) -> Tensor:
        """Check that the mask fits the images. A single image is returned as a batch of one."""
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a tensor, got {type(images).__name__}")
        if not images.is_floating_point():
            raise TypeError(f"images must be floating point (and normalized), got dtype {images.dtype}")
        axes = len(self.grid_size)
        batch = images.unsqueeze(0) if images.ndim == axes + 1 else images
        if batch.ndim != axes + 2 or self.in_chans not in (None, batch.shape[1]):
            layout = "(B, C, H, W) or (C, H, W)" if axes == 2 else "(B, C, D, H, W) or (C, D, H, W)"
            chans = "" if self.in_chans is None else f" with C = {self.in_chans}"
            raise ValueError(f"images must have shape {layout}{chans}, got {tuple(images.shape)}")
        for level in (self.black, self.white):
            if level is not None and level.shape[1] not in (1, batch.shape[1]):
                raise ValueError(
                    f"images have {batch.shape[1]} channels, but mean, std, black or white {level.shape[1]}: pass one "
                    "number for all channels, or one for each"
                )
        size = batch.shape[2:]
        if any(pixels < cells for pixels, cells in zip(size, self.grid_size, strict=True)):
            raise ValueError(
                f"grid_size {self.grid_size} does not fit images of size {tuple(size)}: "
                "every cell needs a pixel; choose a smaller grid_size"
            )
        # Check before anything is drawn, so that an error leaves policy and random state as they were.
        PF.blur_parameters(size, self.grid_size, self.kernel_size, self.sigma, self.upsample)
        return batch

    def render(self, sample: ShadingSample, size: Sequence[int]) -> Tensor:
        """The factor that each pixel is multiplied by, (B, 1, H, W); 1 for images that are not masked.

        Example:
            >>> from policy_noise import RandomShading
            >>> shade = RandomShading(p=1.0, pattern_std=0.1, brightness_std=0.0)
            >>> mask = shade.render(shade.sample(torch.rand(2, 3, 64, 64)), (64, 64))
            >>> mask.shape, f"{mask[0].mean():.2f} ± {mask[0].std():.2f}"
            (torch.Size([2, 1, 64, 64]), '1.00 ± 0.10')
        """
        ones = sample.action.new_ones(*sample.action.shape[:2], *size)
        return self._noise_mask(ones, sample, None, None)

    def _noise_mask(self, images: Tensor, sample: ShadingSample, black: Tensor | None, white: Tensor | None) -> Tensor:
        pattern_std: Any = self.pattern_std if sample.pattern_std is None else sample.pattern_std
        brightness_std: Any = self.brightness_std if sample.brightness_std is None else sample.brightness_std
        return PF.noise_mask(
            images,
            sample.action,
            kernel_size=self.kernel_size,
            sigma=self.sigma,
            upsample=self.upsample,
            strength=self.strength,
            mean_preserving=self.mean_preserving,
            pattern_std=pattern_std,
            brightness_std=brightness_std,
            expected=sample.expected if self.center_brightness else None,
            black=black,
            white=white,
            applied=sample.applied,
        )

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """Deviations that are drawn anew for each image: name, lowest and highest value."""
        found = {"pattern_std": self.pattern_std, "brightness_std": self.brightness_std}
        return {name: value for name, value in found.items() if isinstance(value, tuple)}

    def _within_ranges(self, uniform: Tensor) -> dict[str, Tensor]:
        """Each image's deviations, (B,), from uniform numbers (B, number of ranges)."""
        ranges = self.ranges.items()
        return {name: u * (high - low) + low for (name, (low, high)), u in zip(ranges, uniform.unbind(1), strict=True)}

    def forward(self, images: Any, *labels: Any, sample: Any = None) -> Any:
        """Mask a batch.

        Args:
            images: A batch, or one image; see the class. As one of torchvision's v2 transforms it also takes a tuple or
                dict that holds images, or images followed by labels. Labels are returned unchanged.
            *labels: See above.
            sample: Use these masks, also in eval mode. May be passed by position. If omitted, masks are drawn in
                training mode only.

        Returns:
            The masked images. In eval mode and without a sample, the input itself.

        Example:
            >>> from policy_noise import RandomShading
            >>> shade, images = RandomShading(mean=0.0, std=1.0), torch.rand(4, 3, 16, 16)
            >>> image, label = shade(images[0], 7)  # one image of a data set, with its label
            >>> sample = shade.sample(images)
            >>> torch.equal(shade(images, sample), shade(images, sample))  # a batch, with the same masks again
            True
        """
        if labels and isinstance(labels[0], Sample):
            sample, labels = labels[0], labels[1:]
        if sample is None and not self.training:
            return (images, *labels) if labels else images
        if labels or isinstance(images, Mapping | list | tuple):
            return apply_to_images(partial(self, sample=sample), images, labels)
        batch = self.as_batch(images)
        if sample is None:
            self.look_at(batch)
            sample = self.sample(batch)
        elif len(sample.action) != len(batch):
            raise ValueError(f"sample holds {len(sample.action)} masks, got {len(batch)} images")
        masked = self.transform(batch, sample)
        return masked.squeeze(0) if images.ndim < batch.ndim else masked

    def transform(self, images: Tensor, sample: Sample) -> Tensor:
        """Mask a batch. Images that are not ``applied`` are returned unchanged, bit for bit."""
        assert isinstance(sample, ShadingSample)
        black = None if self._black_is_zero else self.black
        if self.black is None:
            black = low_percentile(images) if self._find_black == "percentile" else smallest(images)
        return self._noise_mask(images, sample, black, self.white if self.clip else None)

    def describe(self, sample: Sample | None, size: Sequence[int] | None) -> dict[str, float]:
        """Mean and standard deviation of the last masks, after blur and scaling. NaN if there are none yet."""
        if sample is None or size is None or not len(sample.applied):
            return {"mask_mean": math.nan, "mask_std": math.nan}
        assert isinstance(sample, ShadingSample)
        mask = self.render(sample, size)
        return {"mask_mean": float(mask.mean()), "mask_std": float(mask.std())}

    def check(self, images: Tensor) -> None:
        """Warn if the images' values do not fit black and white."""
        self.look_at(images, enough=1)

    def look_at(self, images: Tensor, enough: int = ENOUGH) -> None:
        """Collect the values of the first images, and from so many on warn once if they do not fit black and white."""
        if self._judged or torch.compiler.is_compiling() or self.black is None or not images.numel():
            return
        found = _ValueRange.of(images, self.black, self.white)
        if not found.images:
            return
        self._seen.append(found)
        if sum(seen.images for seen in self._seen) < enough:
            return
        found = _ValueRange.joined(self._seen)
        self._judged = True
        self._seen.clear()
        if self._is_normalized and self.white is not None and found.contradicts(self.black, self.white):
            warn(
                f"the images' smallest values {_as_list(found.darkest)} and largest {_as_list(found.brightest)} don't "
                f"fit the black level {_as_list(self.black)} and white {_as_list(self.white)} that mean and std (for "
                "timm models those of pretrained_cfg) give: pass mean=... and std=... as your transforms use them, or "
                "mean=None, std=None to use each image's smallest value as black"
            )
        elif not self._is_normalized and found.is_far_from(self.black):
            warn(
                f"the images' smallest values {_as_list(found.darkest)} and largest {_as_list(found.brightest)} lie "
                f"far from black={_as_list(self.black)}: pass black as it is after your transforms"
            )

    def extra_repr(self) -> str:
        names = ["grid_size", "kernel_size", "sigma", "p", "strength", "mean_preserving", "pattern_std"]
        names += ["brightness_std", "center_brightness", "upsample", "clip"]
        shown = [name for name in ["in_chans", *names] if getattr(self, name) is not None or name != "in_chans"]
        black = self._find_black if self.black is None else _as_list(self.black)
        return ", ".join([*(f"{name}={getattr(self, name)!r}" for name in shown), f"black={black!r}"])


def _deviation(name: str, value: Any) -> Any:
    """A standard deviation, or a range (low, high) of them as a tuple."""
    ends = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(ends) != 2 or not all(is_number(end) for end in ends) or not 0.0 <= ends[0] <= ends[1] <= 1.0:
        raise ValueError(f"{name} must be a number in [0, 1] or a range (low, high) of them, got {value!r}")
    return value if is_number(value) else ends


def _grid(grid_size: int | Sequence[int]) -> tuple[int, ...]:
    grid: tuple[Any, ...] = (grid_size, grid_size)
    if isinstance(grid_size, Sequence):
        grid = tuple(grid_size)
    if len(grid) not in (2, 3) or any(not isinstance(cells, int) or cells < 1 for cells in grid):
        raise ValueError(f"grid_size must be a positive integer or two or three of them, got {grid_size!r}")
    return grid


# -- black ------------------------------------------------------------------------------------------------------------


def smallest(images: Tensor) -> Tensor:
    """Each image's smallest finite value in each channel. Some scanners pad the field of view with NaN or -inf."""
    values = torch.nan_to_num(images.detach(), math.inf, math.inf, math.inf)
    darkest = values.amin(dim=tuple(range(2, images.ndim)), keepdim=True)
    return torch.nan_to_num(darkest, posinf=0.0)


def low_percentile(images: Tensor) -> Tensor:
    """The 1st percentile of each image's values in each channel. Padding and values that are not finite do not count.

    The smallest value is padding, such as -3024 around a CT slice of which air has -1000, if it stands alone (the next
    one is farther away than a quarter of the range of the others) and fills less than half of the image.
    """
    axes = images.ndim - 2
    steps = [math.ceil(pixels / PIXELS ** (1 / axes)) for pixels in images.shape[2:]]
    picked: Any = (..., *(slice(None, None, step) for step in steps))
    values = images.detach()[picked].flatten(2)
    lowest = smallest(images).flatten(2)
    finite = values.isfinite()
    others = finite & (values > lowest)
    second = values.masked_fill(~others, math.inf).amin(2, keepdim=True)
    highest = values.masked_fill(~others, -math.inf).amax(2, keepdim=True)
    many = others.sum(2, keepdim=True) > finite.sum(2, keepdim=True) / 2
    counts = torch.where(many & (second - lowest > (highest - second) / 4), others, finite)
    ordered = values.masked_fill(~counts, math.inf).sort(dim=2).values
    place = (SHARE * (counts.sum(dim=2, keepdim=True) - 1).clamp(min=0)).long()
    found = ordered.gather(2, place)
    return torch.where(found.isfinite(), found, lowest).view(*images.shape[:2], *[1] * axes)


def _as_list(values: Tensor) -> list[float]:
    """Values as rounded numbers, for messages."""
    return [round(float(value), 2) for value in values.flatten()]


@dataclass(frozen=True)
class _ValueRange:
    """Finite values of images in each channel, on the CPU.

    Args:
        images: Number of images that have any.
        darkest: Smallest value, (C,); infinite for a channel without any.
        brightest: Largest value, (C,), likewise.
        outside: Share of the pixels that lie clearly below black or above white, (C,).
    """

    images: int
    darkest: Tensor
    brightest: Tensor
    outside: Tensor

    @classmethod
    def of(cls, images: Tensor, black: Tensor, white: Tensor | None) -> "_ValueRange":
        """The range of a batch."""
        axes = (0, *range(2, images.ndim))
        values = images.detach().float()
        finite = values.isfinite()
        outside = values < black.to(values) - 0.1
        if white is not None:
            outside |= values > white.to(values) + 0.1
        darkest = torch.where(finite, values, math.inf).amin(dim=axes)
        brightest = torch.where(finite, values, -math.inf).amax(dim=axes)
        share = (outside & finite).float().mean(dim=axes)
        return cls(int(finite.flatten(1).any(1).sum()), darkest.cpu(), brightest.cpu(), share.cpu())

    @classmethod
    def joined(cls, ranges: Sequence["_ValueRange"]) -> "_ValueRange":
        """The range of several batches."""
        total = sum(each.images for each in ranges)
        return cls(
            total,
            torch.stack([each.darkest for each in ranges]).amin(0),
            torch.stack([each.brightest for each in ranges]).amax(0),
            torch.stack([each.images / total * each.outside for each in ranges]).sum(0),
        )

    def contradicts(self, black: Tensor, white: Tensor) -> bool:
        """Whether the images were not normalized by what gave this black and white."""
        black, white = black.flatten().cpu(), white.flatten().cpu()
        # Ignore a few pixels outside the range. Random erasing fills in normal noise, which exceeds it.
        outside = bool((self.outside > 0.05).any())
        too_bright = bool((self.darkest > black + 1.5).all())
        unit = bool((self.darkest >= 0).all() and (self.brightest <= 1).all() and (black < -0.3).any())
        ends = torch.cat([self.darkest + 1, self.brightest - 1]).abs()
        signed = bool((ends < 0.02).all() and ((black + 1).abs() > 0.3).any())
        return outside or too_bright or unit or signed

    def is_far_from(self, black: Tensor) -> bool:
        """Whether black is brighter than all values, or farther below them than a hundred times their range."""
        black = black.flatten().cpu()
        below = black < self.darkest - 100 * (self.brightest - self.darkest).clamp(min=1e-3)
        return bool(((below | (black > self.brightest)) & self.darkest.isfinite()).any())
