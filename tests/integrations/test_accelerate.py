"""accelerate: attach() looks through AcceleratedOptimizer."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from tiny import SETTINGS, TinyNet, Watch, assert_clean, assert_masked, parameters_equal, policy_vector, tiny_data
from torch import nn
from torch.utils.data import DataLoader

import policy_noise


@pytest.fixture(autouse=True)
def _fresh_singletons():
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def prepare(attach_before=False, **options):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, **options)
    network, criterion = TinyNet(), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    settings = {**SETTINGS, "generator": torch.Generator().manual_seed(0)}
    if attach_before:
        hook = policy_noise.attach(network, optimizer, criterion, **settings)
    model, optimizer, loader = accelerator.prepare(network, optimizer, DataLoader(tiny_data(), batch_size=8))
    if not attach_before:
        hook = policy_noise.attach(model, optimizer, criterion, **settings)
    return accelerator, model, optimizer, criterion, loader, hook


def epoch(accelerator, model, optimizer, criterion, loader):
    model.train()
    for images, targets in loader:
        with accelerator.accumulate(model):
            loss = criterion(model(images), targets)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    model.eval()
    for images, targets in loader:
        criterion(model(images), targets)


@pytest.mark.parametrize("attach_before", [False, True])
@pytest.mark.parametrize("options", [{}, {"mixed_precision": "bf16"}, {"gradient_accumulation_steps": 2}])
def test_learns_and_validates_clean(options, attach_before):
    *parts, hook = prepare(attach_before, **options)
    watch = Watch(parts[1].block1)
    epoch(*parts)
    images = tiny_data().tensors[0]
    assert_masked(watch.training, images)
    assert_clean(watch.validation, images)
    assert hook.metrics["samples_seen"] == 32
    assert hook._draws.steps == 4 // options.get("gradient_accumulation_steps", 1)
    assert hook.augmentation.policy.head.weight.abs().sum() > 0


def test_resume_equals_uninterrupted(tmp_path):
    *parts, hook = prepare()
    epoch(*parts)
    parts[0].save_state(tmp_path)
    epoch(*parts)
    *resumed, other = prepare()
    resumed[0].load_state(tmp_path)
    epoch(*resumed)
    assert parameters_equal(parts[1], resumed[1])
    assert torch.equal(policy_vector(hook), policy_vector(other))
    assert hook.metrics == other.metrics


def test_hook_can_be_registered_for_checkpointing(tmp_path):
    """Saving the hook's own state, for strategies that drop unknown entries of the optimizer's state."""
    *parts, hook = prepare()
    hook.remove()
    accelerator, model, optimizer, criterion, _ = parts
    hook = policy_noise.attach(model, optimizer, criterion, state_in_optimizer=False, **SETTINGS)
    accelerator.register_for_checkpointing(hook)
    epoch(*parts)
    learned = policy_vector(hook)
    accelerator.save_state(tmp_path)
    epoch(*parts)
    assert not torch.equal(learned, policy_vector(hook))
    accelerator.load_state(tmp_path)
    assert torch.equal(learned, policy_vector(hook))
    assert "policy_noise" not in optimizer.state_dict()
