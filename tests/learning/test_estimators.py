"""Holding the mean entropy at a target."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import policy_noise
from policy_noise import PolicyNoiseMask
from policy_noise import functional as PF
from policy_noise.learning import PolicyLearner
from policy_noise.learning.estimators import EntropyConstraint


def test_the_coefficient_follows_its_formula_within_its_bounds():
    constraint, coefficient = EntropyConstraint(-0.2, start=0.3), 0.3
    for entropy in (-1.0, 0.0, -0.2, -0.5, math.nan, -0.1):
        constraint.update(torch.tensor(entropy))
        if not math.isnan(entropy):
            coefficient *= math.exp(0.5 * (-0.2 - entropy))
        assert float(constraint.coefficient) == pytest.approx(coefficient)
    constraint.update(torch.tensor(-1e6))
    assert float(constraint.coefficient) == pytest.approx(20.0)
    constraint.update(torch.tensor(1e6))
    assert float(constraint.coefficient) == pytest.approx(0.01)


@pytest.mark.parametrize("target", [math.nan, math.inf])
def test_a_target_that_is_no_number_is_refused(target):
    with pytest.raises(ValueError, match=f"entropy_target must be a finite number of nats per action, got {target!r}"):
        EntropyConstraint(target)


def collapse(steps, **settings):
    """A static policy whose loss is the sum of its actions, which drives every cell to 0."""
    torch.manual_seed(0)
    mask = PolicyNoiseMask(in_chans=1, policy="static", p=1.0)
    learner = PolicyLearner(mask, policy_lr=0.05, **settings)
    coefficients = []
    for number in range(steps):
        sample = mask.sample(torch.zeros(64, 1, 8, 8), torch.Generator().manual_seed(number))
        if learner.entropy is not None:
            before = float(learner.entropy.coefficient)
            mean = sample.entropy.mean().item() / 4  # nats per cell, of 2 x 2
            coefficients.append((before, mean))
        learner.observe(sample, sample.action.flatten(1).sum(1))
        learner.step({"lr": 0.1})
    return sample.detach(), learner, coefficients


def test_a_constrained_policy_holds_its_entropy_where_a_free_one_collapses():
    free, _, _ = collapse(250)
    held, learner, history = collapse(250, entropy_target=-0.075)
    assert free.entropy.mean() / 4 < -1.0
    assert held.entropy.mean() / 4 == pytest.approx(-0.075, abs=0.05)
    assert free.expected.mean() < 0.1 < held.expected.mean()
    assert held.expected.mean() < 0.5  # it learned all the same
    for (before, entropy), (after, _) in itertools.pairwise(history):
        assert after == pytest.approx(min(before * math.exp(0.5 * (-0.075 - entropy)), 20.0), rel=1e-4)
    metrics = learner.metrics(None)
    assert metrics["entropy_coef"] == pytest.approx(float(learner.entropy.coefficient))
    assert metrics["entropy"] == pytest.approx(held.entropy.mean().item(), rel=1e-4)


def test_without_a_target_there_is_no_coefficient_to_report_or_to_save():
    _, learner, _ = collapse(1)
    assert "entropy_coef" not in learner.metrics(None).keys() | learner.state_dict().keys()


class Loop:
    def __init__(self):
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
        self.optimizer, self.criterion = torch.optim.SGD(self.model.parameters(), lr=0.1), nn.CrossEntropyLoss()
        self.hook = policy_noise.attach(self.model, self.optimizer, self.criterion, entropy_target=-0.3, p=1.0)

    def train(self, first, last):
        for step in range(first, last):
            images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(step))
            loss = self.criterion(self.model(images), torch.arange(8) % 3)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def test_the_coefficient_travels_in_the_optimizer_and_resuming_is_bit_equal():
    whole, first, second = Loop(), Loop(), Loop()
    whole.train(0, 6)
    first.train(0, 3)
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    assert second.hook.metrics["entropy_coef"] == first.hook.metrics["entropy_coef"] != pytest.approx(0.1, rel=1e-6)
    second.train(3, 6)
    torch.testing.assert_close(second.hook.state_dict(), whole.hook.state_dict(), rtol=0, atol=0)


def test_a_state_without_a_coefficient_is_refused_where_one_is_held():
    saved = PolicyLearner(PolicyNoiseMask(policy="static")).state_dict()
    with pytest.raises(ValueError, match=r"state_dict was saved without entropy_target, and this policy has one"):
        PolicyLearner(PolicyNoiseMask(policy="static"), entropy_target=-0.1).load_state_dict(saved)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (2.0, 5.0), (0.5, 0.5), (30.0, 3.0)])
def test_the_centred_brightness_has_an_expected_logarithm_of_zero_for_any_policy(alpha, beta):
    """Within 4.5 standard errors. Without centring, a policy such as Beta(2, 5) darkens every image."""
    count, generator = 20_000, torch.Generator().manual_seed(0)
    concentrations = [torch.full((count, 1, 4, 4), value, dtype=torch.float64) for value in (alpha, beta)]
    action = PF.sample_beta(*concentrations, generator)
    expected = torch.full_like(action, alpha / (alpha + beta))
    logarithm = PF.mask_brightness(action, 0.2, expected).log()
    error = float(logarithm.std()) / count**0.5
    assert abs(float(logarithm.mean())) < 4.5 * error + 1e-6
    uncentred = float(PF.mask_brightness(action, 0.2).log().mean())
    assert (abs(uncentred) > 50 * error) == (alpha != beta)


def test_a_mask_is_centred_on_its_own_policy():
    """Cells that are as dark as the policy expects do not darken the image."""
    torch.manual_seed(0)
    mask = PolicyNoiseMask(in_chans=1, policy="static", p=1.0, grid_size=4, center_brightness=True)
    with torch.no_grad():
        mask.policy.log_concentration[0] += 1.0
    means = {}
    for mask.center_brightness in (True, False):
        sample = mask.sample(torch.ones(4000, 1, 8, 8), torch.Generator().manual_seed(0))
        means[mask.center_brightness] = float(mask.render(sample, (8, 8)).flatten(1).mean(1).log().mean())
    assert abs(means[True]) < 0.01 < 0.1 < abs(means[False])
