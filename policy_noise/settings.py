"""The settings of :func:`policy_noise.attach`, with their types, so that editors complete them and checkers check them.

The defaults are those of the classes that take them.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from .functional import Reward, Upsample

__all__ = ["HookSettings", "LearnerSettings", "PolicySettings", "Settings", "ShadingSettings"]


class ShadingSettings(TypedDict, total=False):
    """Arguments of :class:`policy_noise.RandomShading`."""

    p: float
    grid_size: int | Sequence[int]
    pattern_std: float | tuple[float, float] | None
    brightness_std: float | tuple[float, float]
    strength: float
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None
    black: float | Sequence[float] | Literal["minimum", "percentile"] | None
    white: float | Sequence[float] | None
    clip: bool
    kernel_size: int | Sequence[int] | None
    sigma: float | Sequence[float] | None
    upsample: Upsample
    per_channel: bool


class PolicySettings(TypedDict, total=False):
    """What :class:`policy_noise.PolicyNoiseMask` takes besides; all but ``per_channel`` it takes, too."""

    in_chans: int
    policy: str | nn.Module
    mean_preserving: bool
    center_brightness: bool


class HookSettings(TypedDict, total=False):
    """Arguments of :class:`policy_noise.ReinforceHook`."""

    output_loss: Callable[[Any, tuple[Any, ...], dict[str, Any]], Tensor] | None
    loss_method: Literal["auto", "own", "leave_one_out"]
    input_name: int | str | Sequence[int | str] | None
    shared_mask: bool
    generator: torch.Generator | None
    max_pending: int
    state_in_optimizer: bool
    strength_schedule: Callable[[int], float] | None


class LearnerSettings(TypedDict, total=False):
    """Arguments of :class:`policy_noise.learning.PolicyLearner`."""

    estimator: Literal["reinforce", "paper"]
    reward: Reward | Callable[[Tensor], Tensor]
    baseline: Literal["leave_one_out", "batch", "moving_average", "none"]
    normalize_advantage: bool
    entropy_coef: float
    baseline_momentum: float
    entropy_target: float | None
    policy_optimizer: Literal["adamw", "sgd"]
    policy_lr: float | None
    policy_lr_ratio: float | None
    follow_schedule: bool
    policy_weight_decay: float
    frozen: bool
    update_every: int


class Settings(ShadingSettings, PolicySettings, HookSettings, LearnerSettings, total=False):
    """Every setting of :func:`policy_noise.attach`."""
