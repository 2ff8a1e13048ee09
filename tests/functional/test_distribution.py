"""The Beta distribution, against those of torch and scipy."""

import math

import pytest
import torch
from torch.distributions import Beta

from policy_noise import functional as PF

CONCENTRATIONS = torch.tensor([0.05, 0.3, 1.0, 2.5, 20.0, 100.0])


@pytest.fixture
def pairs():
    """All pairs of concentrations from the floor to the cap."""
    return torch.cartesian_prod(CONCENTRATIONS, CONCENTRATIONS).unbind(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sample_is_that_of_torch_under_the_same_seed(pairs, dtype):
    concentration1, concentration0 = (value.to(dtype).expand(50, -1) for value in pairs)
    torch.manual_seed(3)
    action = PF.sample_beta(concentration1, concentration0)
    torch.manual_seed(3)
    expected = Beta(concentration1, concentration0).sample()
    assert torch.equal(action, expected.clamp(1e-6, 1 - 1e-6))
    assert action.dtype == dtype


def test_sample_follows_its_generator_and_leaves_the_global_one(pairs):
    before = torch.get_rng_state()
    draws = [PF.sample_beta(*pairs, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_sample_has_no_gradient_and_keeps_away_from_the_ends():
    tiny = torch.full((20_000,), 0.05, requires_grad=True)
    action = PF.sample_beta(tiny, tiny)
    assert not action.requires_grad
    assert action.min() >= 1e-6
    assert action.max() <= 1 - 1e-6
    assert action.min() < 1e-5  # the clamp is reached
    assert torch.isfinite(PF.beta_log_prob(action, tiny, tiny)).all()


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-10), (torch.float32, 2e-4)])
def test_log_prob_and_entropy_are_those_of_torch(pairs, dtype, rtol):
    concentration1, concentration0 = (value.to(dtype).clone().requires_grad_() for value in pairs)
    for value in (1e-6, 0.2, 0.5, 0.9, 1 - 1e-6):
        action = torch.full_like(concentration1, value)
        reference = Beta(concentration1, concentration0)
        for own, other in (
            (PF.beta_log_prob(action, concentration1, concentration0), reference.log_prob(action)),
            (PF.beta_entropy(concentration1, concentration0), reference.entropy()),
        ):
            torch.testing.assert_close(own, other, rtol=rtol, atol=100 * rtol * torch.finfo(torch.float32).eps ** 0.5)
            gradients = [
                torch.autograd.grad(total.sum(), (concentration1, concentration0), retain_graph=True)
                for total in (own, other)
            ]
            torch.testing.assert_close(*gradients, rtol=10 * rtol, atol=10 * rtol)


def test_entropy_of_the_uniform_distribution_is_zero_and_the_largest(pairs):
    one = torch.ones(1)
    assert PF.beta_entropy(one, one).item() == pytest.approx(0, abs=1e-6)
    assert (PF.beta_entropy(*(value.double() for value in pairs)) <= 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exponential_between_bounds_is_that_of_the_plain_formula(dtype):
    logarithm = (2 * torch.randn(6, 1, 5, 4, 2, dtype=dtype)).requires_grad_()  # a good part beyond the bounds
    weight = torch.randn_like(logarithm)
    own, plain = PF.bounded_exp(logarithm, -3.0, 1.0), logarithm.clamp(-3.0, 1.0).exp()
    assert torch.equal(own, plain)
    first, expected = (
        torch.autograd.grad((value * weight).sum(), logarithm, create_graph=True)[0] for value in (own, plain)
    )
    torch.testing.assert_close(first, expected)
    assert 0 < (first == 0).float().mean() < 0.5
    second = [torch.autograd.grad(gradient.square().sum(), logarithm)[0] for gradient in (first, expected)]
    torch.testing.assert_close(*second)


def test_a_logarithm_that_is_no_number_gets_no_gradient():
    logarithm = torch.tensor([torch.nan, 0.5], requires_grad=True)
    value = PF.bounded_exp(logarithm, -1.0, 1.0)
    assert value[0].isnan()
    value[1].backward()
    assert logarithm.grad.tolist() == pytest.approx([0.0, math.exp(0.5)])


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.7, -0.3)])
def test_scores_are_sums_over_cells_and_their_closed_gradient_is_that_of_autograd(pairs, weights):
    concentration1, concentration0 = (value.double().reshape(4, 1, -1).requires_grad_() for value in pairs)
    action = PF.sample_beta(concentration1, concentration0)
    log_prob, entropy = PF.beta_score(action, concentration1, concentration0)
    cells = (PF.beta_log_prob(action, concentration1, concentration0), PF.beta_entropy(concentration1, concentration0))
    for own, plain in zip((log_prob, entropy), cells, strict=True):
        torch.testing.assert_close(own, plain.flatten(1).sum(1), rtol=1e-10, atol=1e-10)
    each, gradients = torch.randn(4).double(), []
    for values in ((log_prob, entropy), (cell.flatten(1).sum(1) for cell in cells)):
        total = sum(weight * (each * value).sum() for weight, value in zip(weights, values, strict=True) if weight)
        gradients.append(torch.autograd.grad(total, (concentration1, concentration0)))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
