"""Masks and policies of the conditions, and their hooks."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.study.conditions import Condition
from benchmarks.study.tasks import TaskData
from policy_noise import MaskSample, PolicyNoiseMask, ReinforceHook, Sample
from policy_noise.policy import SpatialPolicy, StaticPolicy
from policy_noise.presets import PRESETS, Preset

PAPER_SIGMA = 6 / 224
"""The paper's blur, as a share of the image's side."""
FIRST_MASK: dict[str, Any] = {"grid_size": 8, "sigma": PAPER_SIGMA, "pattern_std": None, "brightness_std": 0.0}
"""The package's default mask when the study began. Conditions list only what differs from it."""


class StudyMask(PolicyNoiseMask):
    """The package's mask. It remembers the applied masks and can apply each mask to the next image of the batch.

    Batches are in random order, so the next image is a random other one.
    """

    shuffled = False
    applied: Tensor

    @staticmethod
    def swap(sample: MaskSample) -> MaskSample:
        """Shift the masks by one image within the batch."""
        names = ("action", "applied", "concentration1", "concentration0")
        return replace(sample, **{name: getattr(sample, name).roll(1, 0) for name in names})

    def transform(self, images: Tensor, sample: Sample) -> Tensor:
        assert isinstance(sample, MaskSample)
        if self.shuffled:
            sample = self.swap(sample)
        self.applied = sample.applied
        return super().transform(images, sample)

    def credit(self, signal: Tensor) -> Tensor:
        """Give each mask the signal of the image that it was applied to."""
        return signal.roll(-1, 0) if self.shuffled else signal


class ClassPolicy(nn.Module):
    """A policy with one distribution per class. The labels are set before each batch.

    Args:
        num_classes: Number of classes.
        grid_size: Cells along each axis.
    """

    labels: Tensor

    def __init__(self, num_classes: int, grid_size: tuple[int, ...]) -> None:
        super().__init__()
        self.log_concentration = nn.Parameter(torch.zeros(num_classes, 2, *grid_size))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        log_concentration1, log_concentration0 = self.log_concentration[self.labels].unsqueeze(2).unbind(1)
        return log_concentration1, log_concentration0


def build_hook(
    condition: Condition, data: TaskData, optimizer: torch.optim.Optimizer, generator: torch.Generator
) -> ReinforceHook:
    """Make a condition's mask, on the generator's device, and its hook, which draws from the generator."""
    assert condition.preset is not None
    preset = PRESETS["paper"] if condition.preset == "paper" else Preset(mask={}, hook={})
    settings = {**FIRST_MASK, **preset.mask, **condition.mask}
    settings["sigma"] = (settings["sigma"] or PAPER_SIGMA) * data.task.size
    grid = (settings["grid_size"],) * 2
    policy = dict(condition.policy)
    kind = policy.pop("kind", None)
    if kind == "class":
        settings["policy"] = ClassPolicy(data.num_classes, grid)
    elif kind == "static":
        both = policy.pop("concentration", 1.0)
        concentrations = [policy.pop(name, both) for name in ("concentration1", "concentration0")]
        settings["policy"] = StaticPolicy(grid, *concentrations)
    elif policy:
        settings["policy"] = SpatialPolicy(1, grid, **policy)
    mask = StudyMask(in_chans=1, mean=data.mean, std=data.std, **settings).to(generator.device)
    mask.shuffled = condition.shuffled
    return ReinforceHook(mask, optimizer, generator=generator, **{**preset.hook, **condition.hook})
