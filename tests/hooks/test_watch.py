"""A hook without effect warns once, within ten steps. A hook that works does not warn."""

import copy
import gc
import unittest
import warnings
import weakref

import pytest
import torch
import torch.distributed.checkpoint as dcp
from timm.optim import Adahessian
from torch import nn

from policy_noise import attach


@pytest.fixture(autouse=True)
def _no_hook_of_another_test(without_garbage):
    """Hooks of other tests watch every optimizer until they are garbage collected, and would warn here too."""


class Net(nn.Module):
    """A classifier in two parts, as timm's are."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, stride=4), nn.Linear(4, 5)

    def forward_features(self, x):
        return self.conv(x).relu()

    def forward_head(self, x):
        return self.head(x.mean((2, 3)))

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


class Wrapper(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def parts(model=None, **settings):
    model, criterion = model or Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, criterion, attach(model, optimizer, criterion, in_chans=3, **settings)


def train(call, optimizer, criterion, batch, steps=10):
    for _ in range(steps):
        loss = criterion(call(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def said(record):
    return [str(warning.message) for warning in record if "policy_noise" in str(warning.message)]


def assert_one(record, *words):
    (message,) = said(record)
    assert all(word in message for word in words), message


# -- what never works --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["forward", "parts"])
def test_a_model_that_is_not_called_as_a_module(batch, recwarn, way):
    model, optimizer, criterion, _ = parts()
    train(
        model.forward if way == "forward" else lambda x: model.forward_head(model.forward_features(x)),
        optimizer,
        criterion,
        batch,
    )
    assert_one(recwarn, "Net was never called", "model(x), not model.forward(x)", "forward_features")


def test_evaluation_between_epochs_is_not_taken_for_the_cause(batch, recwarn):
    model, optimizer, criterion, _ = parts()
    for _ in range(5):
        model.eval()
        with torch.no_grad():
            model(batch[0])
        model.train()
        train(model.forward, optimizer, criterion, batch, steps=2)
    assert_one(recwarn, "Net was never called")


def test_a_wrapper_is_hooked_and_its_inner_module_called(batch, recwarn):
    model, optimizer, criterion, _ = parts(Wrapper(Net()))
    train(model.inner, optimizer, criterion, batch)
    assert_one(recwarn, "Wrapper was never called", "hook the module that the loop calls")


def test_a_model_left_in_eval_mode(batch, recwarn):
    model, optimizer, criterion, _ = parts()
    train(model.eval(), optimizer, criterion, batch)
    assert_one(recwarn, "Net runs in eval mode", "model.train()")


@pytest.mark.parametrize("own_optimizer", [True, False])
def test_a_copy_is_trained(batch, recwarn, own_optimizer):
    model, optimizer, criterion, _ = parts()
    trained = copy.deepcopy(model)
    if own_optimizer:
        train(trained, torch.optim.SGD(trained.parameters(), lr=0.1), criterion, batch)
        assert_one(recwarn, "a copy of Net is trained", "Attach to the copy")
    else:
        train(trained, optimizer, criterion, batch)
        assert_one(recwarn, "not the original of a copy")


def test_another_models_optimizer(recwarn):
    attach(Net(), torch.optim.SGD(Net().parameters(), lr=0.1), nn.CrossEntropyLoss())
    assert_one(recwarn, "holds no parameter of Net", "pass the optimizer that trains this model")


def test_an_optimizer_made_anew(batch, recwarn):
    """Its graphs are dropped, and the policy learns again after rebind."""
    model, optimizer, criterion, hook = parts(p=1.0)
    train(model, optimizer, criterion, batch, steps=2)
    new = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [p.clone() for p in hook.augmentation.parameters()]
    train(model, new, criterion, batch)
    assert_one(recwarn, "SGD has stepped 5 times", "hook.rebind(optimizer)")
    assert not hook._queue.scored
    assert all(torch.equal(a, b) for a, b in zip(before, hook.augmentation.parameters(), strict=True))
    hook.rebind(new)
    seen = hook.metrics["samples_seen"]
    train(model, new, criterion, batch, steps=2)
    assert hook.metrics["samples_seen"] == seen + 16
    assert not all(torch.equal(a, b) for a, b in zip(before, hook.augmentation.parameters(), strict=True))
    assert "policy_noise" in new.state_dict()
    assert "policy_noise" not in optimizer.state_dict()
    assert len(said(recwarn)) == 1


def test_a_criterion_made_anew_is_said_and_can_be_rebound(batch, recwarn):
    model, optimizer, criterion, hook = parts(p=1.0)
    train(model, optimizer, criterion, batch, steps=2)
    criterion = nn.CrossEntropyLoss(weight=torch.rand(5) + 0.5)
    train(model, optimizer, criterion, batch, steps=3)
    assert_one(recwarn, "a masked forward had no loss", "hook.rebind(criterion=criterion)")
    assert hook.metrics["samples_seen"] == 16
    before = [p.clone() for p in hook.augmentation.parameters()]
    hook.rebind(criterion=criterion)
    train(model, optimizer, criterion, batch, steps=1)
    assert hook.metrics["samples_seen"] == 24
    assert not all(torch.equal(a, b) for a, b in zip(before, hook.augmentation.parameters(), strict=True))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_an_optimizers_state_was_loaded_before(batch, recwarn, kind):
    model, criterion = Net(), nn.CrossEntropyLoss()
    first = kind(model.parameters(), lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    train(model, first, criterion, batch, steps=1)
    optimizer = kind(model.parameters(), lr=0.1)
    optimizer.load_state_dict(first.state_dict())
    attach(model, optimizer, criterion)
    assert_one(recwarn, "already has a state", "attach before optimizer.load_state_dict")


def test_torch_func(batch, recwarn):
    model, optimizer, criterion, _ = parts()
    weights = dict(model.named_parameters())

    def loss(weights, images, targets):
        return criterion(torch.func.functional_call(model, weights, (images,)), targets)

    for _ in range(10):
        for name, gradient in torch.func.grad(loss)(weights, *batch).items():
            weights[name].grad = gradient
        optimizer.step()
    assert_one(recwarn, "torch.func", "hook.apply(images)", "loss.backward()")


@pytest.mark.filterwarnings("ignore")
def test_a_whole_state_saved_by_distributed_checkpoint_keeps_the_policy(batch, tmp_path):
    model, optimizer, criterion, hook = parts()
    train(model, optimizer, criterion, batch, steps=2)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        dcp.save({"optimizer": optimizer}, checkpoint_id=tmp_path, no_dist=True)
    assert not said(record)
    other, new, criterion, resumed = parts()
    train(other, new, criterion, batch, steps=1)
    dcp.load({"optimizer": new}, checkpoint_id=tmp_path, no_dist=True)
    for saved, loaded in zip(hook.augmentation.parameters(), resumed.augmentation.parameters(), strict=True):
        assert torch.equal(saved, loaded)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("policy_optimizer", ["adamw", "sgd"])
def test_distributed_checkpoint_fills_the_state_of_a_hook_that_has_not_stepped(batch, tmp_path, policy_optimizer):
    arguments = {"policy_optimizer": policy_optimizer, "baseline": "moving_average", "entropy_target": -0.1}
    model, optimizer, criterion, hook = parts(**arguments)
    train(model, optimizer, criterion, batch, steps=3)
    dcp.save({"hook": hook.state_dict()}, checkpoint_id=tmp_path, no_dist=True)
    *_, resumed = parts(**arguments)
    state = {"hook": resumed.state_dict()}
    dcp.load(state, checkpoint_id=tmp_path, no_dist=True)
    resumed.load_state_dict(state["hook"])
    torch.testing.assert_close(resumed.state_dict(), hook.state_dict(), rtol=0, atol=0)


# -- ordinary loops ----------------------------------------------------------------------------------------------------


def accumulate(model, optimizer, criterion, hook, batch):
    for _ in range(2):
        for _ in range(64):
            criterion(model(batch[0]), batch[1]).backward()
        optimizer.step()


def evaluate_in_between(model, optimizer, criterion, hook, batch):
    for _ in range(4):
        train(model, optimizer, criterion, batch, steps=3)
        model.eval()
        with torch.no_grad():
            for _ in range(12):
                criterion(model(batch[0]), batch[1])
        model.train()


def pause(model, optimizer, criterion, hook, batch):
    """Pause for the whole phase, or for the forward only, with the step outside."""
    with hook.paused():
        train(model, optimizer, criterion, batch)
    for _ in range(10):
        with hook.paused():
            loss = criterion(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()


def switch_off(model, optimizer, criterion, hook, batch):
    hook.augmentation.eval()
    train(model, optimizer, criterion, batch)


def plain(model, optimizer, criterion, hook, batch):
    train(model, optimizer, criterion, batch)


def average(model, optimizer, criterion, hook, batch):
    """A copy that is not trained, and another network that is."""
    teacher = copy.deepcopy(model)
    train(model, optimizer, criterion, batch)
    teacher(batch[0])
    other = Net()
    train(other, torch.optim.SGD(other.parameters(), lr=0.1), nn.CrossEntropyLoss(), batch)


def two_optimizers(model, optimizer, criterion, hook, batch):
    head = torch.optim.Adam(model.head.parameters())
    for _ in range(10):
        train(model, optimizer, criterion, batch, steps=1)
        head.step()


def optimizer_of_each_layer(model, optimizer, criterion, hook, batch):
    """The hooked one has one layer, and the others step before it."""
    layers = [torch.optim.SGD([p], lr=0.1) for p in (*model.parameters(), *(nn.Parameter(torch.zeros(1)),) * 2)]
    for _ in range(10):
        criterion(model(batch[0]), batch[1]).backward()
        for other in layers:
            other.step()
        optimizer.step()
        model.zero_grad()


def optimizer_in_the_backward_pass(model, optimizer, criterion, hook, batch):
    hooked, *others = model.parameters()
    hook.rebind(torch.optim.SGD([hooked], lr=0.1))
    steps = {p: torch.optim.SGD([p], lr=0.1) for p in others} | {hooked: hook._stepping}
    for parameter, inner in steps.items():
        parameter.register_post_accumulate_grad_hook(lambda _, inner=inner: inner.step() or inner.zero_grad())
    for _ in range(10):
        criterion(model(batch[0]), batch[1]).backward()
    assert hook.metrics["samples_seen"] in (0, 80)  # nothing is observed where nothing is learned


def reload(model, optimizer, criterion, hook, batch):
    """The same optimizer hooked a second time."""
    train(model, optimizer, criterion, batch)
    hook.remove()
    attach(model, optimizer, criterion, in_chans=3)
    train(model, optimizer, criterion, batch)


def empty_batches(model, optimizer, criterion, hook, batch):
    for _ in range(10):
        optimizer.zero_grad()
        model(batch[0][:0]).sum().backward()
        optimizer.step()


@pytest.mark.parametrize(
    "loop",
    [
        accumulate,
        evaluate_in_between,
        pause,
        switch_off,
        plain,
        average,
        two_optimizers,
        optimizer_of_each_layer,
        optimizer_in_the_backward_pass,
        reload,
        empty_batches,
    ],
)
@pytest.mark.parametrize("settings", [{}, {"p": 0.0}, {"frozen": True}, {"preset": "random"}], ids=str)
def test_ordinary_loops_hear_nothing(batch, recwarn, loop, settings):
    model, optimizer, criterion, hook = parts(**settings)
    loop(model, optimizer, criterion, hook, batch)
    assert not said(recwarn)
    assert not [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)]


@pytest.mark.parametrize(
    "kind", [torch.optim.Adagrad, torch.optim.AdamW, torch.optim.LBFGS, torch.optim.Rprop, Adahessian]
)
def test_a_new_optimizer_hears_nothing(recwarn, kind):
    """Adagrad and Adahessian have a state before their first step."""
    model = Net()
    attach(model, kind(model.parameters()), nn.CrossEntropyLoss())
    assert not said(recwarn)


def test_the_first_step_is_logged_once(batch):
    model, optimizer, criterion, _ = parts(Net())
    with unittest.TestCase().assertLogs("policy_noise", "INFO") as logs:
        train(model, optimizer, criterion, batch, steps=3)
    (message,) = logs.output
    for word in ("PolicyNoiseMask", "32 x 32", "CrossEntropyLoss", "SGD"):
        assert word in message


def test_hook_model_and_optimizer_are_let_go_with_the_loop(batch):
    model, optimizer, criterion, hook = parts()
    train(model, optimizer, criterion, batch, steps=2)
    kept = [weakref.ref(thing) for thing in (model, optimizer, hook)]
    del model, optimizer, criterion, hook
    gc.collect()
    assert [reference() for reference in kept] == [None, None, None]
