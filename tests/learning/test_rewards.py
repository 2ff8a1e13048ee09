"""A user's reward: a function from losses to costs."""

import pytest
import torch

from policy_noise import PolicyNoiseMask
from policy_noise.learning import PolicyLearner


def make_learner(**settings):
    torch.manual_seed(0)
    mask = PolicyNoiseMask(in_chans=1, policy="static", p=1.0)
    return PolicyLearner(mask, policy_optimizer="sgd", policy_lr=1.0, **settings)


def step(learner, losses):
    sample = learner.augmentation.sample(torch.rand(len(losses), 1, 8, 8), torch.Generator().manual_seed(1))
    learner.observe(sample, losses)
    learner.step({"lr": 1.0})
    return torch.cat([parameter.detach().flatten() for parameter in learner.parameters])


LOSSES = torch.tensor([0.2, 3.0, 0.7, 1.1, 0.1])


@pytest.mark.parametrize("normalize", [True, False])
def test_costs_take_the_losses_place_in_the_gradient_and_in_the_metrics(normalize):
    own = make_learner(reward=lambda losses: losses.clamp(max=1.0) ** 2, normalize_advantage=normalize)
    plain = make_learner(normalize_advantage=normalize)
    costs = LOSSES.clamp(max=1.0) ** 2
    assert torch.equal(step(own, LOSSES), step(plain, costs))
    assert own.metrics(None)["reward"] == plain.metrics(None)["reward"] == pytest.approx(-costs.mean().item())
    assert own.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(own.state_dict()["moving_average"], plain.state_dict()["moving_average"])


def test_losses_with_their_sign_turned_are_the_adversarial_reward():
    torch.testing.assert_close(
        step(make_learner(reward=torch.neg), LOSSES), step(make_learner(reward="adversarial"), LOSSES)
    )


def test_a_function_cannot_change_the_losses_that_are_trained_on():
    losses = LOSSES.clone()
    step(make_learner(reward=lambda values: values.mul_(2)), losses)
    assert torch.equal(losses, LOSSES)


@pytest.mark.parametrize(
    ("reward", "got"), [(torch.mean, r"\(\)"), (lambda losses: losses[1:], r"\(4,\)"), (lambda losses: 1.0, "float")]
)
def test_costs_of_another_shape_are_refused(reward, got):
    with pytest.raises(ValueError, match=rf"reward must give one cost for each loss, .* shape \(5,\), got {got}"):
        step(make_learner(reward=reward), LOSSES)


def test_costs_that_are_no_numbers_are_dropped():
    learner = make_learner(reward=torch.log)
    with pytest.warns(UserWarning, match="1 samples with a non-finite loss were ignored"):
        step(learner, torch.tensor([0.0, 1.0, 2.0]))
    assert learner.metrics(None)["samples_dropped"] == 1


def test_the_papers_estimator_takes_no_function():
    with pytest.raises(ValueError, match=r"estimator='paper' allows neither another reward .* reward=<.*neg"):
        make_learner(estimator="paper", reward=torch.neg)
