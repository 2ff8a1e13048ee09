"""torch.compile of the model, with every graph counted, and of the mask itself."""

import warnings

import pytest
import torch
from tiny import DEVICE, SETTINGS, TinyNet, policy_vector, tiny_data
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

import policy_noise
import policy_noise.functional as PF
from policy_noise import RandomShading

IMAGES, TARGETS = (tensor.to(DEVICE) for tensor in tiny_data().tensors)


class Counted:
    """A backend that counts the graphs that it is given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, module, inputs):
        self.graphs += 1
        return aot_eager(module, inputs)


def train(model, optimizer, criterion, steps=5):
    losses = []
    for step in range(steps):
        model.train()
        loss = criterion(model(IMAGES[:8] + step), TARGETS[:8])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            model(IMAGES[:8])
    return losses


def build(compiled, where="outside", **settings):
    torch._dynamo.reset()
    torch.manual_seed(0)
    network, criterion = TinyNet().to(DEVICE), nn.CrossEntropyLoss()
    backend = Counted()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    model = torch.compile(network, backend=backend, **settings) if compiled else network
    hooked = model if where == "outside" else network
    torch.manual_seed(1)
    hook = policy_noise.attach(hooked, optimizer, criterion, **SETTINGS) if where else None
    torch.manual_seed(2)
    losses = train(model, optimizer, criterion)
    return backend, hook, losses


def test_no_graph_more_than_without_the_plug_in():
    """Five steps of training and evaluation need one graph each, as without the plug-in."""
    plain, _, _ = build(True, where="", fullgraph=True)
    hooked, hook, losses = build(True, fullgraph=True)
    assert hooked.graphs == plain.graphs == 2
    assert hook.metrics["samples_seen"] == 40
    _, eager, expected = build(False)
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(policy_vector(hook), policy_vector(eager), rtol=1e-3, atol=1e-4)


def test_compiled_around_the_hooked_module():
    """Attached to the module inside: the hook breaks the graph in the first steps only, and works the same."""
    hooked, hook, losses = build(True, where="inside")
    assert hooked.graphs == 2
    assert hook.metrics["samples_seen"] == 40
    _, eager, expected = build(False)
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(policy_vector(hook), policy_vector(eager), rtol=1e-3, atol=1e-4)


def test_inductor():
    """The default backend, which needs a C++ compiler on the CPU and Triton on a GPU."""
    torch._dynamo.reset()
    network = nn.Sequential(nn.Flatten(), nn.Linear(768, 8), nn.ReLU(), nn.Linear(8, 4)).to(DEVICE)
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), lr=0.1)
    model = torch.compile(network)
    hook = policy_noise.attach(model, optimizer, criterion, in_chans=3, **SETTINGS)
    before = policy_vector(hook)
    losses = train(model, optimizer, criterion, steps=2)
    assert torch.tensor(losses).isfinite().all()
    assert not torch.equal(before, policy_vector(hook))


def test_random_shading_compiles_whole_and_anew_only_for_new_sizes():
    shading = RandomShading(mean=0.4, std=0.2, pattern_std=(0.0, 0.3), grid_size=3, upsample="linear", clip=True)
    torch._dynamo.reset()
    backend = Counted()
    compiled = torch.compile(shading, backend=backend, fullgraph=True)
    images = torch.rand(4, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*lru_cache.*")  # tracing through a cache bypasses it
        for _ in range(3):
            results = []
            for function in (shading, compiled):
                torch.manual_seed(5)
                results.append(function(images))
            torch.testing.assert_close(*results)
    assert backend.graphs == 1
    for batch in (5, 6, 7):
        compiled(torch.rand(batch, 3, 32, 32))
    assert backend.graphs == 2  # the second for a batch of any size
    compiled(torch.rand(4, 3, 48, 40))
    torch._dynamo.reset()


@pytest.mark.parametrize(("dims", "strict"), [(2, True), (2, False), (3, False)])
def test_random_shading_is_exported_with_its_randomness_for_any_batch(dims, strict):
    shading, images = RandomShading(p=1.0, grid_size=(3,) * dims), torch.rand(4, 1, *(16,) * dims)
    program = torch.export.export(
        shading.train(), (images,), dynamic_shapes=({0: torch.export.Dim("B")},), strict=strict
    )
    assert program.module()(images[:3]).shape == images[:3].shape
    results = []
    for function in (shading, program.module()):
        torch.manual_seed(5)
        results.append(function(images))
    torch.testing.assert_close(*results)
    assert not torch.equal(results[0], images)


def test_compiled_rendering_is_the_same_and_leaves_the_cached_operators_alone():
    images, action = torch.rand(2, 3, 32, 32), torch.rand(2, 1, 4, 4)
    applied, black = torch.tensor([True, False]), torch.full((1, 3, 1, 1), -1.0)

    def render(images, action):
        return PF.noise_mask(images, action, pattern_std=0.2, brightness_std=0.1, black=black, applied=applied)

    expected = render(images, action)
    torch._dynamo.reset()
    compiled = torch.compile(render, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        torch.testing.assert_close(compiled(images, action), expected)
    assert torch.equal(render(images, action), expected)
    torch._dynamo.reset()
