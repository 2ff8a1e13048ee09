"""The policy's rate follows the shape of the user's schedule."""

import pytest
import torch
from torch.optim.lr_scheduler import ConstantLR, CosineAnnealingLR, CyclicLR, LambdaLR, LinearLR, OneCycleLR

from policy_noise.learning.learner import PolicyRate

SCHEDULES = {
    "constant": (lambda optimizer: None, 0.1),
    "one cycle": (lambda optimizer: OneCycleLR(optimizer, max_lr=0.5, total_steps=20), 0.5),
    "warm-up from 0": (lambda optimizer: LambdaLR(optimizer, lambda step: min(1.0, step / 5)), 0.1),
    "linear warm-up": (lambda optimizer: LinearLR(optimizer, 0.01, total_iters=5), 0.1),
    "constant warm-up": (lambda optimizer: ConstantLR(optimizer, 0.1, total_iters=5), 0.1),
    "cosine": (lambda optimizer: CosineAnnealingLR(optimizer, 20), 0.1),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rate_is_a_share_of_its_peak_from_the_first_step(name):
    make, peak = SCHEDULES[name]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = make(optimizer)
    rate = PolicyRate(1e-2, None, True)
    rates, users = [], []
    for _ in range(20):
        users.append(optimizer.param_groups[0]["lr"])
        rates.append(rate(optimizer.param_groups[0]))
        optimizer.step()
        if scheduler is not None and len(users) < 20:
            scheduler.step()
    assert rates == pytest.approx([1e-2 * lr / peak for lr in users], rel=1e-6, abs=1e-12)


def test_a_rate_that_rises_by_hand_has_its_peak_in_the_largest_one_seen_and_says_so_once():
    rate = PolicyRate(1e-2, None, True)
    with pytest.warns(UserWarning, match=r"climbs \(0\.1 to 0\.2\).*max_lr.*policy_lr_ratio") as record:
        rates = [rate({"lr": lr}) for lr in (0.0, 0.1, 0.05, 0.2, 0.1, 0.3)]
    assert rates == pytest.approx([0.0, 1e-2, 5e-3, 1e-2, 5e-3, 1e-2])
    assert len(record) == 1


@pytest.mark.parametrize("told", [False, True])
def test_cyclic_rates_are_followed_where_their_peak_is_told(told, recwarn):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = CyclicLR(optimizer, base_lr=0.01, max_lr=0.05, step_size_up=4)
    if told:
        optimizer.param_groups[0]["max_lr"] = 0.05
    rate, rates = PolicyRate(1e-2, None, True), []
    for _ in range(8):
        rates.append(rate(optimizer.param_groups[0]))
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(
        [2e-3, 4e-3, 6e-3, 8e-3, 1e-2, 8e-3, 6e-3, 4e-3] if told else [1e-2] * 5 + [8e-3, 6e-3, 4e-3]
    )
    assert len(recwarn) == (not told)


def test_rates_that_follow_no_schedule():
    assert PolicyRate(1e-2, None, False)({"lr": 0.1, "max_lr": 1.0}) is None
    assert PolicyRate(None, 0.5, True)({"lr": 0.1, "max_lr": 1.0}) == pytest.approx(0.05)
