"""Shifted test images, and hand-set augmentations in a run."""

import random
import sys

import medmnistc_stub
import numpy as np
import pytest
import torch

from policy_noise.experiments.data import Split
from policy_noise.experiments.rivals import RIVALS, Augmentation, RunAugmentation
from policy_noise.experiments.shifts import SEVERITIES, SHIFTS, ShiftedSplit, medmnistc_errors, medmnistc_shifts


@pytest.fixture(scope="module", params=[(), (3,)], ids=["grey", "colour"])
def split(request):
    waves = np.sin(np.arange(32) * np.linspace(0.5, 0.9, 6)[:, None])  # each image has its own
    images = 120 + 70 * waves[:, None, :] * np.cos(np.arange(32) / 2)[:, None]
    images = np.stack([images] * 3, axis=-1) if request.param else images
    return Split(images.astype(np.uint8), np.arange(6) % 2)


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_changes_images_more_with_its_severity_and_not_their_kind(split, name):
    distances = []
    for severity in SEVERITIES:
        images, kept = ShiftedSplit(split, name, severity).read(np.arange(6))
        assert (images.shape, images.dtype, kept.tolist()) == (split.images.shape, np.uint8, list(range(6)))
        distances.append(np.abs(images.astype(int) - split.images).mean())
    assert 0 < distances[0] < distances[1] < distances[2]


@pytest.mark.parametrize("name", SHIFTS)
def test_an_image_is_shifted_alike_in_every_batch(split, name):
    shifted = ShiftedSplit(split, name, 2)
    whole, _ = shifted.read(np.arange(6))
    alone, kept = shifted.read([4, 1])
    assert kept.tolist() == [4, 1]
    assert (alone == whole[[4, 1]]).all()


def test_shifts_differ_between_images_and_seeds():
    split = Split(np.full((2, 16, 16), 100, np.uint8), np.array([0, 1]))
    first, _ = ShiftedSplit(split, "bias_field", 3).read([0, 1])
    other, _ = ShiftedSplit(split, "bias_field", 3, seed=1).read([0, 1])
    assert (first[0] != first[1]).any()
    assert (first != other).any()


@pytest.mark.parametrize("corruption", ["impulse_noise", "brightness_up", "stain_deposit"])
def test_a_corruption_of_medmnistc_is_the_packages_own_and_the_same_in_every_batch(split, corruption, monkeypatch):
    medmnistc_stub.install(monkeypatch)
    shifted = ShiftedSplit(split, f"breastmnist_64/{corruption}", 2)
    kept, pythons = np.random.get_state()[1], random.getstate()  # noqa: NPY002
    whole, _ = shifted.read(np.arange(6))
    assert (np.random.get_state()[1] == kept).all()  # noqa: NPY002
    assert random.getstate() == pythons
    alone, _ = shifted.read([4, 1])
    assert (alone == whole[[4, 1]]).all()
    assert (whole.shape, whole.dtype) == (split.images.shape, np.uint8)
    assert (whole != split.images).any((1, 2) if split.images.ndim == 3 else (1, 2, 3)).all()


def test_corruptions_are_made_at_the_packages_size(monkeypatch):
    medmnistc_stub.install(monkeypatch)
    images = np.random.default_rng(0).integers(0, 100, (1, 224, 224), dtype=np.uint8)
    found, _ = ShiftedSplit(Split(images, np.zeros(1, int)), "breastmnist/brightness_up", 5).read([0])
    assert (found == images + 50).all()
    small, _ = ShiftedSplit(Split(images[:, :32, :32], np.zeros(1, int)), "breastmnist/brightness_up", 5).read([0])
    assert 45 < (small.astype(int) - images[:, :32, :32]).mean() < 55


def test_errors_under_corruptions_are_those_of_medmnistcs_paper():
    with pytest.MonkeyPatch.context() as patch:
        medmnistc_stub.install(patch)
        # AlexNet's: clean .1; .4, .2 and .3 under the three
        found = medmnistc_errors("breastmnist", 0.2, {"impulse_noise": 0.2, "brightness_up": 0.3, "stain_deposit": 0.6})
    assert found["be"] == pytest.approx((0.2 / 0.4 + 0.3 / 0.2 + 0.6 / 0.3) / 3)
    assert found["rbe"] == pytest.approx((0.0 / 0.3 + 0.1 / 0.1 + 0.4 / 0.2) / 3)


def test_without_medmnistc_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "medmnistc", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps medmnistc wand.*libmagickwand-dev"):
        medmnistc_shifts("breastmnist")


def test_a_set_that_is_not_medmnists_is_refused(monkeypatch):
    medmnistc_stub.install(monkeypatch)
    with pytest.raises(ValueError, match=r"MedMNIST's sets \['breastmnist'\], by name, got 'mine'"):
        medmnistc_shifts("mine")


def rival(name, rank=0, seed=0):
    return RunAugmentation(name, 3, torch.device("cpu"), seed=seed, rank=rank, mean=0.5, std=0.25)


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_augmentation_depends_on_seed_step_and_process_alone(name, channels):
    images = (torch.rand(9, channels, 16, 16) - 0.5) / 0.25
    labels = torch.arange(9) % 3
    kept, numpys = torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    x, y = rival(name)(images, labels, 7)
    assert torch.equal(torch.get_rng_state(), kept)
    assert (np.random.get_state()[1] == numpys).all()  # noqa: NPY002
    assert x.shape == images.shape
    assert len(y) == 9
    assert not torch.equal(x, images)
    again, _ = rival(name)(images, labels, 7)
    assert torch.equal(x, again)
    for other, step in ((rival(name), 8), (rival(name, rank=1), 7), (rival(name, seed=1), 7)):
        assert not torch.equal(other(images, labels, step)[0], x)


def test_mixup_gives_probabilities_of_the_classes():
    _, targets = rival("mixup")(torch.zeros(9, 1, 8, 8), torch.arange(9) % 3, 0)
    assert targets.shape == (9, 3)
    assert torch.allclose(targets.sum(1), torch.ones(9))


def test_swapped_statistics_are_those_of_another_image():
    torch.manual_seed(0)
    images = 0.4 + 0.2 * torch.rand(64, 3, 8, 8) + 0.1 * torch.rand(64, 3, 1, 1)  # far from where it would be clamped
    changed, _ = Augmentation("swap_statistics", 3, torch.device("cpu"), 0)(images, torch.zeros(64))
    own, new = (torch.stack(torch.std_mean(x, dim=(2, 3))).permute(1, 0, 2).flatten(1) for x in (images, changed))
    nearest = torch.cdist(new, own, compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert nearest.values.max() < 1e-5
    assert 16 < (nearest.indices != torch.arange(64)).sum() < 48  # about half of them


def test_random_filters_are_mixed_with_the_image_and_keep_middle_grey():
    randconv = Augmentation("randconv", 3, torch.device("cpu"), 0)
    grey = torch.full((8, 3, 16, 16), 0.5)
    assert torch.allclose(randconv(grey, torch.zeros(8))[0], grey)
    point = torch.full((64, 1, 16, 16), 0.5)
    point[:, :, 8, 8] = 1.0
    sizes = set()
    for _ in range(20):
        changed, _ = randconv(point, torch.zeros(64))
        reached = (changed != 0.5).any(0)[0].nonzero() - 8
        sizes.add(1 + 2 * int(reached.abs().max()))
    assert sizes == {1, 3, 5, 7}


def test_severities_are_those_of_every_shift():
    assert all(len(levels) == len(SEVERITIES) for _, levels in SHIFTS.values())


@pytest.mark.parametrize("library", ["albumentations", "monai.transforms"])
def test_a_librarys_transform_of_ones_own_is_seeded(library, tmp_path, monkeypatch):
    pytest.importorskip(library)
    made = {
        "albumentations": "A.RandomBrightnessContrast(p=1.0)",
        "monai.transforms": "A.RandAdjustContrast(prob=1.0, gamma=(0.5, 2.0))",
    }[library]
    (tmp_path / f"own_{len(library)}.py").write_text(f"import {library} as A\nchanges = {made}\n")
    monkeypatch.chdir(tmp_path)
    images, labels = torch.rand(4, 1, 8, 8), torch.arange(4) % 3
    runs = [
        RunAugmentation(f"own_{len(library)}:changes", 3, torch.device("cpu"), seed=0, rank=0, mean=0.0, std=1.0)
        for _ in range(2)
    ]
    first, second = (run(images, labels, 5)[0] for run in runs)
    assert torch.equal(first, second)
    assert not torch.equal(first, runs[0](images, labels, 6)[0])
