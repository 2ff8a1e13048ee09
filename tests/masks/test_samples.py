"""A draw of masks: what it computes when it is read, and the gradient that the learner takes from it."""

import dataclasses

import pytest
import torch

import policy_noise
from policy_noise import PolicyNoiseMask


@pytest.fixture
def mask():
    torch.manual_seed(3)
    mask = PolicyNoiseMask(grid_size=3, p=1.0)
    torch.nn.init.normal_(mask.policy.head.weight, std=0.5)
    return mask


@pytest.mark.parametrize("with_entropy", [False, True])
def test_the_closed_gradient_is_that_of_the_weighted_sum(mask, with_entropy):
    images = torch.randn(4, 3, 24, 24)
    weights = (torch.randn(4), torch.rand(4)) if with_entropy else (torch.randn(4),)
    sample, again = (mask.sample(images, torch.Generator().manual_seed(1)) for _ in range(2))
    assert not sample.is_scored
    assert sample.has_graph
    parameters = list(mask.policy.parameters())
    outputs, given = sample.surrogate(*weights)
    found = torch.autograd.grad(outputs, parameters, given)
    total = (weights[0] * again.log_prob).sum()
    if with_entropy:
        total = total - (weights[1] * again.entropy).sum()
    torch.testing.assert_close(found, torch.autograd.grad(total, parameters), rtol=1e-4, atol=1e-5)


def test_a_log_prob_that_is_given_is_what_is_learned_from(mask):
    sample = mask.sample(torch.randn(4, 3, 24, 24))
    other = torch.zeros(4, requires_grad=True)
    replaced = dataclasses.replace(sample, log_prob=other)
    outputs, weights = replaced.surrogate(torch.arange(4.0))
    assert outputs[0] is other
    assert weights[0].tolist() == [0, 1, 2, 3]
    assert replaced.finite().all()


def test_values_are_the_same_with_and_without_a_graph(mask):
    sample = mask.sample(torch.randn(4, 3, 24, 24))
    detached = sample.detach()
    assert not detached.has_graph
    assert not detached.is_scored
    torch.testing.assert_close(detached.entropy, sample.entropy.detach())
    torch.testing.assert_close(detached.log_prob, sample.log_prob.detach())
    with torch.no_grad():
        torch.testing.assert_close(sample.entropy, detached.entropy)


def test_a_sample_says_what_it_lacks():
    sample = policy_noise.RandomShading().sample(torch.randn(2, 3, 8, 8))
    with pytest.raises(TypeError, match="ShadingSample has no log_prob to learn from"):
        sample.surrogate(torch.ones(2))
    scored = dataclasses.replace(sample, log_prob=torch.zeros(2))
    with pytest.raises(TypeError, match="need an entropy, which ShadingSample does not have"):
        scored.surrogate(torch.ones(2), torch.ones(2))
