"""Recipes and their overrides."""

import dataclasses

import pytest
import torch
from torch import nn

from policy_noise.experiments.recipes import RECIPES, override
from policy_noise.experiments.training import _optimizer, _scheduler, attach_noise, create_model

SMALL = RECIPES["small"]["pretrain"]


def test_papers_numbers():
    pretrain, finetune = RECIPES["paper"]["pretrain"], RECIPES["paper"]["finetune"]
    assert (pretrain.batch_size, pretrain.epochs, pretrain.lr, pretrain.weight_decay) == (32, 90, 0.1, 1e-4)
    assert (pretrain.mean, pretrain.std, pretrain.image_size, pretrain.schedule) == (0.3162, 0.3213, 224, "step")
    assert (pretrain.preset, pretrain.policy_lr) == ("paper", 0.01)
    assert (finetune.batch_size, finetune.epochs, finetune.lr, finetune.warmup_epochs) == (64, 10, 0.001, 7)
    transfer = RECIPES["paper"]["transfer"]
    assert (transfer.shots, transfer.trials) == ((8, 16, 32, 64, 128, 256), 10)


@pytest.mark.parametrize("name", ["resnet10t", "resnet18", "resnet50"])
def test_papers_schedules(name):
    pretrain, finetune = (override(RECIPES["paper"][stage], [f"model={name}"]) for stage in ("pretrain", "finetune"))
    model = create_model(pretrain, 165)
    rates = {}
    for recipe in (pretrain, finetune):
        optimizer = _optimizer(model, recipe)
        group = optimizer.param_groups[0]
        assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 1e-4, False)
        scheduler = _scheduler(optimizer, recipe, steps=2)
        rates[recipe.epochs] = []
        for step in range(2 * recipe.epochs):
            if step % 2 == 0:
                rates[recipe.epochs].append(group["lr"])
            optimizer.step()
            scheduler.step()
    assert rates[90] == pytest.approx([0.1] * 30 + [0.01] * 30 + [0.001] * 30)
    assert rates[10] == pytest.approx([0.001 * (0.01 + 0.99 * min(epoch, 7) / 7) for epoch in range(10)])


def test_papers_policy():
    recipe = dataclasses.replace(RECIPES["paper"]["pretrain"], noise="learned")
    model = create_model(dataclasses.replace(recipe, model="test_resnet"), 165)
    optimizer = _optimizer(model, recipe)
    hook, scheduler = attach_noise(model, optimizer, nn.CrossEntropyLoss(), recipe, 1, torch.Generator())
    group = hook.policy_optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0.9, 1e-4)
    for _ in range(45):
        hook.policy_optimizer.step()
        scheduler.step()
    assert group["lr"] == pytest.approx(0.005)  # half of the cosine over 90 epochs
    mask = hook.augmentation
    assert (mask.grid_size, mask.p, mask.mean_preserving, float(mask.black)) == ((64, 64), 1.0, False, 0.0)
    assert sum(weight.numel() for weight in mask.parameters()) == pytest.approx(10.18e6, rel=0.002)
    hook.remove()


def test_override():
    changed = override(SMALL, ["epochs=3", "lr=1", "model=resnet18", 'noise_options={"p": 1.0}', "policy_lr=0.5"])
    assert (changed.epochs, changed.lr, changed.model, changed.policy_lr) == (3, 1.0, "resnet18", 0.5)
    assert changed.noise_options == {"p": 1.0}
    assert isinstance(changed.lr, float)
    assert override(RECIPES["small"]["transfer"], ["shots=[8, 16]"]).shots == [8, 16]


@pytest.mark.parametrize("text", ["epoch=3", "epochs", "epochs=many", "epochs=2.5", "amp=1", "epochs=true", "shots=8"])
def test_unusable_overrides(text):
    with pytest.raises(ValueError, match="--set"):
        override(SMALL, [text])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"noise": "louder"}, "noise must be one of"),
        ({"schedule": "cosine"}, "schedule must be one of"),
        ({"in_chans": 2}, "in_chans must be one of"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"std": 0.0}, "std must be positive"),
        ({"workers": -1}, "workers must not be negative"),
        ({"mean": "grey"}, "mean must be a finite number, got 'grey'"),
        ({"weight_decay": float("nan")}, "weight_decay must be a finite number, got nan"),
        ({"seed": -1}, "seed must not be negative"),
        ({"model_options": [1]}, "model_options must be an object"),
        ({"amp": 1}, "amp must be true or false"),
        ({"epochs": True}, "epochs must be a whole number"),
        ({"load_size": 64}, "load_size must equal image_size"),
    ],
)
def test_bad_values(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_bad_transfer_values():
    with pytest.raises(ValueError, match="shots must be positive"):
        override(RECIPES["small"]["transfer"], ["shots=[0, 8]"])
    with pytest.raises(ValueError, match=r"shots must be positive numbers of images, each once, got \[4, 4\]"):
        override(RECIPES["small"]["transfer"], ["shots=[4, 4]"])
    with pytest.raises(ValueError, match=r"shots must be a list of whole numbers, got \['a'\]"):
        override(RECIPES["small"]["transfer"], ['shots=["a"]'])
    with pytest.raises(ValueError, match="trials must be at least 1"):
        override(RECIPES["small"]["transfer"], ["trials=0"])
