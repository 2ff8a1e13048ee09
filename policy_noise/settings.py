"""Types of the settings, so that editors complete them and type checkers check them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from .functional import Reward, Upsample

__all__ = ["HookSettings", "MaskSettings"]


class MaskSettings(TypedDict, total=False):
    """Arguments of :class:`policy_noise.PolicyNoiseMask`."""

    in_chans: int
    grid_size: int | Sequence[int]
    kernel_size: int | Sequence[int] | None
    sigma: float | Sequence[float] | None
    policy: str | nn.Module
    p: float
    strength: float
    mean_preserving: bool
    pattern_std: float | tuple[float, float] | None
    brightness_std: float | tuple[float, float]
    center_brightness: bool
    mean: float | Sequence[float] | None
    std: float | Sequence[float] | None
    upsample: Upsample
    black: float | Sequence[float] | Literal["minimum", "percentile"] | None
    white: float | Sequence[float] | None
    clip: bool


class HookSettings(TypedDict, total=False):
    """Arguments of :class:`policy_noise.ReinforceHook` and its learner."""

    output_loss: Callable[[Any, tuple[Any, ...], dict[str, Any]], Tensor] | None
    loss_method: Literal["auto", "own", "leave_one_out"]
    input_name: int | str | Sequence[int | str] | None
    generator: torch.Generator | None
    max_pending: int
    state_in_optimizer: bool
    strength_schedule: Callable[[int], float] | None
    estimator: Literal["reinforce", "paper"]
    reward: Reward | Callable[[Tensor], Tensor]
    baseline: Literal["leave_one_out", "batch", "moving_average", "none"]
    normalize_advantage: bool
    entropy_coef: float
    entropy_target: float | None
    baseline_momentum: float
    policy_optimizer: Literal["adamw", "sgd"]
    policy_lr: float | None
    policy_lr_ratio: float | None
    follow_schedule: bool
    policy_weight_decay: float
    frozen: bool
    update_every: int
