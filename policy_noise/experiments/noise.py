"""A recipe's mask on a classifier."""

import math
from typing import Any

import torch
from torch import nn

import policy_noise

from .recipes import TrainRecipe

__all__ = ["attach_noise"]


def attach_noise(
    model: nn.Module, optimizer: Any, criterion: nn.Module, recipe: TrainRecipe, steps: int, generator: torch.Generator
) -> tuple[Any, Any]:
    """Attach the recipe's mask, with a cosine schedule for the policy if the recipe has one. It is updated every epoch.

    In the recipe's ``clean_epochs`` nothing is masked.
    """
    noisy_steps = steps * (recipe.epochs - recipe.clean_epochs)
    options: dict[str, Any] = {
        "preset": recipe.preset,
        "mean": [recipe.mean] * recipe.in_chans,
        "std": [recipe.std] * recipe.in_chans,
        "frozen": recipe.noise == "random",
        "generator": generator,
        **({"strength_schedule": lambda step: float(step < noisy_steps)} if recipe.clean_epochs else {}),
        **recipe.noise_options,
    }
    if recipe.policy_lr is None or recipe.noise == "random":
        return policy_noise.attach(model, optimizer, criterion, **options), None
    hook = policy_noise.attach(
        model, optimizer, criterion, **options, policy_lr=recipe.policy_lr, follow_schedule=False
    )
    assert hook.policy_optimizer is not None
    return hook, torch.optim.lr_scheduler.LambdaLR(
        hook.policy_optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * (step // steps) / recipe.epochs))
    )
