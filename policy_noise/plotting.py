"""Plots of masks and of a policy's training.

The plots need matplotlib: ``pip install "policy_noise[examples]"``. They are plain :class:`matplotlib.figure.Figure`
objects. Notebooks show them after ``%matplotlib inline``, and ``figure.savefig`` saves them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .augmentation import Sample, StochasticAugmentation
from .hooks._draws import own_randomness
from .masks._base import SmoothMask
from .utils.misc import extra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["plot_masks", "plot_metrics"]

MEAN_OF = 64
"""Number of draws that the mean factor of a learned mask is averaged over."""
FACTORS = "cividis"
"""Lightness rises with the factor, so that .7 and 1.3 also differ in grey."""
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")
"""From Okabe and Ito's palette, which colour-blind readers can tell apart."""
PANELS = {
    "reward": ("reward", "baseline"),
    "entropy (nats per image)": ("entropy",),
    "masks": ("mask_mean", "mask_std"),
    "policy gradient norm": ("policy_grad_norm",),
}


@torch.no_grad()
def plot_masks(
    mask: StochasticAugmentation,
    images: Tensor,
    titles: Sequence[str] | None = None,
    *,
    draws: int = 2,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    seed: int = 0,
) -> "Figure":
    """Draw what an augmentation does to a few images.

    There is one column per image: the image, the mean factor of its masks (if they are learned), then for each draw the
    factor that every pixel is multiplied by, and the masked image. Every image is masked, whatever ``p`` is. The
    module's mode and the global random generators do not change.

    Args:
        mask: A :class:`policy_noise.RandomShading` or :class:`policy_noise.PolicyNoiseMask`. Other augmentations show
            only the transformed images.
        images: Images as the model gets them, normalized.
        titles: One per image.
        draws: How many masks to show for each image.
        mean: The normalization of the images, one number or one per channel. If ``mean`` and ``std`` are omitted, each
            image's own minimum and maximum are shown as black and white.
        std: See ``mean``.
        seed: Seed of the draws.

    Shape:
        - images: (B, C, H, W) with one or three channels.

    Returns:
        The figure.

    Raises:
        ValueError: If the images, the titles or ``draws`` do not fit.

    Example:
        >>> from policy_noise import RandomShading
        >>> figure = plot_masks(RandomShading(), torch.rand(4, 3, 64, 64), mean=0.0, std=1.0)
        >>> len(figure.axes) >= 20  # five rows of four
        True
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"images must have shape (B, 1, H, W) or (B, 3, H, W), got {tuple(images.shape)}")
    if titles is not None and len(titles) != len(images):
        raise ValueError(f"titles must be one per image, got {len(titles)} for {len(images)} images")
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws!r}")
    if (mean is None) != (std is None):
        raise ValueError(f"mean and std belong together, got mean={mean!r} and std={std!r}")

    generator = torch.Generator(images.device)
    generator.manual_seed(seed)
    training = mask.training
    mask.eval()  # so that a backbone policy's statistics do not change
    try:
        with own_randomness(images.device, seed):
            samples = [_sample(mask, images, generator) for _ in range(draws)]
            rows: list[tuple[str, Tensor, bool]] = [("image", images, False)]
            if isinstance(mask, SmoothMask) and samples[0].log_prob is not None:
                factors = [mask.render(_sample(mask, images, generator), images.shape[2:]) for _ in range(MEAN_OF)]  # type: ignore[arg-type]
                rows.append((f"mean of {MEAN_OF} masks", torch.stack(factors).mean(0), True))
            for sample in samples:
                if isinstance(mask, SmoothMask):
                    rows.append(("mask", mask.render(sample, images.shape[2:]), True))  # type: ignore[arg-type]
                rows.append(("masked", mask(images, sample), False))
    finally:
        mask.train(training)
    return _grid(rows, images, titles, mean, std)


def plot_metrics(
    history: Sequence[Mapping[str, float]], *, x: str = "step", entropy_target: float | None = None
) -> "Figure":
    """Draw a policy's training from ``hook.metrics``, collected as often as you like.

    The baseline is drawn only where it differs from the reward, as a moving average does.

    Args:
        history: ``hook.metrics`` at several steps, in order. Append ``{"step": step, **hook.metrics}`` for an x-axis.
        x: Key of the x-axis. If ``history`` does not have it, the entries are numbered.
        entropy_target: The hook's target times the number of actions, in nats per image: a dotted line.

    Returns:
        The figure.

    Raises:
        ValueError: If there is nothing to draw.

    Example:
        >>> figure = plot_metrics([{"step": 0, "reward": -1.6, "entropy": -0.1}, {"step": 10, "reward": -1.2}])
        >>> [axes.get_title("left") for axes in figure.axes]
        ['reward', 'entropy (nats per image)']
    """
    known = {name for entry in history for name, value in entry.items() if not math.isnan(value)}
    panels = {title: kept for title, names in PANELS.items() if (kept := [name for name in names if name in known])}
    if not panels:
        raise ValueError(f"history must hold some of hook.metrics, got {sorted(known) or 'no numbers'}")
    places = [float(entry.get(x, number)) for number, entry in enumerate(history)]
    if all(math.isclose(e.get("reward", 0), e.get("baseline", 0), rel_tol=1e-3) for e in history if "baseline" in e):
        panels = {title: [name for name in names if name != "baseline"] for title, names in panels.items()}
    figure = _figure(3.2 * len(panels), 2.6)
    for axes, (title, names) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            axes.plot(places, [entry.get(name, math.nan) for entry in history], color=colour, label=name, linewidth=1.4)
        if entropy_target is not None and "entropy" in names:
            axes.axhline(entropy_target, color="0.5", linestyle=":", label="target")
        if len(axes.get_lines()) > 1:
            axes.legend(frameon=False, fontsize=8)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel(x if any(x in entry for entry in history) else "entry", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="0.5", alpha=0.25, linewidth=0.7)
    return figure


def _sample(mask: StochasticAugmentation, images: Tensor, generator: torch.Generator) -> Sample:
    sample = mask.sample(images, generator)
    return replace(sample, applied=torch.ones_like(sample.applied))


def _figure(width: float, height: float) -> "Figure":
    with extra(__name__, "matplotlib", "examples"):
        from matplotlib.figure import Figure  # not pyplot: no backend, no global state
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)  # type: ignore[union-attr, call-arg]
    return figure


def _grid(
    rows: list[tuple[str, Tensor, bool]], images: Tensor, titles: Sequence[str] | None, mean: Any, std: Any
) -> "Figure":
    black, white = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    if mean is not None:
        shift, scale = (torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1) for value in (mean, std))
        black, white = -shift / scale, (1 - shift) / scale
    black, white = black.cpu(), white.cpu()
    factors = torch.cat([values.flatten() for _, values, is_factor in rows if is_factor] or [torch.ones(1)])
    reach = max(0.1, float((factors - 1).abs().max()))
    width = 1.25 * len(images) + 0.9
    figure = _figure(width, 1.2 * len(rows) + (0.25 if titles is not None else 0))
    grid = figure.subplots(len(rows), len(images), squeeze=False)
    shaded, shaded_axes = None, []
    for line, (label, values, is_factor) in zip(grid, rows, strict=True):
        values = values.float().cpu()
        if not is_factor:
            values = ((values - black) / (white - black).clamp(min=1e-6)).clamp(0, 1)
        for axes, value in zip(line, values.permute(0, 2, 3, 1).squeeze(-1).numpy(), strict=True):
            if is_factor:
                shaded = axes.imshow(value, cmap=FACTORS, vmin=max(0.0, 1 - reach), vmax=1 + reach)
                shaded_axes.append(axes)
            else:
                axes.imshow(value, cmap="gray", vmin=0, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(label, fontsize=8)
    for axes, title in zip(grid[0], titles or (), strict=False):
        # Class names may contain dollar signs, and surrogates that cannot be encoded.
        axes.set_title(title.encode("utf-8", "replace").decode(), fontsize=8, parse_math=False)
    if shaded is not None:
        bar = figure.colorbar(shaded, ax=grid, fraction=0.03, aspect=30, label="factor (1: unchanged)")
        bar.ax.tick_params(labelsize=8)
    return figure
