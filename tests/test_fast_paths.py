"""Every shortcut of the mask and of its learner is held to the plain way of doing it."""

import copy
import io
import shutil
import warnings
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import nn

import policy_noise
import policy_noise.functional as PF
from benchmarks.overhead.launches import Launches
from policy_noise import PolicyNoiseMask
from policy_noise.learning import PolicyLearner
from policy_noise.learning.window import SampleCount
from policy_noise.policy import BackbonePolicy, SpatialPolicy


def moved(mask):
    """A mask whose policy has left its start, where all gradients of the head's input are zero."""
    with torch.no_grad():
        for parameter in mask.policy.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mask


# -- the thumbnail -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(32, 32), (64, 48), (224, 96), (33, 64), (28, 28), (50, 37)])
def test_thumbnail_is_adaptive_pooling(size, layout):
    policy = SpatialPolicy(3, (4, 4))
    seen = []
    policy.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = torch.randn(2, 3, *size).contiguous(memory_format=layout)
    policy(images)
    torch.testing.assert_close(seen[0], F.adaptive_avg_pool2d(images, (16, 16)))


def test_thumbnail_of_volumes_is_adaptive_pooling():
    policy = SpatialPolicy(1, (2, 2, 4))
    seen = []
    policy.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = torch.randn(2, 1, 16, 24, 32)
    policy(images)
    torch.testing.assert_close(seen[0], F.adaptive_avg_pool3d(images, (8, 8, 16)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_thumbnail_of_half_precision_images_is_averaged_in_fp32(dtype):
    policy = SpatialPolicy(3, (4, 4))
    seen = []
    policy.stem.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = torch.randn(2, 3, 64, 64).to(dtype)
    policy(images)
    torch.testing.assert_close(seen[0], F.adaptive_avg_pool2d(images.float(), (16, 16)))


def test_backbone_gives_the_same_channels_last():
    policy = BackbonePolicy("resnet10t", 3, (4, 4))
    twin = copy.deepcopy(policy)
    seen = []
    policy.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = torch.randn(4, 3, 128, 128)
    features = twin.backbone(images)
    for own, head, base in zip(
        policy(images), (twin.head1, twin.head0), (twin.base_concentration1, twin.base_concentration0), strict=True
    ):
        torch.testing.assert_close(own, 0.9 * base + 0.1 * head(features), rtol=1e-3, atol=1e-4)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


# -- the rendering -----------------------------------------------------------------------------------------------------


def plain_noise_mask(
    images,
    action,
    kernel_size,
    sigma,
    strength,
    black,
    applied,
    mean_preserving=False,
    pattern_std=None,
    brightness_std=0.0,
):
    """Every step on the pixels, with Kornia's blur."""
    enlarged = F.interpolate(action, images.shape[2:], mode="nearest")
    mask = gaussian_blur2d(enlarged, (kernel_size, kernel_size), (sigma, sigma), border_type="reflect")
    mean = mask.mean((1, 2, 3), keepdim=True)
    if pattern_std is not None:
        lowest = action.amin((1, 2, 3), keepdim=True)
        scale = torch.maximum(mask.std((1, 2, 3), keepdim=True, correction=0) / pattern_std, mean - lowest)
        mask = 1 + (mask - mean) / scale * (1 - 1e-6)
    elif mean_preserving:
        mask = mask / mean
    z = (action.flatten(1).mean(1) - 0.5) / (1 / (12 * action[0].numel())) ** 0.5
    mask = mask * torch.exp(brightness_std * z).view(-1, 1, 1, 1)
    mask = 1 + strength * (mask - 1)
    if applied is not None:
        mask = torch.where(applied.view(-1, 1, 1, 1), mask, 1.0)
    return images * mask if black is None else black + mask * (images - black)


@pytest.mark.parametrize("applied", [None, torch.tensor([True, False, True])])
@pytest.mark.parametrize("black", [None, torch.tensor([-2.0, -1.5, -1.0]).double().view(1, 3, 1, 1)])
@pytest.mark.parametrize(
    "scaling", [{}, {"mean_preserving": True}, {"pattern_std": 0.2}, {"pattern_std": 1.0, "brightness_std": 0.3}]
)
@pytest.mark.parametrize("strength", [1.0, 0.4, 0.0])
def test_noise_mask_scales_cells_as_it_would_scale_pixels(strength, scaling, black, applied):
    images = torch.randn(3, 3, 30, 41, dtype=torch.float64)
    action = torch.rand(3, 1, 5, 7, dtype=torch.float64, requires_grad=True)
    settings = {"kernel_size": 7, "sigma": 2.5, "strength": strength, "black": black, "applied": applied, **scaling}
    expected = plain_noise_mask(images, action, **settings)
    result = PF.noise_mask(images, action, **settings)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(images)
    gradients = [torch.autograd.grad((value * weight).sum(), action)[0] for value in (result, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("shape", [(37, 64), (8, 9, 10)])
def test_images_left_out_come_back_bit_for_bit_at_any_strength(shape, strength):
    grid = [4] * len(shape)
    images, applied = torch.randn(6, 2, *shape), torch.tensor([True, False] * 3)
    black = torch.full((1, 2, *[1] * len(shape)), -1.7)
    for level in (None, black):
        masked = PF.noise_mask(
            images, torch.rand(6, 1, *grid), strength=strength, mean_preserving=True, black=level, applied=applied
        )
        assert torch.equal(masked[~applied], images[~applied])
        assert not torch.equal(masked[applied], images[applied])


def test_cells_of_zero_leave_images_that_are_left_out_alone():
    images = torch.randn(2, 1, 16, 16)
    action = torch.stack([torch.zeros(1, 4, 4), torch.rand(1, 4, 4)])
    masked = PF.noise_mask(images, action, mean_preserving=True, applied=torch.tensor([False, True]))
    assert torch.equal(masked[0], images[0])
    assert masked.isfinite().all()


def test_volumes_are_scaled_by_cells_too():
    images, action = torch.ones(2, 1, 8, 12, 10), torch.rand(2, 1, 2, 3, 4)
    mask = PF.scale_mask(PF.render_mask(action, (8, 12, 10)), strength=0.6, mean_preserving=True)
    torch.testing.assert_close(PF.noise_mask(images, action, strength=0.6, mean_preserving=True), mask)


def test_operators_made_in_inference_mode_enter_a_later_backward():
    images, action = torch.rand(2, 1, 23, 29), torch.rand(2, 1, 3, 4)
    arguments = {"mean_preserving": True, "applied": torch.tensor([True, True])}
    with torch.inference_mode():
        PF.noise_mask(images, action, **arguments)  # the first call of these sizes fills the cache
    action.requires_grad_()
    PF.noise_mask(images, action, **arguments).square().sum().backward()
    assert action.grad.abs().sum() > 0


def test_noise_mask_keeps_its_precision_under_autocast():
    images, action = torch.rand(2, 3, 32, 32), torch.rand(2, 1, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = PF.noise_mask(images, action, mean_preserving=True)
    assert torch.equal(inside, PF.noise_mask(images, action, mean_preserving=True))


# -- the draw ----------------------------------------------------------------------------------------------------------


def draw_plainly(logarithm, low, high, generator):
    """What :func:`policy_noise.functional.draw` computes, as it reads in a book."""
    concentration = logarithm.clamp(low, high).exp()
    action = PF.sample_beta(*concentration.unbind(-1), generator)
    return concentration, action, PF.beta_log_prob(action, *concentration.unbind(-1)).flatten(1).sum(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_draws_and_their_scores_and_gradients_are_those_of_the_plain_formulas(dtype):
    logarithm = (2 * torch.randn(6, 1, 5, 4, 2, dtype=dtype)).requires_grad_()  # a good part beyond the bounds
    weight, plain_weight = torch.randn(6, dtype=dtype), torch.randn(6, 1, 5, 4, 2, dtype=dtype)
    results = []
    for function in (PF.draw, draw_plainly):
        drawn = function(logarithm, -3.0, 3.0, torch.Generator().manual_seed(1))
        concentration, action, log_prob = drawn
        assert not action.requires_grad
        outputs = {"score": (log_prob * weight).sum(), "concentration": (concentration * plain_weight).sum()}
        outputs["both"] = outputs["score"] + outputs["concentration"]
        first = [torch.autograd.grad(output, logarithm, create_graph=True)[0] for output in outputs.values()]
        second = [torch.autograd.grad(gradient.square().sum(), logarithm, retain_graph=True)[0] for gradient in first]
        results.append((drawn, first, second))
    (drawn, first, second), (expected, expected_first, expected_second) = results
    assert torch.equal(drawn[0], expected[0])
    assert torch.equal(drawn[1], expected[1])
    tolerance = {"rtol": 1e-5, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-8}
    torch.testing.assert_close(drawn[2], expected[2], **tolerance)
    torch.testing.assert_close(first, expected_first, **tolerance)
    torch.testing.assert_close(second, expected_second, rtol=10 * tolerance["rtol"], atol=10 * tolerance["atol"])
    assert 0 < (first[0] == 0).float().mean() < 0.5


def test_a_concentration_that_is_no_number_gets_the_gradient_of_the_plain_formula():
    logarithm = torch.zeros(2, 1, 2, 2, 2)
    logarithm[0, 0, 0, 0, 0] = torch.nan
    logarithm.requires_grad_()
    gradients = []
    for function in (PF.draw, draw_plainly):
        _, _, log_prob = function(logarithm, -1.0, 1.0, torch.Generator().manual_seed(1))
        gradients += torch.autograd.grad(log_prob[1], logarithm)
    torch.testing.assert_close(*gradients, equal_nan=True)
    assert gradients[0][0, 0, 0, 0, 0] == 0


def test_masks_are_drawn_inside_functional_transforms():
    mask = moved(PolicyNoiseMask(grid_size=4))
    images = torch.rand(3, 3, 32, 32)
    parameters = {name: parameter.detach() for name, parameter in mask.named_parameters()}

    class Draw(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mask = mask

        def forward(self, images):
            return self.mask.sample(images, torch.Generator().manual_seed(2)).log_prob.sum()

    def score(parameters):
        return torch.func.functional_call(Draw(), {f"mask.{k}": v for k, v in parameters.items()}, (images,))

    gradients = torch.func.grad(score)(parameters)
    plain = torch.autograd.grad(Draw()(images), list(mask.parameters()))
    torch.testing.assert_close(list(gradients.values()), list(plain), rtol=1e-4, atol=1e-4)


# -- moments -----------------------------------------------------------------------------------------------------------


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


# -- compilers ---------------------------------------------------------------------------------------------------------


def test_draws_that_a_compiler_traces_are_the_same():
    concentration1, concentration0 = torch.rand(2, 64, 1, 8, 8) * 3 + 0.05
    compiled = torch.compile(PF.sample_beta, backend="aot_eager", fullgraph=True)
    draws = []
    for function in (PF.sample_beta, compiled):
        torch.manual_seed(3)
        draws.append(function(concentration1, concentration0))
    torch.testing.assert_close(*draws)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_mask_compiles_whole_and_anew_only_for_new_sizes(backend):
    mask = moved(PolicyNoiseMask(mean=0.4, std=0.2))
    graphs = 0

    def count(graph, inputs):
        nonlocal graphs
        graphs += 1
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    torch._dynamo.reset()
    compiled = torch.compile(mask, backend=count, fullgraph=True)
    images = torch.rand(4, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lru_cache.*")  # what is traced through a cache is not cached
        for _ in range(3):
            results = []
            for function in (mask, compiled):
                torch.manual_seed(5)
                results.append(function(images))
            torch.testing.assert_close(*results)
    assert graphs == 1
    for batch in (5, 6, 7):
        compiled(torch.rand(batch, 3, 32, 32))
    assert graphs == 2  # the second for a batch of any size
    compiled(torch.rand(4, 3, 48, 40))
    torch._dynamo.reset()


@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_compiled_rendering_is_the_same_and_leaves_the_cached_operators_alone():
    images, action = torch.rand(2, 3, 32, 32), torch.rand(2, 1, 4, 4)
    applied, black = torch.tensor([True, False]), torch.full((1, 3, 1, 1), -1.0)

    def render(images, action):
        return PF.noise_mask(images, action, pattern_std=0.2, brightness_std=0.1, black=black, applied=applied)

    expected = render(images, action)
    torch._dynamo.reset()
    compiled = torch.compile(render, fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(images, action), expected)
    assert torch.equal(render(images, action), expected)
    torch._dynamo.reset()


# -- the learner -------------------------------------------------------------------------------------------------------


def observed(learner, sizes=(5, 3), bad=()):
    """Samples of some batches and their losses, observed."""
    samples, losses = [], []
    for size in sizes:
        sample = learner.augmentation.sample(torch.rand(size, 3, 32, 32))
        loss = torch.rand(size) * 3
        learner.observe(sample, loss)
        samples.append(sample)
        losses.append(loss)
    for batch, index, value in bad:
        losses[batch][index] = value
    return samples, losses


def gradients_of(function, parameters):
    return torch.cat([g.flatten() for g in torch.autograd.grad(function, parameters, retain_graph=True)])


@pytest.mark.parametrize("sizes", [(8,), (5, 3)])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.05])
@pytest.mark.parametrize("reward", ["cooperative", "adversarial"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("baseline", ["leave_one_out", "batch", "none", "moving_average"])
def test_weights_handed_to_autograd_give_the_gradient_of_the_surrogate(
    baseline, normalize, reward, entropy_coef, sizes
):
    mask = moved(PolicyNoiseMask(p=0.7, grid_size=4))
    learner = PolicyLearner(
        mask, baseline=baseline, normalize_advantage=normalize, reward=reward, entropy_coef=entropy_coef, frozen=True
    )
    learner._moving_average = torch.tensor(1.3)
    samples, losses = observed(learner, sizes, bad=[(0, 1, torch.nan)])
    loss, log_prob, entropy, applied = (
        torch.cat(parts)
        for parts in zip(
            *((x, s.log_prob, s.entropy, s.applied) for s, x in zip(samples, losses, strict=True)), strict=True
        )
    )
    expected = gradients_of(
        PF.reinforce_loss(
            log_prob,
            loss,
            baseline=1.3 if baseline == "moving_average" else baseline,
            normalize=normalize,
            reward=reward,
            entropy=entropy,
            entropy_coef=entropy_coef,
            valid=applied & loss.isfinite(),
        ),
        learner.parameters,
    )
    with pytest.warns(UserWarning, match="non-finite"):
        learner.step({"lr": 0.1})
    result = learner._last.gradient
    assert expected.abs().sum() > 0
    torch.testing.assert_close(result, expected)


def test_entropy_in_the_metrics_is_that_of_the_whole_window():
    learner = PolicyLearner(moved(PolicyNoiseMask(grid_size=4)))
    samples, _ = observed(learner)
    learner.step({"lr": 0.1})
    expected = torch.cat([sample.entropy for sample in samples]).mean().item()
    assert learner.metrics(None)["entropy"] == pytest.approx(expected)


@pytest.mark.parametrize(("name", "reference"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_fused_optimizer_steps_as_the_plain_one(name, reference):
    learner = PolicyLearner(moved(PolicyNoiseMask(p=1.0, grid_size=4)), policy_optimizer=name, policy_weight_decay=0.01)
    twin = [parameter.detach().clone().requires_grad_() for parameter in learner.parameters]
    settings = {"momentum": 0.9} if name == "sgd" else {}
    plain = reference(twin, lr=1e-2, weight_decay=0.01, fused=False, foreach=False, **settings)

    def take_gradients(optimizer, args, kwargs):
        for parameter, own in zip(twin, learner.parameters, strict=True):
            parameter.grad = own.grad.clone()

    learner.optimizer.register_step_pre_hook(take_gradients)
    for _ in range(4):
        observed(learner)
        learner.step({"lr": 0.1})
        plain.step()
    for own, expected in zip(learner.parameters, twin, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-6)


def test_state_of_an_unfused_optimizer_is_taken_over():
    learner = PolicyLearner(moved(PolicyNoiseMask(grid_size=4)))
    observed(learner)
    learner.step({"lr": 0.1})
    file = io.BytesIO()
    state = learner.state_dict()
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = False
    torch.save(state, file)
    file.seek(0)
    learner.load_state_dict(torch.load(file, weights_only=True))
    assert all(group["fused"] for group in learner.optimizer.param_groups)
    before = [parameter.detach().clone() for parameter in learner.parameters]
    observed(learner)
    learner.step({"lr": 0.1})
    assert any(not torch.equal(new, old) for new, old in zip(learner.parameters, before, strict=True))


@pytest.mark.parametrize("change", [{"memory_format": torch.channels_last}, {"dtype": torch.float64}])
def test_policy_in_another_layout_or_precision_learns(change):
    mask = moved(PolicyNoiseMask(p=1.0, grid_size=4))
    if "dtype" in change:
        mask.policy.place.data = mask.policy.place.data.double()
    else:
        mask.to(**change)
    learner = PolicyLearner(mask)
    before = [parameter.detach().clone() for parameter in learner.parameters]
    observed(learner)
    learner.step({"lr": 0.1})
    for new, old in zip(learner.parameters, before, strict=True):
        assert new.stride() == old.stride()
        assert new.dtype == old.dtype
        assert not torch.equal(new, old)


# -- the whole step ----------------------------------------------------------------------------------------------------


def test_a_step_asks_little_of_the_device_and_reads_nothing_back(make_model, batch, monkeypatch):
    """Launches and waits are what a small policy costs on a GPU, so their number is part of the contract."""
    images, targets = batch
    model, criterion = make_model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step():
        optimizer.zero_grad()
        criterion(model(images), targets).backward()
        optimizer.step()

    def recorded():
        step()
        with Launches() as launches:
            step()
        return Counter(name for (_, name) in launches.counts.elements())

    plain = recorded()
    # On a GPU dropped samples are told of only when the metrics are read.
    monkeypatch.setattr(SampleCount, "warn_dropped", lambda self: None)
    hook = policy_noise.attach(model, optimizer, criterion, mean=4.0, std=1.0)
    counts = recorded()
    hook.remove()
    extra = counts - plain
    for name in ("local_scalar_dense", "nonzero", "is_nonzero", "equal", "item"):
        assert extra[name] == 0, name
    assert extra["sample_dirichlet"] == 1
    assert extra["adaptive_avg_pool2d"] == 0
    assert extra["lerp"] >= 1
    assert 80 < extra.total() <= 115, extra
