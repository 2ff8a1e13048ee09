"""Random shading among Kornia's augmentations."""

import kornia.augmentation as K
import pytest
import torch

from policy_noise.adapters.kornia import RandomShading, RandomShading3D

CASES = [(RandomShading, (6, 3, 16, 20)), (RandomShading3D, (6, 1, 8, 10, 12))]
UNIT = {"mean": 0.0, "std": 1.0}


DRAWN = {"pattern_std": (0.05, 0.4), "brightness_std": (0.0, 0.3), "per_channel": True, "upsample": "linear"}


@pytest.mark.parametrize(("kind", "shape"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize("settings", [UNIT, UNIT | DRAWN], ids=["default", "ranges"])
def test_stored_parameters_replay_the_masks_and_the_seed_repeats_them(kind, shape, dtype, settings):
    augmentation, images = kind(p=0.5, **settings), torch.rand(shape).to(dtype)
    torch.manual_seed(2)
    first = augmentation(images)
    params = augmentation._params
    assert (first.shape, first.dtype) == (images.shape, dtype)
    changed = (first != images).flatten(1).any(1)
    assert 0 < changed.sum() < 6
    assert torch.equal(changed, params["batch_prob"].bool())
    other = augmentation(images)
    assert not torch.equal(first, other)
    assert torch.equal(augmentation(images, params=params), first)
    torch.manual_seed(2)
    assert torch.equal(augmentation(images), first)


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_a_mask_for_the_batch_or_one_for_each_image(kind, shape):
    images = torch.full(shape, 0.5)
    assert len(kind(p=1.0, same_on_batch=True, **UNIT)(images).unique(dim=0)) == 1
    assert len(kind(p=1.0, **UNIT)(images).unique(dim=0)) == 6


@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_single_images(kind, shape):
    image = torch.rand(shape[1:])
    assert kind(p=1.0)(image).shape == (1, *shape[1:])
    assert kind(p=1.0, keepdim=True)(image).shape == shape[1:]


def test_in_a_sequence_masks_and_boxes_stay():
    sequence = K.AugmentationSequential(
        RandomShading(p=1.0, grid_size=3, **UNIT),
        K.RandomHorizontalFlip(p=0.0),
        data_keys=["input", "mask", "bbox_xyxy"],
    )
    images, mask = torch.rand(2, 3, 16, 16), torch.ones(2, 1, 16, 16)
    boxes = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]).expand(2, 1, 4)
    shaded, kept, same = sequence(images, mask, boxes)
    assert not torch.equal(shaded, images)
    assert torch.equal(kept, mask)
    assert torch.equal(same, boxes)
    again, *_ = sequence(images, mask, boxes, params=sequence._params)
    assert torch.equal(again, shaded)


def test_settings_are_those_of_random_shading():
    assert RandomShading(grid_size=(3, 2)).shading.grid_size == (3, 2)
    assert RandomShading3D(grid_size=3).shading.grid_size == (3, 3, 3)
    with pytest.raises(ValueError, match="brightness_std must be"):
        RandomShading(brightness_std=3.0)
    with pytest.raises(TypeError, match="pattern_sd"):
        RandomShading(pattern_sd=0.1)
