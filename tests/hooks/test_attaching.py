"""Attaching is all or nothing, several models may share an optimizer, and what runs in eval mode is left alone."""

import copy

import pytest
import torch
from torch import nn

from policy_noise import PolicyNoiseMask, ReinforceHook, attach
from policy_noise.hooks._calls import is_training


class Wrapper(nn.Module):
    def __init__(self, inner, *, token=False):
        super().__init__()
        self.m = inner
        if token:
            self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.m(x)


def is_masked(model, images):
    seen = []
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(images)
    handle.remove()
    return not torch.equal(seen[0], images)


# -- all or nothing ----------------------------------------------------------------------------------------------------


def hooks_of(model, optimizer, criterion):
    return [
        len(hooks)
        for hooks in (
            model._forward_pre_hooks,
            model._forward_hooks,
            optimizer._optimizer_step_post_hooks,
            optimizer._optimizer_state_dict_post_hooks,
            criterion._forward_hooks,
        )
    ]


def test_a_failed_attach_leaves_nothing(make_model, batch):
    """A scripted module accepts no hook that takes keyword arguments."""
    model, scripted = make_model(), torch.jit.script(nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"criterion must not be scripted.*Pass the module that you scripted"):
        attach(model, optimizer, scripted)
    with pytest.raises(TypeError, match="model must not be scripted"):
        attach(scripted, optimizer)
    assert hooks_of(model, optimizer, nn.Identity()) == [0] * 5
    assert not is_masked(model, batch[0])
    attach(model, optimizer, nn.CrossEntropyLoss(), p=1.0)
    assert is_masked(model, batch[0])


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error_leaves_nothing(make_model):
    model, criterion = make_model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(make_model().parameters(), lr=0.1)
    with pytest.raises(UserWarning, match="holds no parameter"):
        attach(model, optimizer, criterion)
    assert hooks_of(model, optimizer, criterion) == [0] * 5


@pytest.mark.parametrize("broken", [{"p": 2.0}, {"baseline": "median"}, {"criterion": "scripted"}], ids=str)
def test_a_failed_replacement_leaves_the_earlier_hook(make_model, batch, broken):
    model, criterion = make_model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = attach(model, optimizer, criterion, p=1.0)
    before = hooks_of(model, optimizer, criterion)
    other = torch.jit.script(nn.CrossEntropyLoss()) if broken.pop("criterion", None) else criterion
    with pytest.raises((TypeError, ValueError)):
        attach(model, optimizer, other, replace=True, **broken)
    assert hooks_of(model, optimizer, criterion) == before
    criterion(model(batch[0]), batch[1]).backward()
    optimizer.step()
    assert hook.metrics["samples_seen"] == 8


# -- the mode ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [False, True])
def test_a_wrapper_whose_inner_module_is_in_eval_mode_is_not_masked(make_model, batch, token):
    """An attack in evaluation: gradients are on, and only the wrapper is in training mode."""
    wrapper = Wrapper(make_model(batch_norm=True), token=token)
    attach(wrapper, torch.optim.SGD(wrapper.parameters(), lr=0.1), nn.CrossEntropyLoss(), p=1.0)
    wrapper.m.eval()
    assert not is_masked(wrapper, batch[0])
    wrapper.m.train()
    assert is_masked(wrapper, batch[0])


def frozen_backbone(make_model):
    model = nn.Sequential(make_model(), nn.Linear(5, 5))
    model[0].eval().requires_grad_(False)
    return model


def batch_norm_in_eval_mode(make_model):
    model = make_model(batch_norm=True)
    model[1].eval()
    return model


def prompt_before_a_frozen_network(make_model):
    model = Wrapper(make_model().requires_grad_(False), token=True)
    model.m.eval()
    return model


def frozen_in_training_mode(make_model):
    return make_model().requires_grad_(False)


def without_parameters(make_model):
    return Wrapper(nn.Flatten())


@pytest.mark.parametrize(
    "make",
    [
        frozen_backbone,
        batch_norm_in_eval_mode,
        prompt_before_a_frozen_network,
        frozen_in_training_mode,
        without_parameters,
    ],
)
def test_what_is_trained_decides_the_mode(make_model, make):
    model = make(make_model)
    assert is_training(model)
    assert not is_training(model.eval())


# -- several models ----------------------------------------------------------------------------------------------------


def pair(make_model, **settings):
    torch.manual_seed(0)
    encoders = make_model(), make_model()
    optimizer = torch.optim.SGD([p for encoder in encoders for p in encoder.parameters()], lr=0.1)
    criterion = nn.CrossEntropyLoss()
    hooks = [attach(encoder, optimizer, criterion, p=1.0, **settings) for encoder in encoders]
    return encoders, optimizer, criterion, hooks


def step(encoders, optimizer, criterion, batch):
    loss = sum(criterion(encoder(batch[0]), batch[1]) for encoder in encoders)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_two_encoders_with_one_optimizer_each_learn_from_their_own_losses(make_model, batch):
    encoders, optimizer, criterion, hooks = pair(make_model)
    before = [copy.deepcopy(hook.augmentation.state_dict()) for hook in hooks]
    step(encoders, optimizer, criterion, batch)
    assert [hook.metrics["samples_seen"] for hook in hooks] == [8, 8]
    rewards = [hook.metrics["reward"] for hook in hooks]
    assert rewards[0] != rewards[1]
    for hook, old in zip(hooks, before, strict=True):
        assert any(not torch.equal(value, old[name]) for name, value in hook.augmentation.state_dict().items())


def test_two_hooks_of_one_optimizer_draw_different_masks(make_model, batch):
    *_, hooks = pair(make_model)
    assert not torch.equal(*(hook.apply(batch[0]) for hook in hooks))


def test_two_hooks_of_one_optimizer_are_resumed_from_its_state(make_model, batch):
    encoders, optimizer, criterion, hooks = pair(make_model)
    step(encoders, optimizer, criterion, batch)
    state = optimizer.state_dict()
    assert {"policy_noise", "policy_noise.1"} < state.keys()
    *_, other, _, resumed = pair(make_model)
    other.load_state_dict(state)
    for hook, new in zip(hooks, resumed, strict=True):
        torch.testing.assert_close(new.state_dict(), hook.state_dict(), rtol=0, atol=0)


def test_replacing_one_hook_leaves_that_of_the_other_model(make_model, batch):
    encoders, optimizer, criterion, hooks = pair(make_model)
    new = attach(encoders[0], optimizer, criterion, p=1.0, replace=True)
    step(encoders, optimizer, criterion, batch)
    assert [hook.metrics["samples_seen"] for hook in (*hooks, new)] == [0, 8, 8]
    assert {"policy_noise", "policy_noise.1"} < optimizer.state_dict().keys()


def test_rebinding_the_same_optimizer_changes_nothing(make_model, batch):
    encoders, optimizer, criterion, hooks = pair(make_model)
    for hook in reversed(hooks):
        hook.rebind(optimizer)
    step(encoders, optimizer, criterion, batch)
    assert [hook.metrics["samples_seen"] for hook in hooks] == [8, 8]
    assert {"policy_noise", "policy_noise.1"} < optimizer.state_dict().keys()
    assert hooks[0]._key == "policy_noise"


def test_a_hook_by_hand_beside_that_of_a_model(make_model, batch):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attach(model, optimizer, nn.CrossEntropyLoss())
    by_hand = ReinforceHook(PolicyNoiseMask(p=1.0), optimizer)
    by_hand.apply(batch[0])
    by_hand.observe(torch.rand(8))
    optimizer.step()
    assert by_hand.metrics["samples_seen"] == 8
