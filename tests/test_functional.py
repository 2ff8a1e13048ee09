"""The mathematics, against torch's distributions, Kornia's own calls, quadrature and enumeration."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.filters import gaussian_blur2d
from scipy import integrate
from scipy.stats import beta as scipy_beta
from torch.distributions import Beta

from policy_noise import functional as PF

CONCENTRATIONS = torch.tensor([0.05, 0.3, 1.0, 2.5, 20.0, 100.0])


@pytest.fixture
def pairs():
    """All pairs of concentrations from the floor to the cap."""
    return torch.cartesian_prod(CONCENTRATIONS, CONCENTRATIONS).unbind(1)


# -- the distribution --------------------------------------------------------------------------------------------------


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
    assert action.min() < 1e-5  # the ends are reached: the clamp is at work
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


# -- the estimator -----------------------------------------------------------------------------------------------------


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


def test_quadrature_agrees_with_the_closed_form_of_the_mean():
    alpha, beta = 2.0, 3.0
    exact = torch.tensor([beta, -alpha], dtype=torch.float64) / (alpha + beta) ** 2
    torch.testing.assert_close(quadrature_gradient(lambda a: a, alpha, beta), exact, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("reward", ["cooperative", "adversarial"])
@pytest.mark.parametrize("baseline", ["none", "batch", "leave_one_out", 0.7])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (2.0, 3.0), (0.6, 4.0)])
def test_reinforce_gradient_is_that_of_the_expected_loss(alpha, beta, baseline, reward):
    """Within 4.5 standard errors of 200,000 samples, for a loss that is no polynomial."""
    samples = 200_000
    concentration = torch.tensor([alpha, beta], dtype=torch.float64, requires_grad=True)
    expanded = concentration.expand(samples, 2)
    action = PF.sample_beta(expanded[:, 0].contiguous(), expanded[:, 1].contiguous())
    log_prob = PF.beta_log_prob(action, expanded[:, 0], expanded[:, 1])
    loss = (action - 0.9).abs()
    PF.reinforce_loss(log_prob, loss, baseline=baseline, reward=reward).backward()
    expected = quadrature_gradient(lambda a: abs(a - 0.9), alpha, beta) * (1 if reward == "cooperative" else -1)

    detached = concentration.detach().requires_grad_()
    scores = torch.autograd.functional.jacobian(
        lambda c: PF.beta_log_prob(action[:2000], c[0].expand(2000), c[1].expand(2000)), detached
    )
    spread = (scores * PF.advantage(loss, baseline=baseline)[:2000, None]).std(0) / math.sqrt(samples)
    assert ((concentration.grad - expected).abs() < 4.5 * spread).all()
    assert (spread < 0.3 * expected.abs()).all()  # precise enough to tell sign and scale


@pytest.mark.parametrize(("baseline", "factor"), [("none", 1.0), ("leave_one_out", 1.0), (5.0, 1.0), ("batch", 2 / 3)])
def test_estimator_by_enumeration_of_all_batches(baseline, factor):
    """The expectation over every batch of three draws from four actions: exact, and batch is short by (n - 1) / n."""
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
    """The same gradient as without them, whatever their losses are."""
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
    """By quadrature over two independent cells: under a constant loss only the score function expects no gradient."""
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


# -- rendering ---------------------------------------------------------------------------------------------------------


def kornia_render(action, size, kernel_size, sigma):
    enlarged = F.interpolate(action, size, mode="nearest")
    kernels, sigmas = (value if isinstance(value, tuple) else (value, value) for value in (kernel_size, sigma))
    return gaussian_blur2d(enlarged, kernels, sigmas, border_type="reflect")


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize(("kernel_size", "sigma"), [(13, 6.0), (3, 0.75), (5, 0.3), (1, 2.0), (27, 4.0)])
@pytest.mark.parametrize(
    ("grid", "size"),
    [((8, 8), (28, 28)), ((7, 5), (33, 57)), ((64, 64), (224, 224)), ((2, 2), (164, 230)), ((16, 16), (16, 16))],
)
def test_render_is_kornias_call(grid, size, kernel_size, sigma, dtype, atol):
    action = torch.rand(2, 1, *grid, dtype=dtype)
    expected = kornia_render(action, size, kernel_size, sigma)
    torch.testing.assert_close(PF.render_mask(action, size, kernel_size, sigma), expected, rtol=0, atol=atol)
    assert torch.equal(PF.render_mask(action, size, kernel_size, sigma, method="kornia"), expected)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    extra=st.tuples(st.integers(0, 230), st.integers(0, 230)),
    given_kernel=st.booleans(),
)
def test_render_fits_every_size_and_is_kornias_call(grid, extra, given_kernel):
    size = tuple(cells + more for cells, more in zip(grid, extra, strict=True))
    kernel_size = 2 * min(size) - 1 if given_kernel else None
    action = torch.rand(1, 1, *grid)
    mask = PF.render_mask(action, size, kernel_size)
    assert mask.shape == (1, 1, *size)
    assert mask.min() >= action.min() - 1e-5
    assert mask.max() <= action.max() + 1e-5
    expected = kornia_render(action, size, *PF.blur_parameters(size, grid, kernel_size))
    torch.testing.assert_close(mask, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_render_in_half_precision(dtype):
    action = torch.rand(2, 1, 8, 8).to(dtype)
    mask = PF.render_mask(action, (64, 64))
    assert mask.dtype == dtype
    expected = PF.render_mask(action.float(), (64, 64))
    torch.testing.assert_close(mask.float(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_render_of_volumes_is_a_separable_convolution():
    action, size, kernel_size, sigma = torch.rand(2, 1, 3, 4, 5, dtype=torch.float64), (12, 17, 20), 7, 1.7
    expected = F.interpolate(action, size, mode="nearest")
    offsets = torch.arange(kernel_size, dtype=torch.float64) - kernel_size // 2
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    for axis in (2, 3, 4):
        lines = expected.movedim(axis, -1)
        flat = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (kernel_size // 2,) * 2, mode="reflect")
        expected = F.conv1d(flat, kernel).view(lines.shape).movedim(-1, axis)
    torch.testing.assert_close(PF.render_mask(action, size, kernel_size, sigma), expected, rtol=0, atol=1e-12)


def test_render_is_differentiable_in_the_action_also_after_inference_mode():
    """The rendering operators are kept, and one born in inference mode could not be saved for a backward."""
    action = torch.rand(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        PF.render_mask(action.detach(), (11, 13))
    assert torch.autograd.gradcheck(lambda value: PF.render_mask(value, (11, 13)), action)


@pytest.mark.parametrize("method", ["matmul", "kornia"])
def test_render_keeps_its_precision_under_autocast(method):
    action = torch.rand(2, 1, 8, 8)
    expected = PF.render_mask(action, (32, 32), method=method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(PF.render_mask(action, (32, 32), method=method), expected)


def test_blur_parameters_are_a_share_of_each_axis_cell():
    assert PF.blur_parameters((96, 128), (4, 4)) == ((17, 23), (8.0, 128 / 12))
    assert PF.blur_parameters((48, 48), (4, 4)) == ((9, 9), (4.0, 4.0))
    assert PF.blur_parameters((48, 48), (2, 2)) == ((17, 17), (8.0, 8.0))
    assert PF.blur_parameters((48, 48), (2, 8)) == ((17, 5), (8.0, 2.0))
    transposed = PF.blur_parameters((64, 28), (4, 4))
    assert tuple(values[::-1] for values in transposed) == PF.blur_parameters((28, 64), (4, 4))
    assert PF.blur_parameters((100, 100), (4, 4), kernel_size=13) == ((13, 13), (6.0, 6.0))
    assert PF.blur_parameters((100, 100), (4, 4), sigma=6) == ((13, 13), (6.0, 6.0))
    assert PF.blur_parameters((100, 100), (4, 4), 5, 9.0) == ((5, 5), (9.0, 9.0))
    assert PF.blur_parameters((100, 100), (4, 4), (5, 7), (9.0, 2.0)) == ((5, 7), (9.0, 2.0))
    assert PF.blur_parameters((8, 128, 128), (2, 2, 2))[1] == (8 / 6, 128 / 6, 128 / 6)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(cells=st.integers(2, 6), pixels=st.integers(8, 40), stretch=st.integers(1, 12), tall=st.booleans())
def test_the_largest_step_over_the_range_does_not_depend_on_the_aspect_ratio(cells, pixels, stretch, tall):
    """Along the axis that stays as it is, and finer along the one that is stretched."""
    short = pixels * cells
    action = torch.rand(1, 1, cells, cells, dtype=torch.float64, generator=torch.Generator().manual_seed(cells))

    def steps(size):
        mask = PF.render_mask(action, size)[0, 0]
        largest = torch.stack([mask.diff(dim=axis).abs().max() for axis in (0, 1)])
        return largest / (mask.max() - mask.min())

    square, long = steps((short, short)), steps((short * stretch, short) if tall else (short, short * stretch))
    assert long.max() <= 1.1 * square.max()
    assert long[1 if tall else 0] >= 0.9 * square[1 if tall else 0]


@pytest.mark.parametrize("kernel_size", [None, 13])
def test_square_images_are_kornias_call_with_one_number_to_the_bit(kernel_size):
    action = torch.rand(2, 1, 4, 4)
    kernels, sigmas = PF.blur_parameters((96, 96), (4, 4), kernel_size)
    assert (len(set(kernels)), len(set(sigmas))) == (1, 1)
    expected = gaussian_blur2d(
        F.interpolate(action, (96, 96), mode="nearest"), kernels[0], (sigmas[0], sigmas[0]), border_type="reflect"
    )
    assert torch.equal(PF.render_mask(action, (96, 96), kernel_size, method="kornia"), expected)
    torch.testing.assert_close(PF.render_mask(action, (96, 96), kernel_size), expected, rtol=0, atol=2e-6)


@given(side=st.integers(1, 2000), other=st.integers(1, 2000), cells=st.integers(1, 64))
def test_blur_parameters_left_out_always_fit(side, other, cells):
    kernels, sigmas = PF.blur_parameters((side, other), (cells, cells))
    for pixels, kernel_size, sigma in zip((side, other), kernels, sigmas, strict=True):
        assert kernel_size % 2 == 1
        assert 1 <= kernel_size <= 2 * pixels - 1
        assert sigma == pytest.approx(pixels / cells / 3)


@given(side=st.integers(1, 300), sigma=st.floats(1e-3, 1e4))
def test_a_given_sigma_always_finds_a_kernel_that_fits(side, sigma):
    kernels, kept = PF.blur_parameters((side, side), (4, 4), sigma=sigma)
    assert kept == (sigma, sigma)
    for kernel_size in kernels:
        assert kernel_size % 2 == 1
        assert 1 <= kernel_size <= 2 * side - 1


@pytest.mark.parametrize(("name", "value"), [("kernel_size", [13]), ("sigma", [6]), ("sigma", (1.0, 2.0, 3.0))])
def test_another_number_of_numbers_than_axes_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be one number or 2, one for each axis") as error:
        PF.blur_parameters((64, 64), (4, 4), **{name: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("kernel_size", [0, -3, 4, 3.5, math.nan, math.inf, (13, 4)])
def test_blur_parameters_refuse_a_kernel(kernel_size):
    with pytest.raises(ValueError, match="kernel_size must be an odd positive integer") as error:
        PF.blur_parameters((64, 64), (4, 4), kernel_size)
    assert repr(kernel_size) in str(error.value)


@pytest.mark.parametrize("sigma", [0, -1.0, math.nan, math.inf, (6.0, 0)])
def test_blur_parameters_refuse_a_sigma(sigma):
    with pytest.raises(ValueError, match="sigma must be a positive number") as error:
        PF.blur_parameters((64, 64), (4, 4), 5, sigma)
    assert repr(sigma) in str(error.value)


def test_a_kernel_that_does_not_fit_is_refused_with_the_largest_that_does():
    with pytest.raises(ValueError, match=r"kernel_size 21 .*\(10, 30\).* at most 19"):
        PF.render_mask(torch.rand(1, 1, 4, 4), (10, 30), kernel_size=21)
    assert PF.render_mask(torch.rand(1, 1, 4, 4), (10, 30), kernel_size=19).shape == (1, 1, 10, 30)


@pytest.mark.parametrize(
    ("shape", "size", "arguments", "message"),
    [
        ((4, 4), (8, 8), {}, r"action must have shape .*got \(4, 4\)"),
        ((1, 2, 4, 4), (8, 8), {}, r"action must have shape .*got \(1, 2, 4, 4\)"),
        ((1, 1, 4, 4), (8,), {}, r"size \(8,\) does not fit a grid of \(4, 4\)"),
        ((1, 1, 4, 4), (8, 3), {}, r"size \(8, 3\) does not fit a grid of \(4, 4\)"),
        ((1, 1, 4, 4), (8, 8, 8), {}, r"size \(8, 8, 8\) does not fit"),
        ((1, 1, 4, 4), (8, 8), {"method": "fft"}, "method must be .*'fft'"),
        ((1, 1, 4, 4, 4), (8, 8, 8), {"method": "kornia"}, "method='kornia' renders two axes"),
    ],
)
def test_render_refuses(shape, size, arguments, message):
    with pytest.raises(ValueError, match=message):
        PF.render_mask(torch.rand(shape), size, **arguments)


# -- applying ----------------------------------------------------------------------------------------------------------


def test_mean_preserving_scaling_has_mean_one():
    for mask in (torch.rand(4, 1, 20, 30), torch.rand(4, 1, 6, 7, 8)):
        scaled = PF.scale_mask(mask, mean_preserving=True)
        torch.testing.assert_close(scaled.flatten(1).mean(1), torch.ones(4))
        torch.testing.assert_close(scaled, mask / mask.flatten(1).mean(1).view(-1, *[1] * (mask.ndim - 1)))


@pytest.mark.parametrize(("grid", "size"), [((4, 4), (32, 32)), ((3, 5), (30, 41)), ((2, 3, 4), (12, 17, 20))])
def test_a_fixed_dose_has_mean_one_and_its_deviation(grid, size):
    action = torch.distributions.Beta(0.5, 0.5).sample((64, 1, *grid))
    mask = PF.noise_mask(torch.ones(64, 1, *size), action, pattern_std=0.15).flatten(1)
    torch.testing.assert_close(mask.mean(1), torch.ones(64))
    torch.testing.assert_close(mask.std(1, correction=0), torch.full((64,), 0.15))
    # An affine function of the rendered mask, so that cells keep their order.
    rendered = PF.render_mask(action, size).flatten(1)
    correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(mask, rendered, strict=True)])
    torch.testing.assert_close(correlation, torch.ones(64))


def test_a_fixed_dose_never_turns_light_negative_and_a_flat_mask_stays_flat():
    action = torch.full((3, 1, 4, 4), 0.5)
    action[1, 0, 0, 0] = 1e-6  # one dark cell, which a dose of 1 would push far below 0
    action[2] = 1e-6  # a saturated policy
    mask = PF.noise_mask(torch.ones(3, 1, 32, 32), action, pattern_std=1.0).flatten(1)
    assert torch.equal(mask[0], torch.ones(1024))
    assert torch.equal(mask[2], torch.ones(1024))
    assert 0 <= mask[1].min() < 0.1
    torch.testing.assert_close(mask[1].mean(), torch.tensor(1.0))
    assert 0.1 < mask[1].std() < 1


@pytest.mark.parametrize("grid", [(2, 2), (3, 4, 5)])
def test_levels_brighten_as_often_as_they_darken_and_keep_their_deviation(grid):
    action = torch.rand(20_000, 1, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    level = PF.mask_brightness(action, 0.2)
    assert level.shape == (20_000, 1, *[1] * len(grid))
    assert level.log().std().item() == pytest.approx(0.2, rel=0.02)
    assert (level > 1).double().mean().item() == pytest.approx(0.5, abs=0.01)
    means = PF.noise_mask(
        torch.ones(20_000, 1, *(3 * cells for cells in grid)).double(), action, pattern_std=0.1, brightness_std=0.2
    )
    torch.testing.assert_close(means.flatten(1).mean(1), level.flatten())


def test_a_level_has_a_reach_that_no_policy_leaves():
    action = torch.stack([torch.full((1, 64, 64), value) for value in (1e-6, 0.5, 1 - 1e-6)])
    torch.testing.assert_close(PF.mask_brightness(action, 0.2).flatten(), torch.tensor([-0.6, 0.0, 0.6]).exp())


def test_strength_moves_the_mask_from_one():
    mask = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(PF.scale_mask(mask, strength=0.25), 1 + 0.25 * (mask - 1))
    assert torch.equal(PF.scale_mask(mask, strength=0.0), torch.ones_like(mask))
    assert torch.equal(PF.scale_mask(mask), mask)


def test_apply_multiplies_values_or_intensities():
    images, mask = torch.randn(4, 3, 8, 8), torch.rand(4, 1, 8, 8) * 2
    black = torch.tensor([-2.0, -1.5, -1.0]).view(1, 3, 1, 1)
    assert torch.equal(PF.apply_mask(images, mask), images * mask)
    torch.testing.assert_close(PF.apply_mask(images, mask, black), black + mask * (images - black))


def test_black_stays_black():
    black = torch.tensor([-2.1179, -2.0357, -1.8044]).view(1, 3, 1, 1)
    images = black.expand(2, 3, 16, 16).clone()
    masked = PF.noise_mask(images, torch.rand(2, 1, 4, 4), mean_preserving=True, black=black)
    torch.testing.assert_close(masked, images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("black", [None, torch.tensor([-2.0, -1.5, -1.0]).view(1, 3, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_images_that_are_not_masked_come_back_bit_for_bit(dtype, black):
    images = torch.randn(6, 3, 16, 16).to(dtype)
    applied = torch.tensor([True, False, True, False, False, True])
    masked = PF.noise_mask(images, torch.rand(6, 1, 4, 4), black=black, applied=applied, mean_preserving=True)
    assert masked.dtype == dtype
    assert torch.equal(masked[~applied], images[~applied])
    assert (masked[applied] != images[applied]).flatten(1).any(1).all()


def test_noise_mask_is_its_parts():
    images, action, black = torch.randn(2, 1, 24, 20), torch.rand(2, 1, 4, 5), torch.tensor(-1.0)
    mask = PF.scale_mask(PF.render_mask(action, (24, 20), 5, 1.5), strength=0.5, mean_preserving=True)
    own = PF.noise_mask(
        images, action, kernel_size=5, sigma=1.5, strength=0.5, mean_preserving=True, black=black.view(1, 1, 1, 1)
    )
    torch.testing.assert_close(own, PF.apply_mask(images, mask, black.view(1, 1, 1, 1)))
