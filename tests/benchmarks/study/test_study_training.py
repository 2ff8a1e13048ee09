"""Pairing by seed, and every kind of run end to end on a tiny task."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from benchmarks.study import scoring, training
from benchmarks.study.classifier import Classifier
from benchmarks.study.conditions import CONDITIONS, HELD, Condition
from benchmarks.study.jobs import Job
from benchmarks.study.masks import ClassPolicy, StudyMask
from benchmarks.study.scoring import evaluate
from benchmarks.study.tasks import FewShot, train_indices
from benchmarks.study.training import Batches, train
from policy_noise.experiments.rivals import Augmentation
from policy_noise.policy import StaticPolicy


def test_batches_are_those_of_the_seed(data):
    first, second, other = (Batches(data, seed, 4) for seed in (0, 0, 1))
    assert len(first) == 4 * 3
    assert torch.equal(first[5][0], second[5][0])
    assert not torch.equal(first.order, other.order)
    indices = train_indices(data, 0)
    assert np.bincount(data.labels[indices]).tolist() == [8, 8, 8]


def test_a_batch_that_is_not_moved_is_the_images(data):
    batches = Batches(data, 0, 1)
    batches.moves.fill_(1)  # the middle of a reach of one pixel
    images, labels = batches[0]
    assert torch.equal(images, data.images[batches.order[0]].float() / 255)
    assert torch.equal(labels, data.labels[batches.order[0]])


def test_few_shot_transfer_probes_the_features(data, monkeypatch):
    monkeypatch.setattr(scoring, "SHOTS", (6, 24))
    target = FewShot(data.images, data.labels.numpy(), data.evals["val"]["clean"], 3)
    model = Classifier("resnet", 16, 5)
    scores = evaluate(model, dataclasses.replace(data, few_shot={"val": target}, num_classes=5), "val")
    assert scores["few_shot:6"] > 0.5  # classes differ by brightness, which random features keep
    assert scores["few_shot:24"] > 0.9
    assert "few_shot:6" not in evaluate(model, dataclasses.replace(data, num_classes=5), "val")


def test_shuffled_masks_go_to_the_neighbour_and_their_credit_comes_back():
    mask = StudyMask(in_chans=1, grid_size=2, p=0.5)
    images = torch.rand(6, 1, 8, 8)
    sample = mask.sample(images, torch.Generator().manual_seed(0))
    plain = mask.render(sample, (8, 8))
    mask.shuffled = True
    shuffled = mask(torch.ones_like(images) - _black(images), sample)
    assert torch.equal(mask.applied, sample.applied.roll(1))
    # Where an image was changed tells which mask it got.
    changed = (shuffled != torch.ones_like(images) - _black(images)).flatten(1).any(1)
    assert torch.equal(changed, (plain != 1).flatten(1).any(1).roll(1) & changed)
    signal = torch.arange(6.0)
    assert mask.credit(signal)[0] == 1  # mask 0 was applied to image 1


def _black(images: torch.Tensor) -> torch.Tensor:
    """Zero in one corner, so that the darkest pixel is 0 and the mask shows everywhere else."""
    black = torch.zeros_like(images)
    black[:, :, 0, 0] = 1
    return black


@pytest.mark.parametrize(("kind", "features"), [("resnet", 128), ("resnet-half", 128), ("vit", 96), ("vit-half", 96)])
def test_half_a_classifier_sees_half_the_side(kind, features):
    model = Classifier(kind, 32, 5)
    logits, pooled = model(torch.rand(2, 1, 32, 32))
    assert (logits.shape, pooled.shape) == ((2, 5), (2, features))
    maps = model.network.forward_features(torch.rand(2, 1, 32, 32))
    places = {"resnet": (4, 4), "resnet-half": (2, 2), "vit": (65, 96), "vit-half": (17, 96)}[kind]
    assert maps.shape[-2:] == places


KINDS = (
    "plain",
    "frozen-s100-p50",
    "frozen-wide-p50",
    "frozen-curriculum",
    "coop-static",
    "adv-smooth-shuffled",
    "coop-wide",
    "teacher",
    "band",
    "relative-adv",
    "align",
    "bias-field",
    "gaussian-noise",
    "random-erasing",
    "mixup",
    "randaugment",
    "color-jitter",
    "color-jitter-2x2-dose10-level20",
    "color-jitter-coop-2x2-dose10-level20-shuffled",
    "adv-throughout",
    "coop-dose20-shuffled",
    "frozen-dose20-sparse",
    "frozen-paper",
    "adv-dose20-class",
    "virtual-dose20",
    "robust-2x2-dose20",
    "coop-dose20-long",
    "coop-dose20-recalibrated",
    "pathwise-adv-2x2-dose10-level20-bounded",
    "pathwise-robust-2x2-dose10-level20-bounded-shuffled",
    "adv-2x2-dose10-level20-entropy075-centred-shuffled",
)


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_run(data, name):
    condition = CONDITIONS[name]
    if "grid_size" not in condition.mask and condition.preset:
        condition = dataclasses.replace(condition, mask={**condition.mask, "grid_size": 4})
    result = train(Job(data.task, condition, 0, ("val",)), data)
    assert result["steps"] == 12
    assert set(result["scores"]["val"]) == {"clean", "contrast:1", "ct2"}
    assert all(0 <= value <= 1 for value in result["scores"]["val"].values())
    assert np.isfinite([point["loss"] for point in result["curve"]]).all()
    # The last quarter of a heated run has no policy.
    last = {"heated": 9, "long": 6, "throughout": 12, "recalibrated": 12}[condition.schedule]
    assert [point["step"] for point in result["policy"]] == (list(range(1, last + 1)) if condition.preset else [])
    if condition.family == "frozen":
        assert {point["alpha"] for point in result["policy"]} == {result["policy"][0]["alpha"]}
    if condition.family == "learned":
        assert len({point["alpha"] for point in result["policy"]}) > 1
    assert bool(result["encoding"]) == (condition.preset is not None)
    assert np.isfinite(list(result["encoding"].values())).all()
    json.dumps(result)


def test_jitter_is_of_each_images_brightness_and_contrast():
    torch.manual_seed(0)
    images = 0.5 + 0.05 * torch.rand(64, 1, 16, 16)  # far from where it would be clamped
    jitter = Augmentation("color_jitter", 3, torch.device("cpu"), 0)
    changed, _ = jitter(images, torch.zeros(64))
    assert changed.shape == images.shape
    x, y = (values.flatten(1) - values.flatten(1).mean(1, keepdim=True) for values in (images, changed))
    slope = (x * y).sum(1) / x.square().sum(1)
    torch.testing.assert_close(y, slope[:, None] * x, rtol=0, atol=1e-5)
    level = changed.flatten(1).mean(1) / images.flatten(1).mean(1)
    for factor in (level, slope / level):  # brightness first and contrast about the mean, or the other way round
        assert 0.599 < factor.min() < 0.7 < 1.3 < factor.max() < 1.401
        assert factor.std() == pytest.approx(0.8 / 12**0.5, rel=0.2)


def test_a_class_policy_gives_each_image_its_class():
    policy = ClassPolicy(3, (2, 2))
    torch.nn.init.normal_(policy.log_concentration)
    policy.labels = torch.tensor([2, 0, 2])
    log_concentration1, log_concentration0 = policy(torch.zeros(3, 1, 8, 8))
    assert torch.equal(log_concentration1[:, 0], policy.log_concentration[[2, 0, 2], 0])
    assert torch.equal(log_concentration0[:, 0], policy.log_concentration[[2, 0, 2], 1])


def test_recalibrated_statistics_are_those_of_unmasked_images(data):
    """The last epoch's mean of the first layer, whatever the masks did before."""
    seen: list[torch.Tensor] = []
    statistics = training.update_bn

    def update(loader, model):
        images = [batch.clone() for batch in loader]
        seen.extend(images)
        statistics(images, model)
        first = model.network.conv1(torch.cat(images)).mean((0, 2, 3))
        torch.testing.assert_close(model.network.bn1.running_mean, first, rtol=1e-3, atol=1e-4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "update_bn", update)
        train(Job(data.task, CONDITIONS["frozen-dose20-recalibrated"], 0, ("val",)), data)
    batches = Batches(data, 0, data.task.epochs)
    assert torch.equal(seen[-1], (batches[len(batches) - 1][0] - data.mean) / data.std)


def test_a_run_repeats_and_a_mask_of_no_strength_is_plain_training(data):
    def losses(condition: Condition) -> list[float]:
        return [point["loss"] for point in train(Job(data.task, condition, 3, ("val",)), data)["curve"]]

    plain, adversarial = losses(CONDITIONS["plain"]), losses(_small("adv"))
    assert adversarial == losses(_small("adv"))
    assert adversarial != plain
    assert losses(_small("adv", strength=0.0)) == pytest.approx(plain, rel=1e-4)


def _small(name: str, **mask: object) -> Condition:
    return dataclasses.replace(CONDITIONS[name], mask={"grid_size": 4, **mask})


def _encoding(policy: torch.nn.Module) -> dict[str, float]:
    """Of grey images, for a classifier that takes the dark ones for class 0 and the bright ones for class 1."""

    class ByBrightness(torch.nn.Module):
        def forward(self, images):
            level = images.flatten(1).mean(1)
            return torch.stack([20 - 20 * level, 20 * level - 20], 1), level

    mask = StudyMask(in_chans=1, mean=0.0, std=1.0, policy=policy, p=0.5)
    model = ByBrightness()
    labels = torch.arange(400) % 2
    mask.shuffled = True
    found = scoring.encoding(model, mask, torch.ones(400, 1, 8, 8), labels, 0)
    assert model.training
    assert mask.shuffled  # both are as they were
    return found


def test_masks_that_say_the_class_are_found_out():
    policy = ClassPolicy(2, (2, 2))
    with torch.no_grad():
        policy.log_concentration[0, 1] = policy.log_concentration[1, 0] = 4.0  # dark cells for 0, bright ones for 1
    told = _encoding(policy)
    assert told["probe"] == 1.0
    assert told["probe_swapped"] == pytest.approx(0.5, abs=0.12)
    assert told["chance"] == 0.5
    assert told["loss_unmasked"] == pytest.approx(np.log(2), abs=1e-5)
    # A factor of exp(+-.6) moves the logits' difference by at least 18, for half of the other images the wrong way.
    assert told["loss"] < 1e-3
    assert told["loss_swapped"] > 5

    blind = _encoding(StaticPolicy((2, 2)))
    assert blind["probe"] == pytest.approx(0.5, abs=0.12)
    assert blind["loss_swapped"] == pytest.approx(blind["loss"], rel=0.2)


def test_held_conditions_hold_the_entropy_where_they_say(data):
    """A policy that is far from its target pays for it more and more, and one with a target of 0 stays uniform."""
    for name, target in (("coop-2x2-dose10-level20-entropy000", 0.0), ("adv-2x2-dose10-level20-entropy250", -0.25)):
        condition = CONDITIONS[name]
        assert condition.hook["entropy_target"] == target
        policy = train(Job(data.task, condition, 0, ("val",)), data)["policy"]
        assert {"entropy", "entropy_coef"} <= policy[-1].keys()
        first = policy[0]["entropy"] / 4  # nats a cell
        assert policy[0]["entropy_coef"] == pytest.approx(0.1 * np.exp(0.5 * (target - first)), rel=1e-3)
    assert not CONDITIONS[name].mask.get("center_brightness")
    assert CONDITIONS[f"{name}-centred"].mask["center_brightness"]
    assert len(HELD) == 24
