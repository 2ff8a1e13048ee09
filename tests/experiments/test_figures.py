"""Pictures: they are drawn from what they are given, and leave the random state alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from policy_noise import PolicyNoiseMask
from policy_noise.experiments.data import ImageSet, Split
from policy_noise.experiments.figures import (
    class_histogram,
    confusion_matrix,
    few_shot_curves,
    intensity_histogram,
    mask_gallery,
    training_diagnostics,
)
from policy_noise.experiments.statistics import Interval


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize(
    "options", [{}, {"mean_preserving": False, "pattern_std": None, "brightness_std": 0.0, "domain": "normalized"}]
)
def test_gallery(tmp_path, options):
    mask = PolicyNoiseMask(in_chans=1, p=0.0, **options).train()
    images = torch.randn(3, 1, 32, 32)
    before = torch.get_rng_state()
    for name in ("one.png", "two.png"):
        mask_gallery(mask, images, ["a", "b", "c"], tmp_path / name, mean=0.5, std=0.25)
    mask_gallery(mask, images, ["a", "b", "c"], tmp_path / "other.png", mean=0.5, std=0.25, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert mask.training
    assert np.array_equal(pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png"))
    assert not np.array_equal(pixels(tmp_path / "one.png"), pixels(tmp_path / "other.png"))


def test_gallery_leaves_a_backbones_statistics(tmp_path):
    mask = PolicyNoiseMask(in_chans=1, policy="test_resnet")
    before = {name: value.clone() for name, value in mask.state_dict().items()}
    mask_gallery(mask, torch.randn(2, 1, 32, 32), ["a", "b"], tmp_path / "one.png", mean=0.5, std=0.25)
    assert all(torch.equal(value, before[name]) for name, value in mask.state_dict().items())


def test_diagnostics_draw_every_method(tmp_path):
    def log(offset):
        return [{"epoch": step / 4, "loss": offset - step / 10, "reward": step} for step in range(8)]

    training_diagnostics({"conventional": [log(2)]}, tmp_path / "one.png")
    training_diagnostics({"conventional": [log(2)], "policy": [log(3), log(4)[:5]]}, tmp_path / "two.png")
    blue = np.array([0, 114, 178])  # the policy's colour
    found = [(np.abs(pixels(tmp_path / name).astype(int) - blue).sum(-1) < 20).sum() for name in ("one.png", "two.png")]
    assert found[0] == 0
    assert found[1] > 200


def organs(counts, groups):
    labels = np.repeat(np.arange(len(counts)), counts)
    split = Split(np.zeros((len(labels), 4, 4), np.uint8), labels)
    return ImageSet("set", split, split, split, tuple(f"c{i}" for i in range(len(counts))), groups)


@pytest.mark.parametrize("groups", [{}, {"modality": ("CT", "MR", "MR")}])
def test_histogram(tmp_path, groups):
    class_histogram(organs([5, 90, 3], groups), tmp_path / "one.png")
    class_histogram(organs([5, 9, 3], groups), tmp_path / "two.png")
    assert not np.array_equal(pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png"))


def test_intensities_have_a_panel_for_each_modality(tmp_path):
    labels = np.repeat([0, 1, 2], 8)
    grey = (np.array([20, 120, 220])[labels, None, None] * np.ones((24, 4, 4))).astype(np.uint8)
    split = Split(grey, labels)
    widths = []
    for groups in ({}, {"modality": ("CT", "MR", "US")}):
        data = ImageSet("set", split, split, split, ("a", "b", "c"), groups)
        intensity_histogram(data, tmp_path / "one.png", images=5)
        widths.append(pixels(tmp_path / "one.png").shape[1])
    assert widths[1] > 1.5 * widths[0]
    # The middle panel's bar alone: 120 of 255 lies near its middle.
    middle = pixels(tmp_path / "one.png").astype(int)[:, widths[1] // 3 : 2 * widths[1] // 3]
    assert (np.abs(middle - [232, 175, 38]).sum(-1) < 60).sum() > 100  # orange, somewhat transparent


def test_confusion_and_curves(tmp_path):
    confusion_matrix([[9, 1], [0, 10]], ["a", "b"], tmp_path / "one.png")
    confusion_matrix([[10, 0], [0, 10]], ["a", "b"], tmp_path / "two.png")
    assert not np.array_equal(pixels(tmp_path / "one.png"), pixels(tmp_path / "two.png"))
    nothing_known = Interval(0.5, float("nan"), float("nan"))
    table = {"set": {"policy": {8: Interval(0.5, 0.4, 0.6), 16: nothing_known}, "other": {8: nothing_known}}}
    few_shot_curves(table, tmp_path / "curves.png", metric="macro F1")
    assert pixels(tmp_path / "curves.png").std() > 5
