"""The device path without a device: whole training steps on fake CUDA tensors, which have shapes and devices only.

torch's FakeTensorMode refuses operations between devices and every read of a value (``.item()``, ``bool()``, ``if``).
From the second step on a copy between devices fails too, because the copies that torch makes by default wait for the
device. What may wait is named here: the first batch's look at the range of its values, and reading metrics or state.
torch has fake tensors of MPS and XPU only where it is built for them.
"""

import collections
import contextlib
import functools
from unittest import mock

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from policy_noise import PolicyNoiseMask, RandomShading, ReinforceHook, Sample, StochasticAugmentation, attach
from policy_noise.functional import distribution, estimator, masking, rendering
from policy_noise.losses import _splitter as splitter
from policy_noise.losses._agreement import Late, Verdict

DEVICE = torch.device("cuda", 0)
pytestmark = pytest.mark.skipif(
    torch.__version__ < "2.14",
    reason="fake CUDA tensors of older versions (2.7.1 was seen) ask for a CUDA driver, and may abort without one",
)


class Watch(TorchDispatchMode):
    """Refuses copies between devices and generators of another device than their tensors'."""

    def __init__(self):
        super().__init__()
        self.strict = False
        self.generators = []

    def make_generator(self, device="cpu"):
        """Stand-in for torch.Generator of a device that is not there."""
        self.generators.append((torch._C.Generator("cpu"), torch.device(device)))
        return self.generators[-1][0]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        generator = kwargs.get("generator")
        if generator is not None:
            kwargs["generator"] = None
        if function is torch.ops.aten._fused_sgd_.default:  # has no fake implementation, and neither has the next
            result = None
        elif function is torch.ops.aten._sample_dirichlet.default:
            generator = generator or next((arg for arg in args if isinstance(arg, torch._C.Generator)), None)
            result = torch.empty_like(args[0])
        else:
            result = function(*args, **kwargs)
        devices = {leaf.device.type for leaf in torch.utils._pytree.tree_leaves((args, result)) if is_tensor(leaf)}
        if generator is not None:
            seed = generator.initial_seed()
            expected = [device for made, device in self.generators if made.initial_seed() == seed]
            assert expected, f"{function} draws from a generator that was made for no device"
            assert devices == {expected[-1].type}, f"{function}: generator of {expected[-1]}, tensors on {devices}"
        copies = function.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        if self.strict and copies and not kwargs.get("non_blocking"):
            assert len(devices) == 1, f"{function} copies between {sorted(devices)}, and waits for the device"
        return result


CACHES = (rendering._cached, masking._few_cells_map, estimator._factors_up_to, distribution._modes)
"""Constants, made once for each size and device."""
render_operators = rendering._cached


@pytest.fixture(autouse=True)
def _clean_caches():
    """Fake constants must not outlive their test."""
    yield
    for cache in CACHES:
        cache.cache_clear()


@functools.lru_cache
def fake_operators(*size_and_settings):
    """The operators of an image's size, which are made from real values on the CPU, once; then copied."""
    *settings, device, dtype = size_and_settings
    with torch.utils._python_dispatch._disable_current_modes():
        real = render_operators(*settings, torch.device("cpu"), dtype)
    return torch.utils._pytree.tree_map(lambda value: torch.empty(value.shape, dtype=dtype, device=device), real)


def is_tensor(value):
    return isinstance(value, torch.Tensor)


def gradients_of(outputs, weights):
    """What autograd's engine does, which needs a driver: call the nodes of the graph one after the other."""
    order, seen, received = [], set(), collections.defaultdict(dict)

    def visit(node):
        if node is not None and node not in seen:
            seen.add(node)
            for following, _ in node.next_functions:
                visit(following)
            order.append(node)

    def give(node, place, gradient):
        expected = node._input_metadata[place]
        gradient = gradient.sum_to_size(expected.shape).to(expected.dtype)
        known = received[node].get(place)
        received[node][place] = gradient if known is None else known + gradient

    for output, weight in zip(outputs, weights, strict=True):
        if output.requires_grad:
            visit(output.grad_fn)
            give(output.grad_fn, output.output_nr, torch.ones_like(output) if weight is None else weight)
    result = {}
    for node in reversed(order):
        if hasattr(node, "variable"):
            result[node.variable] = received[node][0]
            continue
        following = node.next_functions
        gradients = [received[node].get(place) for place in range(len(node._input_metadata))]
        if isinstance(node, torch.autograd.function.BackwardCFunction):  # a Function also answers for other arguments
            gradients = [gradient for gradient in node.apply(*gradients) if gradient is not None]
            following = [(other, place) for other, place in following if other is not None]
        else:
            gradients = node(*gradients)
        gradients = [gradients] if gradients is None or is_tensor(gradients) else gradients
        for (other, place), gradient in zip(following, gradients, strict=True):
            if other is not None and gradient is not None:
                give(other, place, gradient)
    return result


@torch.no_grad()
def backward(tensors, grad_tensors=None, *args, **kwargs):
    """Stand-in for torch.autograd.backward."""
    for leaf, gradient in gradients_of([tensors], [grad_tensors]).items():
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


@torch.no_grad()
def grad(outputs, inputs, grad_outputs=None, **kwargs):
    """Stand-in for torch.autograd.grad."""
    outputs = [outputs] if is_tensor(outputs) else outputs
    found = gradients_of(outputs, [None] * len(outputs) if grad_outputs is None else grad_outputs)
    return tuple(found.get(leaf, torch.zeros_like(leaf)) for leaf in inputs)


def model_of(axes=2):
    convolution, pool = (nn.Conv2d, nn.AdaptiveAvgPool2d) if axes == 2 else (nn.Conv3d, nn.AdaptiveAvgPool3d)
    return nn.Sequential(convolution(3, 4, 3), nn.ReLU(), pool(1), nn.Flatten(), nn.Linear(4, 5))


def convert(mode, modules, optimizers, lists=()):
    """Replace parameters and buffers by fake ones on the device, also where optimizers and lists hold them."""
    fake = {}
    for module in (part for whole in modules for part in whole.modules()):
        for group in (module._parameters, module._buffers):
            for name, value in group.items():
                if value is not None and id(value) not in fake:
                    with mode:
                        new = torch.empty(value.shape, dtype=value.dtype, device=DEVICE)
                    fake[id(value)] = nn.Parameter(new) if isinstance(value, nn.Parameter) else new
                group[name] = None if value is None else fake[id(value)]
    for optimizer in optimizers:
        for value in list(optimizer.state):
            optimizer.state[fake[id(value)]] = optimizer.state.pop(value)
    held = [group["params"] for optimizer in optimizers for group in optimizer.param_groups]
    for values in (*held, *lists):
        values[:] = [fake[id(value)] for value in values]


def first_call(watch):
    """Stand-ins for what the criterion's first call reads: whether per-image losses agree with it, in fp32 too."""

    def read(late, *, wait=False):
        assert not (wait and watch.strict), "waits for a verdict"
        return Verdict(agrees=True, sure=True, only_finite=False, mean=1.0, loss=1.0) if wait else None

    def close(loss, again):
        assert not watch.strict, "reads a loss"
        return True

    return mock.patch.object(Late, "read", read), mock.patch.object(splitter, "close", close)


@contextlib.contextmanager
def on_the_device(model, optimizer, hook):
    """A loop's surroundings, as if all of it had been made on the device."""
    mode, watch = FakeTensorMode(allow_non_fake_inputs=True), Watch()
    optimizers = [one for one in (optimizer, hook.policy_optimizer) if one is not None]
    convert(mode, [model, hook.augmentation], optimizers, [hook.learner.parameters])
    # What waits for the device once: the first batch's values are looked at, and the first step logs what is hooked.
    hook._checked = True
    hook._watch._described = True
    seeds = {"get_rng_state": lambda device: None, "set_rng_state": lambda state, device: None}
    seeds |= {"manual_seed": lambda seed: None, "device": lambda device: contextlib.nullcontext()}
    seeds |= {"Event": lambda: mock.Mock(query=lambda: False)}
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, "Generator", watch.make_generator))
        stack.enter_context(mock.patch.object(rendering, "_cached", fake_operators))
        for stand_in in first_call(watch):
            stack.enter_context(stand_in)
        stack.enter_context(mock.patch.object(torch.autograd, "backward", backward))
        stack.enter_context(mock.patch.object(torch.autograd, "grad", grad))
        for name, stand_in in seeds.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, stand_in))
        stack.enter_context(mode)
        stack.enter_context(watch)
        with mock.patch.object(hook.augmentation, "to"):  # it is there already
            hook.learner.to(DEVICE)
        yield watch
    fake_operators.cache_clear()


def batch(axes=2, size=32):
    shape = (4, 3, *[size] * axes)
    return torch.empty(shape, device=DEVICE), torch.empty(4, dtype=torch.long, device=DEVICE)


def run(model, optimizer, criterion, hook, *, steps=3, microbatches=1, axes=2, size=32, observe=None, around=None):
    with on_the_device(model, optimizer, hook) as watch:
        images, targets = batch(axes, size)
        for number in range(steps):
            watch.strict = number > 0
            for _ in range(microbatches):
                with around() if around else contextlib.nullcontext():
                    loss = observe(hook, model, images, targets) if observe else criterion(model(images), targets)
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert loss.device == DEVICE
    hook.remove()


def loop(axes=2, **settings):
    model, criterion = model_of(axes), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, criterion, attach(model, optimizer, criterion, **settings)


SETTINGS = {
    "random": {"preset": "random"},
    "learned": {"preset": "learned"},
    "paper": {"preset": "paper", "grid_size": 4, "kernel_size": 3},
    "normalized": {"preset": "random", "mean": [0.5, 0.4, 0.3], "std": 0.25},
    "update_every": {"update_every": 2},
    "no entropy_target": {"entropy_target": None},
    "static policy": {"policy": "static"},
    "drawn strengths": {"pattern_std": (0.1, 0.3), "upsample": "linear"},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_wait_for_nothing_and_mix_no_devices(name):
    run(*loop(**SETTINGS[name]))


def test_volumes():
    run(*loop(axes=3), axes=3, size=12)


def test_accumulation():
    run(*loop(), microbatches=2)


def test_mixed_precision():
    available = mock.patch("torch.cuda.amp.common.amp_definitely_not_available", return_value=False)
    with available, mock.patch("torch.cuda.is_bf16_supported", return_value=True):
        run(*loop(), around=lambda: torch.autocast("cuda", dtype=torch.bfloat16))


def test_observe():
    def observe(hook, model, images, targets):
        losses = nn.functional.cross_entropy(model(images), targets, reduction="none")
        return hook.observe(losses).mean()

    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run(model, optimizer, None, attach(model, optimizer, preset="learned"), observe=observe)


class Gain(StochasticAugmentation):
    """An augmentation of a user's own, with the fault of its choice."""

    def __init__(self, fault=None):
        super().__init__()
        self.logit = nn.Parameter(torch.zeros(()))
        self.fault = fault

    def sample(self, images, generator=None):
        share = self.logit.sigmoid()
        bright = torch.rand(len(images), generator=generator, device=images.device) < share
        return Sample(log_prob=torch.where(bright, share, 1 - share).log(), applied=bright)

    def transform(self, images, sample):
        if self.fault == "a constant on the CPU":
            return images * torch.ones(3, 1, 1)
        if self.fault == "a value that is read":
            return images * (1.5 if self.logit.item() > 0 else 0.5)
        if self.fault == "a copy to the device":
            return images * torch.ones(3, 1, 1).to(images.device)
        return 1.5 * images


def own(fault=None):
    model, criterion = model_of(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, criterion, ReinforceHook(Gain(fault), optimizer, model=model, criterion=criterion)


def test_an_augmentation_of_ones_own():
    run(*own())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("a constant on the CPU", "device"),
        ("a value that is read", "_local_scalar_dense"),
        ("a copy to the device", "copies between"),
    ],
)
def test_a_planted_fault_is_caught(fault, words):
    with pytest.raises(Exception, match=words):
        run(*own(fault))


ALONE = ({}, {"mean": 0.5, "std": 0.25}, {"grid_size": (2, 2, 2)})


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(kind, settings) for kind in (RandomShading, PolicyNoiseMask) for settings in ALONE]
    + [(RandomShading, {"per_channel": True})],
)
def test_masks_alone(kind, settings):
    mask, mode, watch = kind(**settings), FakeTensorMode(allow_non_fake_inputs=True), Watch()
    convert(mode, [mask], [])
    made_once = mock.patch.object(rendering, "_cached", fake_operators)
    mask._judged = True
    with made_once, mode, watch:
        images, _ = batch(len(mask.grid_size))
        for number in range(3):
            watch.strict = number > 0
            assert mask(images).device == DEVICE
    fake_operators.cache_clear()
