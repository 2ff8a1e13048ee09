"""Recipes and their overrides."""

import dataclasses

import pytest

from policy_noise.experiments.recipes import RECIPES, override

SMALL = RECIPES["small"]["pretrain"]


def test_papers_numbers():
    pretrain, finetune = RECIPES["paper"]["pretrain"], RECIPES["paper"]["finetune"]
    assert (pretrain.batch_size, pretrain.epochs, pretrain.lr, pretrain.weight_decay) == (32, 90, 0.1, 1e-4)
    assert (pretrain.mean, pretrain.std, pretrain.image_size, pretrain.schedule) == (0.3162, 0.3213, 224, "step")
    assert (pretrain.preset, pretrain.policy_lr) == ("paper", 0.01)
    assert (finetune.batch_size, finetune.epochs, finetune.lr, finetune.warmup_epochs) == (64, 10, 0.001, 7)
    transfer = RECIPES["paper"]["transfer"]
    assert (transfer.shots, transfer.trials) == ((8, 16, 32, 64, 128, 256), 10)


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
        ({"load_size": 64}, "load_size must equal image_size"),
    ],
)
def test_bad_values(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_bad_transfer_values():
    with pytest.raises(ValueError, match="shots must be positive"):
        override(RECIPES["small"]["transfer"], ["shots=[0, 8]"])
    with pytest.raises(ValueError, match="trials must be at least 1"):
        override(RECIPES["small"]["transfer"], ["trials=0"])
