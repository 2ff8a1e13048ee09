"""The estimators that gradient quality is measured of, on toys whose gradients are known."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.gradient_quality.__main__ import main
from benchmarks.gradient_quality.estimators import ESTIMATORS, Pool, draw_pool
from benchmarks.gradient_quality.measure import quality
from benchmarks.study.tasks import build_task
from policy_noise.policy import SpatialPolicy

SAMPLES = 4096


def _pool(loss_of) -> tuple[torch.nn.Module, Pool]:
    torch.manual_seed(0)
    policy = SpatialPolicy(1, (2, 2), width=4)
    torch.nn.init.normal_(policy.head.weight, std=0.3)
    images = torch.randn(SAMPLES, 1, 8, 8)
    return policy, draw_pool(policy, loss_of, images, torch.rand(SAMPLES))


def _cells(action: Tensor | None, images: Tensor) -> Tensor:
    return (torch.ones(len(images), 1, 2, 2) if action is None else action).flatten(1)


def _curved(action: Tensor | None, images: Tensor, targets: Tensor) -> Tensor:
    cells = _cells(action, images)
    return (cells - targets.unsqueeze(1)).square().sum(1) + cells.prod(1)


def _linear(action: Tensor | None, images: Tensor, targets: Tensor) -> Tensor:
    return _cells(action, images) @ torch.tensor([1.0, -2.0, 3.0, 0.5])


def _constant(action: Tensor | None, images: Tensor, targets: Tensor) -> Tensor:
    return 0 * _cells(action, images).sum(1) + 2.0


@pytest.fixture(scope="module")
def curved() -> Pool:
    return _pool(_curved)[1]


UNBIASED = ("no baseline", "moving average", "leave one out", "same image unmasked", "two masks an image", "pathwise")


@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_estimators_agree_in_the_mean(curved, name):
    gradients = ESTIMATORS[name].function(curved, 16)
    difference = gradients - ESTIMATORS["pathwise"].function(curved, 16)
    error = difference.std(0) / len(difference) ** 0.5
    z = difference.mean(0) / error.clamp(min=1e-12)
    # Mean zero in every parameter: the z-scores are standard normal, correlated.
    assert float(z.abs().max()) < 5
    assert float(z.square().mean()) < 2.5


def test_the_paper_is_biased_and_its_gradient_of_a_constant_is_not_zero(curved):
    assert quality(ESTIMATORS["paper"].function(curved, 16), curved.pathwise, 16)["cosine_of_mean"] < 0.8
    _, constant = _pool(_constant)
    z = {}
    for name in ("no baseline", "paper"):
        gradients = ESTIMATORS[name].function(constant, 16)
        z[name] = gradients.mean(0) / (gradients.std(0) / len(gradients) ** 0.5)
    assert float(z["no baseline"].abs().max()) < 5 < 20 < float(z["paper"].abs().max())
    assert not constant.pathwise.any()


def test_per_cell_credit_is_exact_for_a_linear_loss_and_less_noisy_than_a_common_reward():
    _, pool = _pool(_linear)
    credit, common = (ESTIMATORS[name].function(pool, 16) for name in ("per-cell credit", "leave one out"))
    judged, other = (quality(gradients, pool.pathwise, 16) for gradients in (credit, common))
    assert judged["cosine_of_mean"] == pytest.approx(1, abs=0.02)
    assert judged["snr"] > 2 * other["snr"]


def test_gradients_of_a_sample_are_those_of_autograd():
    policy, pool = _pool(_linear)
    parameters = list(policy.parameters())
    torch.manual_seed(0)
    # The pool's mean pathwise gradient of a linear loss is that of the cells' means.
    images = _images_of(policy)
    first, second = (value.exp() for value in policy(images))
    loss = _linear(first / (first + second), images, torch.zeros(SAMPLES)).mean()
    exact = torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, parameters)])
    error = pool.pathwise.std(0) / SAMPLES**0.5
    assert float(((pool.pathwise.mean(0) - exact) / error.clamp(min=1e-12)).abs().max()) < 5


def _images_of(policy: torch.nn.Module) -> Tensor:
    """Those that :func:`_pool` drew."""
    torch.manual_seed(0)
    same = SpatialPolicy(1, (2, 2), width=4)
    torch.nn.init.normal_(same.head.weight, std=0.3)
    assert torch.equal(same.head.weight, policy.head.weight)
    return torch.randn(SAMPLES, 1, 8, 8)


def test_quality_of_gradients_with_a_known_ratio():
    torch.manual_seed(0)
    signal = torch.full((10,), 0.5)
    samples = signal + torch.randn(8000, 10)
    judged = quality(samples.unflatten(0, (-1, 8)).mean(1), samples, 8)
    assert judged["snr"] == pytest.approx(2.5 / (10 / 8), rel=0.1)
    assert judged["cosine_of_mean"] == pytest.approx(1, abs=0.01)
    assert quality(-samples.unflatten(0, (-1, 8)).mean(1), samples, 8)["cosine"] < -0.7


def test_files(tmp_path, monkeypatch):
    def every_eighth_image(*arguments):
        data = build_task(*arguments)
        return replace(data, images=data.images[::8], labels=data.labels[::8])

    monkeypatch.setattr("benchmarks.gradient_quality.__main__.build_task", every_eighth_image)
    arguments = ["--seeds", "2", "--samples", "32", "--epochs", "1", "--grids", "2", "--batches", "4", "8"]
    main([*arguments, "--output", str(tmp_path)])
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".json", ".png"}
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * len(ESTIMATORS)
    with pytest.raises(SystemExit):
        main(["--samples", "30", "--output", str(tmp_path)])
