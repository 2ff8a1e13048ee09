"""Named sets of settings.

``random`` has random masks, to use as an augmentation: smooth, and of another strength in each image. ``learned`` has
masks of 2 x 2 cells and one strength, learned by an adversarial policy whose entropy is held near -0.075 nats per cell,
and which cannot brighten or darken images on average. ``paper`` has the published settings, number for number.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

__all__ = ["PRESETS", "Preset", "get_preset"]


@dataclass(frozen=True)
class Preset:
    """Settings of a mask and of the hook that trains it.

    Args:
        mask: Keyword arguments of :class:`policy_noise.PolicyNoiseMask`, or of :class:`policy_noise.RandomShading` for
            ``random``. What is not named has the class's default.
        hook: Keyword arguments of :class:`policy_noise.ReinforceHook`.

    Example:
        >>> from policy_noise import PolicyNoiseMask
        >>> paper = get_preset("paper")
        >>> PolicyNoiseMask(in_chans=1, **paper.mask).grid_size, paper.hook["estimator"]
        ((64, 64), 'paper')
    """

    mask: Mapping[str, Any]
    hook: Mapping[str, Any]


PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        # The policy must keep its masks random: the only learned condition of the study that was as good as the same
        # masks drawn at random (benchmarks/study/EARLIER.md).
        "learned": Preset(mask={"center_brightness": True}, hook={"reward": "adversarial", "entropy_target": -0.075}),
        # RandomShading's defaults, which a rule on validation chose (benchmarks/study/PROTOCOL.md).
        "random": Preset(mask={}, hook={"frozen": True}),
        # arXiv 2406.14568 and its training code: a resnet10t on the full image, every image masked on its normalised
        # values at half the contrast, the batch's scalar loss as the reward of all, SGD at a tenth of 0.1.
        "paper": Preset(
            mask={
                "grid_size": 64,
                "kernel_size": 13,
                "sigma": 6.0,
                "policy": "resnet10t",
                "p": 1.0,
                "mean_preserving": False,
                "pattern_std": None,
                "brightness_std": 0.0,
                "black": 0.0,
            },
            hook={
                "estimator": "paper",
                "policy_optimizer": "sgd",
                "policy_lr": None,
                "policy_lr_ratio": 0.1,
                "policy_weight_decay": 1e-4,
            },
        ),
    }
)


def get_preset(name: str) -> Preset:
    """Look a preset up by name.

    Raises:
        ValueError: If there is none of that name.

    Example:
        >>> get_preset("learned").hook
        {'reward': 'adversarial', 'entropy_target': -0.075}
    """
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {sorted(PRESETS)}, got {name!r}")
    return PRESETS[name]
