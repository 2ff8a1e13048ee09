"""Named settings."""

import pytest
import torch
from torch import nn

import policy_noise
from policy_noise import PolicyNoiseMask, RandomShading
from policy_noise.learning import PolicyLearner
from policy_noise.policy import BackbonePolicy, SpatialPolicy
from policy_noise.presets import PRESETS, get_preset


def test_the_learned_preset_holds_the_entropy_of_the_constructors_mask(make_model):
    mask = PolicyNoiseMask(in_chans=1, **get_preset("learned").mask)
    assert repr(mask) == repr(PolicyNoiseMask(in_chans=1, center_brightness=True))
    assert isinstance(mask.policy, SpatialPolicy)
    model = make_model()
    hook = policy_noise.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())
    assert hook.learner.reward == "adversarial"
    assert hook.learner.entropy.target == -0.075


@pytest.mark.parametrize(("settings", "target"), [({"entropy_coef": 0.02}, None), ({"entropy_target": -0.2}, -0.2)])
def test_an_entropy_setting_of_ones_own_takes_the_place_of_the_presets(make_model, settings, target):
    model = make_model()
    learner = policy_noise.attach(
        model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), **settings
    ).learner
    assert (None if learner.entropy is None else learner.entropy.target) == target
    assert learner.entropy_coef == settings.get("entropy_coef", 0.0)


def test_the_papers_estimator_names_the_preset_that_it_belongs_to(make_model):
    model = make_model()
    with pytest.raises(ValueError, match=r"estimator='paper' allows neither .* preset='paper'"):
        policy_noise.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), preset="learned", estimator="paper")


def test_the_augmentation_masks_and_learns_nothing_and_needs_no_criterion(batch):
    images, labels = batch
    model = nn.Sequential(nn.Flatten(), nn.Linear(images[0].numel(), 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = policy_noise.attach(model, optimizer)
    seen = []
    model[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for _ in range(10):  # more than may wait for a loss
        nn.functional.cross_entropy(model(images), labels % 5).backward()
        optimizer.step()
    assert any(not torch.equal(masked, images) for masked in seen)
    assert isinstance(hook.augmentation, RandomShading)
    assert hook.policy_optimizer is None
    metrics = hook.metrics
    assert metrics["samples_seen"] == 10 * len(images)
    assert 0 <= metrics["share_masked"] <= 1
    assert 0.4 < metrics["mask_mean"] < 2.0
    assert repr(hook.augmentation) == repr(RandomShading())


def test_the_augmentations_mask():
    mask = RandomShading()
    assert (mask.grid_size, mask.p, mask.pattern_std, mask.brightness_std) == ((3, 3), 0.5, (0.0, 0.2), 0.3)
    torch.manual_seed(0)
    sample = mask.sample(torch.rand(4000, 3, 16, 16))
    factors = mask.render(sample, (16, 16))[sample.applied].flatten(1)
    level = factors.mean(1)
    assert level.log().mean() == pytest.approx(0.0, abs=0.02)
    assert level.log().std() == pytest.approx(0.3, rel=0.03)
    strength = factors.std(1) / level
    assert strength.max() == pytest.approx(0.2, rel=0.01)
    assert strength.mean() == pytest.approx(0.1, rel=0.05)


def test_the_papers_mask():
    mask = PolicyNoiseMask(**get_preset("paper").mask)
    assert isinstance(mask.policy, BackbonePolicy)
    assert (mask.grid_size, mask.kernel_size, mask.sigma) == ((64, 64), 13, 6.0)
    assert (mask.p, mask.strength, mask.mean_preserving, float(mask.black)) == (1.0, 1.0, False, 0.0)
    assert sum(parameter.numel() for parameter in mask.parameters()) == 10_179_704


def test_the_papers_learner():
    learner = PolicyLearner(PolicyNoiseMask(policy="static"), **get_preset("paper").hook)
    group = learner.optimizer.param_groups[0]
    assert learner.scales_loss
    assert learner.reward == "cooperative"
    assert learner.rate.lr_ratio == 0.1
    assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)


def test_presets_cannot_be_changed_by_accident():
    with pytest.raises(TypeError):
        PRESETS["learned"] = PRESETS["paper"]


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match=r"preset must be one of \['learned', 'paper', 'random'\], got 'papper'"):
        get_preset("papper")
