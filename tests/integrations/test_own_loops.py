"""Loops without a torch optimizer, notebook cells run twice, folds that share a criterion, and Lightning's tuner."""

import pytest
import torch
from torch import nn

import policy_noise

SETTINGS = {"in_chans": 1, "p": 1.0}


def make_model():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


def batch(step=0):
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 1, 12, 12, generator=generator), torch.arange(8) % 3


def policy_of(hook):
    return torch.cat([parameter.detach().flatten().clone() for parameter in hook.augmentation.parameters()])


def train(model, optimizer, criterion, steps=2):
    for step in range(steps):
        images, targets = batch(step)
        loss = criterion(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_loop_that_updates_by_hand_steps_the_policy_as_an_optimizer_would():
    """The same policy after hand-written SGD with hook.step(lr) as under torch's SGD."""
    policies = []
    for by_hand in (False, True):
        torch.manual_seed(0)
        model, criterion = make_model(), nn.CrossEntropyLoss()
        optimizer = None if by_hand else torch.optim.SGD(model.parameters(), lr=0.1)
        hook = policy_noise.attach(model, optimizer, criterion, **SETTINGS)
        start = policy_of(hook)
        for step in range(4):
            images, targets = batch(step)
            model.zero_grad()
            criterion(model(images), targets).backward()
            if by_hand:
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.add_(parameter.grad, alpha=-0.1)  # exactly what SGD does
                hook.step(0.1)
            else:
                optimizer.step()
        assert hook.metrics["samples_seen"] == 32
        policies.append(policy_of(hook))
    assert not torch.equal(policies[0], start)
    torch.testing.assert_close(*policies)


def test_step_without_a_learning_rate_keeps_the_policys_own():
    model, criterion = make_model(), nn.CrossEntropyLoss()
    hook = policy_noise.attach(model, None, criterion, policy_lr=0.02, **SETTINGS)
    criterion(model(batch()[0]), batch()[1]).backward()
    hook.step()
    assert hook.policy_optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
    assert hook.metrics["samples_seen"] == 8


@pytest.mark.parametrize("target", ["model", "optimizer", "criterion"])
def test_detach_takes_off_whatever_is_there(target):
    parts = {"model": make_model(), "criterion": nn.CrossEntropyLoss()}
    parts["optimizer"] = torch.optim.SGD(parts["model"].parameters(), lr=0.1)
    hook = policy_noise.attach(**parts, **SETTINGS)
    assert policy_noise.detach(parts[target]) == 1
    assert policy_noise.detach(parts[target]) == 0
    train(**parts)
    assert hook.metrics["samples_seen"] == 0
    assert "policy_noise" not in parts["optimizer"].state_dict()
    policy_noise.attach(**parts, **SETTINGS)


def test_replace_puts_a_new_hook_in_the_old_ones_place():
    model, criterion = make_model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    old = policy_noise.attach(model, optimizer, criterion, **SETTINGS)
    with pytest.raises(RuntimeError, match=r"policy_noise\.detach\(model\) first, or attach\(\.\.\., replace=True\)"):
        policy_noise.attach(model, optimizer, criterion, **SETTINGS)
    new = policy_noise.attach(model, optimizer, criterion, replace=True, **SETTINGS)
    train(model, optimizer, criterion)
    assert (old.metrics["samples_seen"], new.metrics["samples_seen"]) == (0, 16)


@pytest.mark.parametrize("fails", [False, True])
def test_a_with_block_takes_the_hook_off_at_its_end(fails):
    model, criterion = make_model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    try:
        with policy_noise.attach(model, optimizer, criterion, **SETTINGS) as hook:
            train(model, optimizer, criterion)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert hook.metrics["samples_seen"] == 16
    assert policy_noise.detach(model) == policy_noise.detach(optimizer) == policy_noise.detach(criterion) == 0
    train(model, optimizer, criterion)
    assert hook.metrics["samples_seen"] == 16


def test_a_notebook_cell_run_twice_hooks_the_new_model_beside_the_old_one():
    criterion, hooks = nn.CrossEntropyLoss(), []
    for _ in range(2):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        hooks.append(policy_noise.attach(model, optimizer, criterion, **SETTINGS))
        train(model, optimizer, criterion)
    assert [hook.metrics["samples_seen"] for hook in hooks] == [16, 16]


def test_folds_that_share_a_criterion_each_take_the_losses_of_their_own_model():
    """Two models in one loop learn the same as each in its own loop."""

    def fold(criterion, seed):
        torch.manual_seed(seed)
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return policy_noise.attach(model, optimizer, criterion, **SETTINGS), model, optimizer

    alone = []
    for seed in (0, 1):
        criterion = nn.CrossEntropyLoss()
        hook, model, optimizer = fold(criterion, seed)
        train(model, optimizer, criterion)
        alone.append(policy_of(hook))
    criterion = nn.CrossEntropyLoss()
    folds = [fold(criterion, seed) for seed in (0, 1)]
    for step in range(2):
        outputs = [model(batch(step)[0]) for _, model, _ in folds]
        for _, _, optimizer in folds:
            optimizer.zero_grad()
        for output in reversed(outputs):  # not in the order of the forwards
            criterion(output, batch(step)[1]).backward()
        for _, _, optimizer in folds:
            optimizer.step()
    for (hook, _, _), expected in zip(folds, alone, strict=True):
        assert hook.metrics["samples_seen"] == 16
        torch.testing.assert_close(policy_of(hook), expected)


@pytest.mark.parametrize("replace", [True, False])
def test_lightnings_tuner_followed_by_fit(replace, recwarn):
    pytest.importorskip("lightning")
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.tuner import Tuner
    from torch.utils.data import DataLoader, TensorDataset

    class Module(LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.criterion, self.lr, self.hooks = make_model(), nn.CrossEntropyLoss(), 0.01, []

        def training_step(self, pair, index):
            return self.criterion(self.model(pair[0]), pair[1])

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.model.parameters(), lr=self.lr)
            self.hooks.append(policy_noise.attach(self.model, optimizer, self.criterion, replace=replace, **SETTINGS))
            return optimizer

    module, loader = Module(), DataLoader(TensorDataset(*batch()), batch_size=4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(max_epochs=2, accelerator="cpu", enable_checkpointing=False, **quiet)
    Tuner(trainer).lr_find(module, loader, num_training=8, min_lr=1e-4, max_lr=1e-2)
    start = policy_of(module.hooks[-1])
    trainer.fit(module, loader)
    assert len(module.hooks) >= 2
    assert module.hooks[-1].metrics["samples_seen"] == 16
    assert not torch.equal(policy_of(module.hooks[-1]), start)
    told = [str(warning.message) for warning in recwarn if "another optimizer" in str(warning.message)]
    assert bool(told) != replace
