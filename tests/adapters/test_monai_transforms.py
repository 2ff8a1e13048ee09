"""Random shading among MONAI's transforms."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandFlipd

from policy_noise.adapters.monai import RandShading, RandShadingd

UNIT = {"mean": 0.0, "std": 1.0}
VOLUME = torch.rand(1, 8, 12, 10, generator=torch.Generator().manual_seed(1))


def sample():
    label = (VOLUME > 0.5).float()
    return {"t1": VOLUME.clone(), "t2": VOLUME.clone(), "label": label, "age": 40}


@pytest.mark.parametrize(
    "image",
    [
        VOLUME,
        VOLUME.double(),
        VOLUME.numpy(),
        (VOLUME * 1000).to(torch.int16),
        (VOLUME * 255).numpy().astype(np.uint8),
        VOLUME[:, 0],
        MetaTensor(VOLUME, meta={"name": "a"}, affine=2 * torch.eye(4)),
    ],
    ids=["tensor", "double", "array", "int16", "bytes", "two axes", "MetaTensor"],
)
def test_an_image_keeps_its_type_and_repeats_under_set_random_state(image):
    transform = RandShading(prob=1.0, **UNIT)
    first = transform.set_random_state(5)(image)
    other = transform(image)
    again = transform.set_random_state(5)(image)
    assert type(first) is type(image)
    assert (first.dtype, first.shape) == (image.dtype, image.shape)
    assert (first == again).all()
    assert (first != other).any()
    assert (first != image).any()
    assert (transform(image, randomize=False) == again).all()
    if isinstance(image, MetaTensor):
        assert first.meta["name"] == "a"
        assert torch.equal(first.affine, image.affine)


@pytest.mark.parametrize("shared", [True, False])
def test_keys_get_one_mask_or_one_each_and_the_label_none(shared):
    transform = Compose([RandFlipd(["t1", "t2", "label"], prob=0.0), RandShadingd(["t1", "t2"], 1.0, shared, **UNIT)])
    first = transform.set_random_state(5)(sample())
    again = transform.set_random_state(5)(sample())
    assert torch.equal(first["t1"], again["t1"])
    assert torch.equal(first["t2"], again["t2"])
    assert not torch.equal(first["t1"], VOLUME)
    assert torch.equal(first["t1"], first["t2"]) == shared
    assert torch.equal(first["label"], sample()["label"])
    assert first["age"] == 40


def test_prob_is_the_share_of_masked_samples():
    transform = RandShadingd(["t1", "t2"], prob=0.3).set_random_state(0)
    changed = sum(not torch.equal(transform(sample())["t2"], VOLUME) for _ in range(300))
    assert changed / 300 == pytest.approx(0.3, abs=0.12)


def test_a_key_that_may_be_missing():
    lone = {"t2": VOLUME}
    shaded = RandShadingd(["t1", "t2"], prob=1.0, allow_missing_keys=True)(lone)
    assert list(shaded) == ["t2"]
    assert not torch.equal(shaded["t2"], VOLUME)
    with pytest.raises(KeyError, match="t1"):
        RandShadingd(["t1", "t2"], prob=1.0)(lone)
