"""``attach``."""

import functools
import inspect
import warnings
from typing import get_type_hints

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import policy_noise
from policy_noise import PolicyNoiseMask, RandomShading, ReinforceHook, attach
from policy_noise.learning import PolicyLearner
from policy_noise.settings import HookSettings, LearnerSettings, PolicySettings, ShadingSettings


@pytest.fixture
def parts(make_model):
    model = make_model()
    return model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()


def timm_parts(name="test_resnet", **arguments):
    model = timm.create_model(name, num_classes=5, **arguments)
    return model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()


@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_channels_are_read_from_the_model(make_model, in_chans):
    model = make_model(in_chans)
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    assert hook.augmentation.in_chans == in_chans
    assert hook.augmentation.black is None


@pytest.mark.parametrize("in_chans", [1, 2, 3])
def test_timm_models_tell_their_normalisation(in_chans):
    hook = attach(*timm_parts("resnet10t", in_chans=in_chans))
    assert hook.augmentation.in_chans == in_chans
    if in_chans != 3:
        assert hook.augmentation.black is None  # the record is of three channels
        return
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(hook.augmentation.black.flatten(), -mean / std)


def test_vision_transformers_too():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=5)
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    assert hook.augmentation.in_chans == 3
    torch.testing.assert_close(hook.augmentation.black.flatten(), torch.full((3,), -1.0))


def test_given_settings_win(parts):
    hook = attach(*parts, mean=0.5, std=0.25, grid_size=4, p=0.3, policy_lr=1e-3, baseline="batch", max_pending=2)
    torch.testing.assert_close(hook.augmentation.black.flatten(), torch.tensor([-2.0]))
    assert (hook.augmentation.grid_size, hook.augmentation.p) == ((4, 4), 0.3)
    assert (hook.learner.rate.lr, hook.learner.rate.lr_ratio, hook.learner.baseline) == (1e-3, None, "batch")


def test_rates_of_the_presets_give_way(parts):
    model, optimizer, criterion = parts
    hook = attach(model, optimizer, criterion, policy_lr_ratio=0.5)
    assert (hook.learner.rate.lr, hook.learner.rate.lr_ratio) == (None, 0.5)
    hook.remove()
    hook = attach(model, optimizer, criterion, preset="paper", policy="static", policy_lr=1e-3)
    assert (hook.learner.rate.lr, hook.learner.rate.lr_ratio) == (1e-3, None)


def test_the_papers_preset(parts):
    hook = attach(*parts, preset="paper")
    assert sum(parameter.numel() for parameter in hook.augmentation.parameters()) == 10_179_704
    assert (hook.learner.scales_loss, hook.learner.rate.lr_ratio) == (True, 0.1)
    assert float(hook.augmentation.black) == 0


def test_volumes_get_a_grid_of_three_axes():
    model = nn.Sequential(nn.Conv3d(2, 4, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()
    hook = attach(model, optimizer, criterion, grid_size=3)
    assert (hook.augmentation.in_chans, hook.augmentation.grid_size) == (2, (3, 3, 3))
    criterion(model(torch.randn(4, 2, 9, 10, 11)), torch.arange(4) % 3).backward()
    optimizer.step()
    assert hook.metrics["samples_seen"] == 4


class Wrapper(nn.Module):
    """Holds the user's module as DDP does."""

    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("wrap", [Wrapper, functools.partial(torch.compile, backend="eager")], ids=["DDP", "compile"])
def test_wrapped_models_are_looked_into(make_model, wrap):
    inner = make_model(4)
    model = wrap(inner)
    hook = attach(model, torch.optim.SGD(inner.parameters(), lr=0.1), nn.CrossEntropyLoss())
    assert hook.augmentation.in_chans == 4
    assert model._forward_pre_hooks
    assert not inner._forward_pre_hooks


def test_a_model_with_an_empty_record(make_model):
    model = make_model(2)
    model.pretrained_cfg = None
    assert attach(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()).augmentation.in_chans == 2


def test_a_function_as_loss(parts, batch):
    model, optimizer, _ = parts
    hook = attach(model, optimizer, preset="learned")
    hook.observe(F.cross_entropy(model(batch[0]), batch[1], reduction="none")).mean().backward()
    optimizer.step()
    assert hook.metrics["samples_seen"] == 8


@pytest.mark.parametrize(
    ("prepare", "warns"),
    [
        (lambda raw, mean, std: (raw - mean) / std, False),
        (lambda raw, mean, std: (0.1 + 0.8 * raw - mean) / std, False),
        (lambda raw, mean, std: raw, True),
        (lambda raw, mean, std: 255 * raw, True),
        (lambda raw, mean, std: 2 * (raw - 0.5) / 0.1, True),
    ],
    ids=["normalised", "never quite black", "in [0, 1]", "in [0, 255]", "other mean and std"],
)
def test_images_that_contradict_the_normalisation_are_pointed_out_once(prepare, warns):
    model, optimizer, criterion = timm_parts()
    attach(model, optimizer, criterion)
    mean, std = (torch.tensor(model.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    images = prepare(torch.rand(8, 3, 32, 32), mean, std)
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        for _ in range(2):
            criterion(model(images), torch.arange(8) % 5)
    assert sum("black level" in str(warning.message) for warning in record) == warns


def test_the_overrides_are_those_of_mask_hook_and_learner(parts):
    with pytest.raises(TypeError, match=r"unknown setting 'gridsize': did you mean 'grid_size'\?"):
        attach(*parts, gridsize=4)
    with pytest.raises(TypeError, match=r"unknown setting 'zzz': policy_noise.settings lists them all"):
        attach(*parts, zzz=4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": F.relu}, TypeError, r"model must be a torch\.nn\.Module, got function"),
        ({"model": nn.Linear}, TypeError, r"model must be .*the class: pass Linear\(\.\.\.\)"),
        ({"augmentation": RandomShading}, TypeError, r"augmentation must be .*the class: pass RandomShading\(\.\.\.\)"),
        ({"criterion": nn.CrossEntropyLoss}, TypeError, r"criterion must be .*the class: pass CrossEntropyLoss\(\)"),
        ({"entropy_target": 0.5}, ValueError, "entropy_target must be at most 0, .*got 0.5"),
        ({"strength_schedule": 0.5}, TypeError, "strength_schedule must be a function of the step, .*got 0.5"),
        ({"pattern_std": "big"}, ValueError, r"pattern_std must be a number in \[0, 1\] or a range .*'big'"),
        ({"mean": (0.5, 0.5), "std": 0.2}, ValueError, r"mean must be one finite number or 3 \(in_chans\)"),
        ({"optimizer": nn.Linear(2, 2)}, TypeError, "optimizer must be .*Linear"),
        ({"criterion": F.cross_entropy}, TypeError, "criterion must be .*function"),
        ({"preset": "papper"}, ValueError, r"preset must be one of \['learned', 'paper', 'random'\], got 'papper'"),
        ({"grid_size": 0}, ValueError, "grid_size .*got 0"),
        ({"kernel_size": 4}, ValueError, "kernel_size .*got 4"),
        ({"sigma": -1}, ValueError, "sigma .*got -1"),
        ({"mean": 0.5}, ValueError, r"mean and std belong together, got mean=0\.5"),
        ({"policy_lr": 0.1, "policy_lr_ratio": 0.1}, ValueError, "exactly one of policy_lr and policy_lr_ratio"),
        ({"preset": "paper", "policy": "static", "reward": "adversarial"}, ValueError, "estimator='paper'"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_hooked(parts, change, error, message):
    model, optimizer, criterion = parts
    arguments = {"model": model, "optimizer": optimizer, "criterion": criterion, **change}
    with pytest.raises(error, match=message):
        attach(**arguments)
    assert not model._forward_pre_hooks
    assert not criterion._forward_hooks
    assert not optimizer._optimizer_step_post_hooks
    attach(*parts)


def test_a_model_that_does_not_say_its_channels_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"in_chans cannot be read from Sequential.*attach\(\.\.\., in_chans=\.\.\.\)"):
        attach(model, optimizer, preset="learned")
    assert attach(model, optimizer, preset="learned", in_chans=3).augmentation.in_chans == 3


# -- what it follows ---------------------------------------------------------------------------------------------------


def kinds(make_model, *args, **settings):
    model = make_model()
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1), *args, **settings)
    return type(hook.augmentation), hook.learner.frozen, hook


def test_without_a_loss_masks_are_random_and_with_one_they_are_learned(make_model):
    per_image = {"output_loss": lambda output, args, kwargs: output.square().mean(1)}
    assert kinds(make_model)[:2] == (RandomShading, True)
    assert kinds(make_model, nn.CrossEntropyLoss())[:2] == (PolicyNoiseMask, False)
    assert kinds(make_model, **per_image)[:2] == (PolicyNoiseMask, False)
    assert kinds(make_model, preset="learned")[:2] == (PolicyNoiseMask, False)
    assert kinds(make_model, nn.CrossEntropyLoss(), preset="random")[:2] == (RandomShading, True)
    assert kinds(make_model, nn.CrossEntropyLoss(), frozen=True)[:2] == (PolicyNoiseMask, True)
    assert kinds(make_model, augmentation=PolicyNoiseMask())[:2] == (PolicyNoiseMask, False)
    assert kinds(make_model, augmentation=RandomShading())[:2] == (RandomShading, True)


def test_random_masks_take_every_setting_of_random_shading(make_model):
    settings = {"upsample": "linear", "grid_size": 3, "pattern_std": (0.0, 0.4), "per_channel": True, "black": -1.0}
    shading = kinds(make_model, **settings)[2].augmentation
    assert (shading.upsample, shading.grid_size, shading.pattern_std) == ("linear", (3, 3), (0.0, 0.4))
    assert shading.per_channel
    assert float(shading.black) == -1


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        ({"reward": "adversarial"}, "reward would have no effect.* pass a criterion, or preset='learned' and call"),
        ({"entropy_target": -0.1, "policy": "static"}, "entropy_target, policy would have no effect"),
        ({"preset": "random", "policy_lr": 0.1}, "policy_lr would have no effect.*: pass preset='learned'"),
        ({"augmentation": RandomShading(), "reward": "adversarial"}, "reward would have no effect"),
        ({"loss_method": "own"}, "loss_method would have no effect.* pass a criterion"),
        ({"preset": "learned", "loss_method": "own"}, "loss_method='own' would have no effect.*no criterion"),
    ],
    ids=str,
)
def test_settings_of_a_policy_on_random_masks_are_refused_with_the_remedy(make_model, settings, remedy):
    with pytest.raises(TypeError, match=remedy):
        kinds(make_model, **settings)
    assert kinds(make_model, preset="random", frozen=True)[0] is RandomShading


def test_observing_random_masks_is_refused_with_the_remedy(make_model, batch):
    model = make_model()
    hook = attach(model, torch.optim.SGD(model.parameters(), lr=0.1))
    losses = F.cross_entropy(model(batch[0]), batch[1], reduction="none")
    with pytest.raises(RuntimeError, match=r"not learned: leave it out, or pass attach\(\.\.\., preset='learned'\)"):
        hook.observe(losses)


def test_learned_masks_without_a_criterion_say_what_is_missing(make_model, batch):
    model = make_model()
    attach(model, torch.optim.SGD(model.parameters(), lr=0.1), preset="learned", max_pending=2)
    for _ in range(2):
        model(batch[0])
    with pytest.raises(policy_noise.PairingError, match=r"the hook has no criterion\. Pass it to attach, call"):
        model(batch[0])


def test_networks_without_a_convolution_take_random_masks_and_patches_are_refused_by_name():
    network = timm.create_model("naflexvit_base_patch16_gap", num_classes=3, depth=1, embed_dim=32, num_heads=2)
    hook = attach(network, torch.optim.SGD(network.parameters(), lr=0.1))
    with pytest.raises(TypeError, match="called with patches, which no longer form an image: mask images before"):
        network({"patches": torch.rand(2, 9, 768), "patch_coord": torch.zeros(2, 9, 2)})
    hook.remove()


SHADING = get_type_hints(ShadingSettings)


@pytest.mark.parametrize(
    ("function", "typed", "besides"),
    [
        (RandomShading.__init__, SHADING, set()),
        (PolicyNoiseMask.__init__, SHADING | get_type_hints(PolicySettings), {"per_channel"}),
        (ReinforceHook.__init__, get_type_hints(HookSettings), set()),
        (PolicyLearner.__init__, get_type_hints(LearnerSettings), set()),
    ],
    ids=lambda value: getattr(value, "__qualname__", None),
)
def test_the_typed_settings_are_those_of_the_signatures(function, typed, besides):
    skipped = {"self", "augmentation", "optimizer", "model", "criterion", "learner"}
    parameters = inspect.signature(function).parameters.values()
    assert {p.name for p in parameters} - skipped == typed.keys() - besides
    for parameter in parameters:
        if parameter.name not in skipped:
            assert parameter.annotation == typed[parameter.name], parameter.name


def test_attaching_twice_is_refused_and_the_first_goes_on(parts, batch):
    model, optimizer, criterion = parts
    hook = attach(*parts)
    with pytest.raises(RuntimeError, match=r"is hooked already: call policy_noise.detach"):
        attach(*parts)
    criterion(model(batch[0]), batch[1]).backward()
    optimizer.step()
    assert hook.metrics["samples_seen"] == 8
    hook.remove()
    attach(*parts)


def test_a_hook_with_another_optimizer_gives_way_and_says_so(parts, batch):
    model, _, criterion = parts
    first = attach(*parts)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match=r"with another optimizer, was replaced.*rebind.*replace=True"):
        hook = attach(model, optimizer, criterion)
    assert len(model._forward_pre_hooks) == 1
    criterion(model(batch[0]), batch[1]).backward()
    optimizer.step()
    assert (hook.metrics["samples_seen"], first.metrics["samples_seen"]) == (8, 0)


def test_the_readmes_loop():
    """The shortest use: a timm model, SGD, cross-entropy, and one line."""
    model = timm.create_model("test_resnet", num_classes=7)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    criterion = nn.CrossEntropyLoss()
    hook = policy_noise.attach(model, optimizer, criterion)
    keys = model.state_dict().keys()
    before = {name: value.clone() for name, value in hook.augmentation.state_dict().items()}
    for _ in range(2):
        images, targets = torch.randn(4, 3, 64, 64).clamp(-2, 2), torch.arange(4)
        loss = criterion(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert any(not torch.equal(value, before[name]) for name, value in hook.augmentation.state_dict().items())
    hook.remove()
    assert model.state_dict().keys() == keys
    assert isinstance(hook.augmentation, PolicyNoiseMask)
