"""Random shading among TorchIO's transforms."""

import pytest
import torch

tio = pytest.importorskip("torchio", "1", reason="an optional library: pip install torchio")

from policy_noise.adapters.torchio import RandomShading  # noqa: E402

UNIT = {"mean": 0.0, "std": 1.0}
VOLUME = torch.rand(1, 8, 12, 10, generator=torch.Generator().manual_seed(1))


def subject():
    return tio.Subject(
        t1=tio.ScalarImage(tensor=VOLUME),
        t2=tio.ScalarImage(tensor=VOLUME),
        label=tio.LabelMap(tensor=(VOLUME > 0.5)),
        age=40,
    )


@pytest.mark.parametrize("shared", [True, False])
def test_scalar_images_get_masks_and_label_maps_none(shared):
    transform = tio.Compose([tio.RandomFlip(p=0.0), RandomShading(p=1.0, shared=shared, **UNIT)])
    torch.manual_seed(0)
    first = transform(subject())
    torch.manual_seed(0)
    again = transform(subject())
    assert torch.equal(first.t1.data, again.t1.data)
    assert not torch.equal(first.t1.data, VOLUME)
    assert torch.equal(first.t1.data, first.t2.data) == shared
    assert torch.equal(first.label.data, subject().label.data)
    assert first.age == 40
    replayed = first.get_composed_history()(subject())
    assert torch.equal(replayed.t1.data, first.t1.data)
    assert torch.equal(replayed.t2.data, first.t2.data)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16, torch.uint8])
def test_tensors_images_and_slices_keep_shape_and_dtype(dtype):
    volume = (VOLUME * 200).to(dtype)
    shaded = RandomShading(p=1.0, **UNIT)(volume)
    assert (shaded.dtype, shaded.shape) == (dtype, volume.shape)
    assert not torch.equal(shaded, volume)
    flat = tio.ScalarImage(tensor=volume[..., :1])
    assert RandomShading(p=1.0, **UNIT)(flat).shape == (1, 8, 12, 1)


def test_p_and_the_names_are_torchios():
    untouched = sum(torch.equal(RandomShading(p=0.3)(VOLUME), VOLUME) for _ in range(200))
    assert untouched / 200 == pytest.approx(0.7, abs=0.14)
    one = RandomShading(p=1.0, include=["t2"])(subject())
    assert torch.equal(one.t1.data, VOLUME)
    assert not torch.equal(one.t2.data, VOLUME)


def test_a_setting_out_of_range_is_told_of_at_once():
    with pytest.raises(ValueError, match="brightness_std must be"):
        RandomShading(brightness_std=3.0)
