"""torch.compile of the model, with every graph counted, and of the mask itself."""

import pytest
import torch
from tiny import DEVICE, SETTINGS, TinyNet, policy_vector, tiny_data
from torch import nn
from torch._dynamo.backends.debugging import aot_eager

import policy_noise

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


@pytest.mark.parametrize("settings", [{}, {"fullgraph": True}], ids=str)
def test_no_graph_more_than_without_the_plug_in(settings):
    """Five steps of training and evaluation need one graph each, as without the plug-in."""
    plain, _, _ = build(True, where="", **settings)
    hooked, hook, losses = build(True, **settings)
    assert hooked.graphs == plain.graphs == 2
    assert hook.metrics["samples_seen"] == 40
    _, eager, expected = build(False)
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(policy_vector(hook), policy_vector(eager), rtol=1e-3, atol=1e-4)


def test_compiled_around_the_hooked_module():
    """Attached to the module inside: the hook breaks the graph, in the first steps only, and does the same work."""
    hooked, hook, losses = build(True, where="inside")
    assert hooked.graphs == 2
    assert hook.metrics["samples_seen"] == 40
    _, eager, expected = build(False)
    assert losses == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(policy_vector(hook), policy_vector(eager), rtol=1e-3, atol=1e-4)


def test_inductor():
    """The default backend, which needs a C++ compiler on the CPU and Triton on a GPU."""
    torch._dynamo.reset()
    network, criterion = TinyNet().to(DEVICE), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    model = torch.compile(network)
    hook = policy_noise.attach(model, optimizer, criterion, **SETTINGS)
    before = policy_vector(hook)
    losses = train(model, optimizer, criterion, steps=2)
    assert torch.tensor(losses).isfinite().all()
    assert not torch.equal(before, policy_vector(hook))


@pytest.mark.parametrize("dims", [2, 3])
def test_mask_compiles_in_one_graph(dims):
    torch._dynamo.reset()
    mask = policy_noise.PolicyNoiseMask(in_chans=1, grid_size=(4,) * dims).to(DEVICE)
    backend = Counted()

    def both(images):
        sample = mask.sample(images)
        return mask(images, sample), sample.log_prob

    compiled = torch.compile(both, fullgraph=True, backend=backend)
    for batch in (6, 6, 6):
        images = torch.randn(batch, 1, *(16,) * dims, device=DEVICE)
        masked, log_prob = compiled(images)
        assert masked.shape == images.shape
        assert not torch.equal(masked, images)
        mask.zero_grad()
        log_prob.sum().backward()
        assert all(parameter.grad.isfinite().all() for parameter in mask.parameters())
    assert backend.graphs == 1
