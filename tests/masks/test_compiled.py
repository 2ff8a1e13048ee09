"""Masks that the hook compiles."""

import functools
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import policy_noise
from policy_noise import PolicyNoiseMask, RandomShading, Sample, StochasticAugmentation

BACKEND = torch.compile


@pytest.fixture(autouse=True)
def traced(monkeypatch):
    """Trace graphs without building them, which needs no compiler."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", functools.partial(BACKEND, backend="aot_eager"))
    yield
    torch._dynamo.reset()


def train(sizes=(8, 8, 8), *, compile, **settings):
    """A few steps on batches of these sizes: the masked images, the policy after it, and the hook."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()
    hook = policy_noise.attach(
        model,
        optimizer,
        criterion,
        compile=compile,
        **{**({} if "augmentation" in settings else {"mean": 0.5, "std": 0.25}), **settings},
    )
    seen = []
    model[0].register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    data = torch.Generator().manual_seed(1)
    for size in sizes:
        images = (torch.rand(size, 3, 32, 32, generator=data) - 0.5) / 0.25
        loss = criterion(model(images), torch.randint(5, (size,), generator=data))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = [parameter.detach().clone() for parameter in hook.augmentation.parameters()]
    hook.remove()
    return seen, weights, hook


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"preset": "random"},
        {"center_brightness": True, "p": 1.0, "strength": 0.5},
        {"policy": "static", "frozen": True},
        {"entropy_target": -0.1, "update_every": 2},
        {"grid_size": 9},
    ],
    ids=str,
)
def test_it_draws_multiplies_and_learns_as_without(settings):
    state = torch.get_rng_state()
    masked, weights, hook = train(compile=True, **settings)
    assert counters["stats"]["unique_graphs"] > 0
    expected, expected_weights, other = train(compile=False, **settings)
    torch.testing.assert_close(masked, expected)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-3, atol=1e-5)
    assert hook.metrics == pytest.approx(other.metrics, rel=1e-3, abs=1e-5, nan_ok=True)
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    ("settings", "graphs"), [({}, 4), ({"entropy_target": None}, 3), ({"preset": "random"}, 1)], ids=str
)
def test_batches_of_any_size_take_the_same_graphs(settings, graphs):
    train((8,), compile=True, **settings)
    assert counters["stats"]["unique_graphs"] == graphs
    counters.clear()
    torch._dynamo.reset()
    train((8, 5, 12, 2, 9), compile=True, **settings)
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


def test_a_strength_that_follows_a_schedule_is_compiled_once_more_and_not_in_each_step():
    train([8] * 6, compile=True, frozen=True, strength_schedule=lambda step: 0.3 + 0.1 * step)
    assert counters["stats"]["unique_graphs"] == 3  # the policy; the rendering for the first strength, and for any


def test_the_callers_images_are_not_marked_for_the_compiler():
    images = torch.rand(4, 3, 32, 32)
    mask = RandomShading(p=1.0)
    compiled = mask.compiled()
    compiled(images, compiled.sample(images))
    assert not hasattr(images, "_dynamo_weak_dynamic_indices")


def test_gradients_reach_the_images():
    images = torch.rand(4, 3, 32, 32)
    mask = RandomShading(p=1.0, mean=0.2, std=0.5)
    sample = mask.sample(images, torch.Generator().manual_seed(1))
    gradients = []
    for function in (mask.compiled(), mask):
        leaf = images.clone().requires_grad_()
        function(leaf, sample).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


def test_without_a_compiler_it_goes_on_and_says_so_once(monkeypatch):
    def backend(graph, inputs):
        raise RuntimeError("no C++ compiler\nat all")

    monkeypatch.setattr(torch, "compile", functools.partial(BACKEND, backend=backend))
    with pytest.warns(UserWarning, match=r"compile=True has no effect: .*; the mask runs uncompiled") as told:
        masked, weights, _ = train(compile=True)
    assert sum("uncompiled" in str(warning.message) for warning in told) == 1
    assert all("\n" not in str(warning.message) for warning in told)
    expected, expected_weights, _ = train(compile=False)
    torch.testing.assert_close(masked, expected)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-3, atol=1e-5)


def test_errors_that_are_no_matter_of_compiling_stay_what_they_are():
    class Wrong(nn.Module):
        def forward(self, images):
            return images.new_zeros(len(images), 1, 3, 3), images.new_zeros(len(images), 1, 2, 2)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="policy must give two tensors of shape"):
            PolicyNoiseMask(policy=Wrong()).compiled().sample(torch.rand(2, 3, 32, 32))


def test_other_augmentations_are_refused():
    class Own(StochasticAugmentation):
        def sample(self, images, generator=None):
            return Sample(log_prob=None, applied=torch.ones(len(images), dtype=torch.bool))

    with pytest.raises(TypeError, match="compile=True needs a PolicyNoiseMask or a RandomShading, got Own"):
        train(compile=True, augmentation=Own())
