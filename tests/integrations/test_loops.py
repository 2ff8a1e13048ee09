"""Things that loops do, beside the frameworks and the rows of the matrix."""

import importlib
import sys
import types

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from tiny import DEVICE, SETTINGS, TinyNet, policy_vector, tiny_data
from torch import nn
from torch.utils.checkpoint import checkpoint

import policy_noise
from policy_noise.hooks.hook import stepping_optimizer

IMAGES, TARGETS = (tensor.to(DEVICE) for tensor in tiny_data().tensors)


def start(optimizer=None, **settings):
    torch.manual_seed(0)
    model, criterion = TinyNet().to(DEVICE), nn.CrossEntropyLoss()
    optimizer = (optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-2)))(model.parameters())
    return model, optimizer, criterion, policy_noise.attach(model, optimizer, criterion, **{**SETTINGS, **settings})


@pytest.mark.parametrize("fused", [False, True])
def test_skipped_step_keeps_its_samples_for_the_next(fused):
    """After an overflow, GradScaler does not call the optimizer, or calls a fused one that skips the step itself."""
    model, optimizer, criterion, hook = start(lambda parameters: torch.optim.AdamW(parameters, lr=1e-2, fused=fused))
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0)
    weights = []
    for step in range(3):
        loss = criterion(model(IMAGES[:8]), TARGETS[:8])
        scaler.scale(loss * (torch.inf if step == 1 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        weights.append((model.head.weight.detach().clone(), policy_vector(hook)))
    assert torch.equal(weights[0][0], weights[1][0])  # both were skipped
    assert torch.equal(weights[0][1], weights[1][1])
    assert not torch.equal(weights[1][1], weights[2][1])
    assert hook._draws.steps == 2
    assert hook.metrics["samples_seen"] == 24


def test_checkpointed_call_replays_its_masks():
    """The recomputation of the hooked model in the backward sees the masks of the forward: the gradients are right."""
    generator = torch.Generator(DEVICE)
    model, _, criterion, hook = start(generator=generator)
    gradients = []
    for call in (model, lambda images: checkpoint(model, images, use_reentrant=False)):
        model.zero_grad()
        generator.manual_seed(3)
        criterion(call(IMAGES), TARGETS).backward()
        gradients.append(model.block1[0].weight.grad.clone())
    torch.testing.assert_close(*gradients)
    assert len(hook._queue.scored) == 2


@pytest.mark.parametrize("settings", [{"generator": torch.Generator(DEVICE)}, {}])
def test_checkpointed_call_that_cannot_replay_says_what_to_do(settings):
    """With use_reentrant=True the forward runs without gradients, so there is no draw to repeat."""
    model, _, criterion, _ = start(**settings)
    images = IMAGES.clone().requires_grad_()
    output = checkpoint(model, images, use_reentrant=True)
    with pytest.raises(RuntimeError, match="checkpoint the blocks inside the model"):
        criterion(output, TARGETS).backward()


def test_forward_that_runs_ahead_of_a_step_is_not_learned_from():
    model, optimizer, criterion, hook = start()
    ahead = model(IMAGES[8:16])
    criterion(model(IMAGES[:8]), TARGETS[:8]).backward()
    optimizer.step()
    before = policy_vector(hook)
    criterion(ahead, TARGETS[8:16])
    optimizer.step()
    assert hook.metrics["samples_seen"] == 8
    assert torch.equal(before, policy_vector(hook))


@pytest.mark.parametrize("in_optimizer", [True, False])
def test_one_owner_of_the_policy(in_optimizer, tmp_path):
    model, optimizer, criterion, hook = start(state_in_optimizer=in_optimizer)
    criterion(model(IMAGES), TARGETS).backward()
    optimizer.step()
    assert ("policy_noise" in optimizer.state_dict()) == in_optimizer
    torch.save({"optimizer": optimizer.state_dict(), "policy": hook.state_dict()}, tmp_path / "both.pt")
    saved = torch.load(tmp_path / "both.pt", weights_only=True)
    _, other_optimizer, _, other = start(state_in_optimizer=in_optimizer)
    other_optimizer.load_state_dict(saved["optimizer"])
    assert torch.equal(policy_vector(hook), policy_vector(other)) == in_optimizer
    if not in_optimizer:
        other.load_state_dict(saved["policy"])
    assert torch.equal(policy_vector(hook), policy_vector(other))
    plain = torch.optim.AdamW(TinyNet().parameters())
    plain.load_state_dict(saved["optimizer"])
    assert set(plain.state_dict()) == {"state", "param_groups"}


def test_stepping_optimizer_looks_through_wrappers_in_wrappers():
    inner = torch.optim.SGD(TinyNet().parameters(), lr=0.1)

    accelerated = AcceleratedOptimizer.__new__(AcceleratedOptimizer)
    accelerated.optimizer = inner
    assert stepping_optimizer(types.SimpleNamespace(optimizer=accelerated)) is inner
    assert stepping_optimizer(types.SimpleNamespace(base=inner)) is inner
    assert stepping_optimizer(inner) is inner


def test_unknown_wrapper_says_what_to_pass():
    class Wrapper:
        def __init__(self, parameters):
            self.something = list(parameters)

    with pytest.raises(TypeError, match=r"Wrapper, which holds none"):
        start(Wrapper)


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("integrations.lightning", "lightning.pytorch", "lightning"),
        ("integrations.transformers", "transformers", "transformers"),
        ("integrations.monai", "ignite.engine", "monai"),
    ],
)
def test_missing_framework_names_the_extra(monkeypatch, module, package, extra):
    monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    monkeypatch.delitem(sys.modules, f"policy_noise.{module}", raising=False)
    with pytest.raises(ImportError) as error:
        importlib.import_module(f"policy_noise.{module}")
    assert str(error.value).startswith(f"policy_noise.{module} needs")
    assert f"pip install 'policy_noise[{extra}]'" in str(error.value)
