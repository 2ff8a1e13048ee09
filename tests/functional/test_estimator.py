"""The estimators, against quadrature and enumeration."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import integrate
from scipy.stats import beta as scipy_beta

from policy_noise import functional as PF


@functools.cache
def quadrature_gradient(loss, alpha, beta, step=1e-4):
    """d E[loss(a)] / d (alpha, beta) by quadrature of the expectation and a central difference."""

    def expected(first, second):
        return integrate.quad(lambda a: loss(a) * scipy_beta.pdf(a, first, second), 0, 1, epsabs=1e-12, limit=200)[0]

    return torch.tensor(
        [
            (expected(alpha + step, beta) - expected(alpha - step, beta)) / (2 * step),
            (expected(alpha, beta + step) - expected(alpha, beta - step)) / (2 * step),
        ],
        dtype=torch.float64,
    )


def distance(action):
    return abs(action - 0.9)


def test_quadrature_agrees_with_the_closed_form_of_the_mean():
    alpha, beta = 2.0, 3.0
    exact = torch.tensor([beta, -alpha], dtype=torch.float64) / (alpha + beta) ** 2
    torch.testing.assert_close(quadrature_gradient(lambda a: a, alpha, beta), exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("reward", ["cooperative", "adversarial"])
@pytest.mark.parametrize("baseline", ["none", "batch", "leave_one_out", 0.7])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (2.0, 3.0), (0.6, 4.0)])
def test_reinforce_gradient_is_that_of_the_expected_loss(alpha, beta, baseline, reward):
    """The loss is not a polynomial. The tolerance is 4.5 standard errors of 200,000 samples."""
    samples = 200_000
    concentration = torch.tensor([alpha, beta], dtype=torch.float64, requires_grad=True)
    expanded = concentration.expand(samples, 2)
    action = PF.sample_beta(expanded[:, 0].contiguous(), expanded[:, 1].contiguous())
    log_prob = PF.beta_log_prob(action, expanded[:, 0], expanded[:, 1])
    loss = distance(action)
    PF.reinforce_loss(log_prob, loss, baseline=baseline, reward=reward).backward()
    expected = quadrature_gradient(distance, alpha, beta) * (1 if reward == "cooperative" else -1)

    apart = concentration.detach().repeat(2000, 1).requires_grad_()  # one row per sample, for its own gradient
    (scores,) = torch.autograd.grad(PF.beta_log_prob(action[:2000], *apart.unbind(1)).sum(), apart)
    spread = (scores * PF.advantage(loss, baseline=baseline)[:2000, None]).std(0) / math.sqrt(samples)
    assert ((concentration.grad - expected).abs() < 4.5 * spread).all()
    assert (spread < 0.3 * expected.abs()).all()  # precise enough to tell sign and scale


@pytest.mark.parametrize(("baseline", "factor"), [("none", 1.0), ("leave_one_out", 1.0), (5.0, 1.0), ("batch", 2 / 3)])
def test_estimator_by_enumeration_of_all_batches(baseline, factor):
    """Exact expectation over all batches of three draws from four actions. "batch" is too small by (n - 1) / n."""
    logits = torch.tensor([0.3, -1.0, 0.8, 0.1], dtype=torch.float64, requires_grad=True)
    losses = torch.tensor([1.0, 4.0, -2.0, 0.5], dtype=torch.float64)
    (exact,) = torch.autograd.grad((logits.softmax(0) * losses).sum(), logits)
    probability = logits.detach().softmax(0)
    total = torch.zeros_like(logits)
    for draw in itertools.product(range(4), repeat=3):
        drawn = torch.tensor(draw)
        surrogate = PF.reinforce_loss(logits.log_softmax(0)[drawn], losses[drawn], baseline=baseline)
        total += probability[drawn].prod() * torch.autograd.grad(surrogate, logits)[0]
    torch.testing.assert_close(total, factor * exact, rtol=1e-10, atol=1e-12)


def test_leave_one_out_is_the_mean_of_the_others():
    loss = torch.tensor([1.0, 2.0, 6.0, -3.0])
    expected = [value - (loss.sum() - value) / 3 for value in loss]
    torch.testing.assert_close(PF.advantage(loss, baseline="leave_one_out"), torch.stack(expected))


def test_normalised_advantage_has_the_deviation_of_one():
    loss = torch.rand(64) * 100 + 3
    advantage = PF.advantage(loss, baseline="batch", normalize=True)
    assert advantage.mean().item() == pytest.approx(0, abs=1e-5)
    assert advantage.std(correction=0).item() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("baseline", ["none", "batch", "leave_one_out", 2.0])
def test_dropped_samples_count_for_nothing(baseline, normalize):
    """The gradient is the same as without these samples, whatever their losses are."""
    log_prob = torch.randn(6, requires_grad=True)
    entropy = torch.randn(6, requires_grad=True)
    loss = torch.tensor([1.0, math.nan, 3.0, math.inf, 7.0, -math.inf])
    valid = torch.isfinite(loss)
    settings = {"baseline": baseline, "normalize": normalize, "entropy_coef": 0.3}
    PF.reinforce_loss(log_prob, loss, entropy=entropy, valid=valid, **settings).backward()
    dropped, dropped_entropy = log_prob.grad.clone(), entropy.grad.clone()
    log_prob.grad = entropy.grad = None
    PF.reinforce_loss(log_prob[valid], loss[valid], entropy=entropy[valid], **settings).backward()
    torch.testing.assert_close(dropped, log_prob.grad)
    torch.testing.assert_close(dropped_entropy, entropy.grad)
    assert (dropped[~valid] == 0).all()


@pytest.mark.parametrize("baseline", ["none", "batch", "leave_one_out", 0.4])
def test_one_valid_loss_is_not_divided_by_its_missing_deviation(baseline):
    advantage = PF.advantage(
        torch.tensor([0.5, 9.0]), baseline=baseline, normalize=True, valid=torch.tensor([True, False])
    )
    assert advantage.abs().max() <= 0.5


def test_reductions_and_entropy_bonus():
    log_prob, loss, entropy = torch.randn(5), torch.rand(5), torch.rand(5)
    weight = PF.advantage(loss)
    expected = log_prob * weight - 0.1 * entropy
    arguments = {"entropy": entropy, "entropy_coef": 0.1}
    torch.testing.assert_close(PF.reinforce_loss(log_prob, loss, reduction="none", **arguments), expected)
    torch.testing.assert_close(PF.reinforce_loss(log_prob, loss, reduction="sum", **arguments), expected.sum())
    torch.testing.assert_close(PF.reinforce_loss(log_prob, loss, **arguments), expected.mean())


def test_reinforce_loss_has_no_gradient_into_the_loss():
    log_prob, loss = torch.randn(5, requires_grad=True), torch.rand(5, requires_grad=True)
    PF.reinforce_loss(log_prob, loss).backward()
    assert loss.grad is None
    assert log_prob.grad is not None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"loss": torch.tensor(1.0)}, r"log_prob and loss .*\(B,\).*\(4,\) and \(\)"),
        ({"loss": torch.zeros(3)}, r"\(4,\) and \(3,\)"),
        ({"log_prob": torch.zeros(4, 2), "loss": torch.zeros(4, 2)}, r"\(4, 2\) and \(4, 2\)"),
        ({"baseline": "median"}, "baseline must be .*'median'"),
        ({"reward": "good"}, "reward must be .*'good'"),
        ({"reduction": "max"}, "reduction must be .*'max'"),
        ({"entropy_coef": 0.1}, "entropy_coef is 0.1 but entropy"),
    ],
)
def test_reinforce_loss_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        PF.reinforce_loss(**{"log_prob": torch.zeros(4), "loss": torch.zeros(4), **arguments})


def test_paper_objective_is_its_formula():
    log_prob = torch.randn(6, 16, dtype=torch.float64, requires_grad=True)
    loss = torch.rand(6, dtype=torch.float64, requires_grad=True)
    expected = log_prob.exp().sum(1).log().mean() * loss.mean()
    gradients = torch.autograd.grad(expected, (log_prob, loss))
    for given_loss in (loss, loss.mean()):
        own = PF.paper_objective(log_prob, given_loss)
        torch.testing.assert_close(own, expected)
        torch.testing.assert_close(torch.autograd.grad(own, (log_prob, loss)), gradients)


def test_paper_objective_does_not_overflow():
    concentration1, concentration0 = torch.full((2, 16), 0.01), torch.full((2, 16), 500.0)
    log_prob = PF.beta_log_prob(torch.full((2, 16), 1e-6), concentration1, concentration0) + 100
    assert torch.isinf(log_prob.exp().sum(1)).all()
    assert torch.isfinite(PF.paper_objective(log_prob, torch.tensor(1.0)))


def test_paper_objective_is_no_reinforce_and_reinforce_loss_is():
    """Quadrature over two independent cells: for a constant loss, only the score function's expected gradient is 0."""
    nodes, weights = torch.tensor(_legendre(60), dtype=torch.float64)
    concentration = torch.tensor([2.0, 3.0], dtype=torch.float64, requires_grad=True)
    log_density = PF.beta_log_prob(nodes, concentration[0].expand(60), concentration[1].expand(60))
    cells = torch.stack([log_density[:, None].expand(60, 60), log_density[None].expand(60, 60)], -1).reshape(-1, 2)
    probability = (cells.detach().sum(1).exp().view(60, 60) * weights[:, None] * weights[None]).flatten()
    assert probability.sum().item() == pytest.approx(1, abs=1e-9)
    surrogates = {
        "paper": torch.stack([PF.paper_objective(row[None], torch.tensor(1.0)) for row in cells]),
        "score": PF.reinforce_loss(cells.sum(1), torch.ones(3600).double(), baseline="none", reduction="none"),
    }
    expected = {
        name: torch.autograd.grad((probability * value).sum(), concentration, retain_graph=True)[0]
        for name, value in surrogates.items()
    }
    assert expected["score"].abs().max() < 1e-6
    assert expected["paper"].abs().max() > 0.01


def _legendre(count):
    """Gauss-Legendre nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return np.stack([(nodes + 1) / 2, weights / 2])


@pytest.mark.parametrize("shape", [(4,), (4, 2, 2)])
def test_paper_objective_refuses(shape):
    with pytest.raises(ValueError, match=r"log_prob must have shape \(B, G \* G\)"):
        PF.paper_objective(torch.zeros(shape), torch.tensor(1.0))


@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("baseline", ["leave_one_out", "batch", "none", 1.3])
def test_weights_are_advantages_over_their_number(baseline, normalize, count):
    loss, valid = torch.rand(9) * 3, torch.arange(9) < count
    average = torch.tensor(1.3)
    moments = PF.LossMoments.of(loss, valid, average)
    alone = count < 2 and baseline in ("leave_one_out", "batch")
    advantage = PF.advantage(loss, baseline=1.3 if alone else baseline, normalize=normalize, valid=valid)
    torch.testing.assert_close(moments.weights(baseline, normalize), advantage / max(count, 1))
    assert (moments.weights(baseline, normalize)[count:] == 0).all()
