"""The signals that a policy gets, on a tiny task."""

import dataclasses

import pytest
import torch

import policy_noise.functional as PF
from benchmarks.study.classifier import Classifier
from benchmarks.study.masks import StudyMask
from benchmarks.study.signals import Signals, pathwise_surrogate
from policy_noise import MaskSample


def test_a_virtual_step_is_one_of_the_last_layer(data):
    torch.manual_seed(0)
    model = Classifier("resnet", 16, 3)
    images, others = (data.images[part].float() / 255 for part in (slice(0, 5), slice(5, 9)))
    labels, other_labels = data.labels[:5], data.labels[5:9]
    signals = Signals("virtual", model, torch.Generator(), {})
    signals.before(images, labels, others, other_labels)
    model.eval()
    logits, features = model(images)
    found = signals.after(images, torch.ones(5, dtype=torch.bool), logits.detach(), features, labels)
    # By hand: a gradient step of the layer itself on each image, of one length for all.
    with torch.no_grad():
        length = 1 / (model(others)[1].square().sum(1).mean() + 1)
    head = model.network.get_classifier()
    for index in range(5):
        weight, bias = torch.autograd.grad(
            torch.nn.functional.cross_entropy(head(features[index : index + 1]), labels[index : index + 1]),
            [head.weight, head.bias],
        )
        moved = torch.nn.functional.linear(model(others)[1], head.weight - length * weight, head.bias - length * bias)
        expected = torch.nn.functional.cross_entropy(moved, other_labels)
        torch.testing.assert_close(found[index], expected.detach())
    assert found.std() > 0


def test_the_pathwise_surrogate_has_the_gradient_of_pytorchs_own_draw():
    logarithms = torch.randn(5, 1, 2, 2, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    slopes = torch.randn(5, 1, 2, 2, generator=torch.Generator().manual_seed(1))
    concentration1, concentration0 = logarithms.exp().unbind(-1)
    torch.manual_seed(2)
    drawn = torch.distributions.Beta(concentration1, concentration0).rsample()
    (expected,) = torch.autograd.grad((drawn * slopes).sum(), logarithms, retain_graph=True)
    torch.manual_seed(2)
    action = PF.sample_beta(concentration1, concentration0)
    assert torch.equal(action, drawn)
    sample = MaskSample(slopes.new_zeros(5), slopes.new_ones(5).bool(), action, concentration1, concentration0)
    surrogate = pathwise_surrogate(sample, slopes)
    assert surrogate.shape == (5,)
    torch.testing.assert_close(torch.autograd.grad(surrogate.sum(), logarithms)[0], expected)


@pytest.mark.parametrize("signal", ["loss", "robust"])
def test_slopes_are_those_of_the_signal_in_each_cell(data, signal):
    torch.manual_seed(0)
    normalization = {"mean": data.mean, "std": data.std}
    model = Classifier("resnet", 16, 3).double()
    mask = StudyMask(1, 2, pattern_std=0.1, brightness_std=0.2, policy="static", **normalization)
    mask.shuffled = True
    images, others = (data.images[part].double() / 255 for part in (slice(0, 6), slice(6, 12)))
    labels, other_labels = data.labels[:6], data.labels[6:12]
    signals = Signals(f"pathwise-{signal}", model, torch.Generator().manual_seed(0), normalization)
    signals.before(images, labels, others, other_labels)
    sample = mask.sample(images)
    sample = dataclasses.replace(sample, action=sample.action.double(), applied=torch.tensor([True] * 5 + [False]))

    @torch.no_grad()
    def total(action):
        masked = mask(images, dataclasses.replace(sample, action=action))
        model.eval()
        return signals.after(masked, mask.applied, *model(masked), labels).sum()

    action = sample.action.clone().requires_grad_()
    masked = mask(images, dataclasses.replace(sample, action=action))
    slopes = signals.slopes(action, masked, mask.applied, labels)
    assert model.training
    assert not slopes[5].any()  # not applied
    for index in ((0, 0, 0, 0), (2, 0, 1, 0), (4, 0, 1, 1)):
        step = torch.zeros_like(sample.action)
        step[index] = 1e-5
        numeric = (total(sample.action + step) - total(sample.action - step)) / 2e-5
        torch.testing.assert_close(slopes[index], numeric, rtol=1e-3, atol=1e-6)
