"""The study's images: their shifts and corruptions."""

import dataclasses
import sys
import types

import numpy as np
import pytest
import torch

from benchmarks.study.shifts import medmnist_c
from benchmarks.study.tasks import TASKS
from policy_noise.experiments.shifts import SHIFTS


@pytest.mark.parametrize("name", SHIFTS)
def test_shifts_grow_with_severity(name):
    function, levels = SHIFTS[name]
    coarse = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    images = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear")
    distances = []
    for level in levels:
        shifted = function(images, torch.Generator().manual_seed(0), level)
        assert torch.equal(shifted, function(images, torch.Generator().manual_seed(0), level))
        assert shifted.shape == images.shape
        distances.append(float((shifted - images).abs().mean()))
    assert 0 < distances[0] < distances[1] < distances[2]


def test_corruptions_start_from_seeds_of_their_own_and_leave_the_global_one(monkeypatch):
    class Noise:
        def apply(self, image, severity):
            image = np.asarray(image)
            assert image.shape == (16, 16, 3)
            return np.uint8(np.clip(image + (1 + severity) * np.random.normal(size=image.shape), 0, 255))  # noqa: NPY002

    class Impulse:
        def apply(self, image, severity):
            return np.asarray(image) + self.rng.integers(2, size=(16, 16, 1), dtype=np.uint8)

    registry = types.ModuleType("medmnistc.corruptions.registry")
    registry.CORRUPTIONS_DS = {"breastmnist": {"noise": Noise(), "impulse": Impulse()}}
    for name in ("medmnistc", "medmnistc.corruptions"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    images = np.full((3, 16, 16), 100, np.uint8)
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.rand()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    first, second, other = (medmnist_c("breastmnist", images, seed) for seed in (1, 1, 500))
    assert np.random.rand() == expected  # noqa: NPY002
    assert list(first) == [f"{name}-{severity}" for name in ("noise", "impulse") for severity in (1, 3, 5)]
    for name, corrupted in first.items():
        assert corrupted.shape == images.shape
        assert corrupted.dtype == np.uint8
        assert np.array_equal(corrupted, second[name])
        assert not np.array_equal(corrupted, other[name])


@pytest.mark.parametrize("name", ["joined-half", "pneumonia-half"])
def test_long_tasks_are_the_short_ones_with_five_times_the_epochs(name):
    short, long = TASKS[name], TASKS[f"{name}-long"]
    assert long == dataclasses.replace(short, name=long.name, epochs=5 * short.epochs)
