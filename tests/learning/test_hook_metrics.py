"""The metrics that a hook reports."""

import math

import pytest
import torch
from torch import nn

from policy_noise import attach

ALWAYS = {"reward", "baseline", "loss_std", "entropy", "policy_grad_norm", "mask_mean", "mask_std"}
ALWAYS |= {"samples_seen", "samples_dropped"}


def start(make_model, **settings):
    model, criterion = make_model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = attach(model, optimizer, criterion, grid_size=4, kernel_size=3, **settings)

    def step(images, targets):
        criterion(model(images), targets).backward()
        optimizer.step()

    return hook, step


@pytest.mark.parametrize("settings", [{}, {"preset": "random"}, {"preset": "paper"}, {"frozen": True}], ids=str)
def test_all_keys_are_there_from_the_start(make_model, batch, settings):
    hook, step = start(make_model, **settings)
    before = hook.metrics
    expected = ALWAYS if settings else ALWAYS | {"entropy_coef"}
    if settings == {"preset": "random"}:
        expected = {"share_masked", "mask_mean", "mask_std", "samples_seen"}
    assert before.keys() == expected
    numbers = ("samples_seen", "samples_dropped", "entropy_coef")
    assert all(math.isnan(value) for name, value in before.items() if name not in numbers)
    step(*batch)
    assert hook.metrics.keys() == expected


def test_an_entropy_target_adds_its_coefficient_from_the_start(make_model, batch):
    hook, step = start(make_model, entropy_target=-0.1)
    assert hook.metrics.keys() == ALWAYS | {"entropy_coef"}
    step(*batch)
    assert hook.metrics.keys() == ALWAYS | {"entropy_coef"}


@pytest.mark.parametrize("distance", [0, 1])
def test_a_window_in_which_nothing_was_masked_has_no_reward(make_model, batch, distance):
    """Also after a step that had some."""
    hook, step = start(make_model, p=1.0)
    for _ in range(distance):
        step(*batch)
        assert math.isfinite(hook.metrics["reward"])
    hook.augmentation.p = 0.0
    step(*batch)
    for name in ("reward", "baseline", "loss_std", "policy_grad_norm"):
        assert math.isnan(hook.metrics[name]), name
    assert math.isfinite(hook.metrics["entropy"])
    assert hook.metrics["samples_seen"] == 8 * (distance + 1)
