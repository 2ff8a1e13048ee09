"""Random shading among torchvision's v2 transforms."""

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

import policy_noise
from policy_noise.adapters.torchvision import RandomShading

UNIT = {"mean": 0.0, "std": 1.0}
IMAGE = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(1))
BYTES = (IMAGE * 255).round().to(torch.uint8)


def picture(mode="RGB"):
    return PIL.Image.fromarray(BYTES.permute(1, 2, 0).numpy()).convert(mode)


def seeded(transform, *sample):
    torch.manual_seed(3)
    return transform(*sample)


@pytest.mark.parametrize(
    "image",
    [
        IMAGE,
        BYTES,
        tv_tensors.Image(IMAGE),
        tv_tensors.Image(BYTES),
        IMAGE.double(),
        IMAGE.half(),
        picture(),
        picture("L"),
        picture("F"),
    ],
    ids=["tensor", "bytes", "Image", "Image bytes", "double", "half", "PIL", "PIL L", "PIL F"],
)
def test_an_image_keeps_its_type_and_repeats_with_torchs_seed(image):
    transform = v2.Compose([RandomShading(p=1.0, **UNIT)])
    first, again, other = seeded(transform, image), seeded(transform, image), transform(image)
    assert type(first) is type(image)
    if isinstance(image, PIL.Image.Image):
        assert (first.mode, first.size) == (image.mode, image.size)
        first, again, other, image = (np.asarray(one) for one in (first, again, other, image))
    else:
        assert (first.dtype, first.shape) == (image.dtype, image.shape)
    assert (first == again).all()
    assert (first != image).any()
    assert (first != other).any()


@pytest.mark.parametrize("strength", [1.0, 0.0])
def test_bytes_are_rounded_and_clipped(strength):
    settings = {"p": 1.0, "brightness_std": 1.0, "strength": strength, **UNIT}
    shaded = seeded(RandomShading(**settings), BYTES)
    expected = seeded(policy_noise.RandomShading(**settings), BYTES.float() / 255)
    assert torch.equal(shaded, (expected * 255).round().clamp(0, 255).to(torch.uint8))
    assert torch.equal(shaded, BYTES) == (strength == 0)
    bright = torch.full((3, 16, 16), 250, dtype=torch.uint8)
    results = [RandomShading(**settings)(bright) for _ in range(20)]
    assert (max(int(one.max()) for one in results) == 255) == (strength == 1)
    assert min(int(one.min()) for one in results) > 0  # nothing wrapped around


def test_only_images_of_a_sample_change_and_they_share_a_mask():
    sample = {
        "left": tv_tensors.Image(IMAGE),
        "right": tv_tensors.Image(IMAGE),
        "label": torch.rand(1, 20, 24),
        "weights": torch.rand(3),
        "mask": tv_tensors.Mask(torch.ones(1, 20, 24)),
        "boxes": tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYXY", canvas_size=(20, 24)),
        "name": "a",
    }
    result = v2.Compose([RandomShading(p=1.0, **UNIT)])(sample)
    assert not torch.equal(result["left"], IMAGE)
    assert torch.equal(result["left"], result["right"])
    for key in ("label", "weights", "mask", "boxes"):
        assert torch.equal(result[key], sample[key])
        assert type(result[key]) is type(sample[key])
    assert result["name"] == "a"


@pytest.mark.parametrize("settings", [{}, {"pattern_std": (0.1, 0.3), "per_channel": True}])
def test_frames_of_a_video_share_a_mask_and_images_of_a_batch_do_not(settings):
    frames = torch.full((5, 3, 16, 16), 0.5)
    video = RandomShading(p=1.0, **UNIT, **settings)(tv_tensors.Video(frames))
    assert isinstance(video, tv_tensors.Video)
    assert len(video.as_subclass(torch.Tensor).unique(dim=0)) == 1
    assert len(RandomShading(p=1.0, **UNIT)(tv_tensors.Image(frames)).as_subclass(torch.Tensor).unique(dim=0)) == 5
    videos = RandomShading(p=1.0, **UNIT)(tv_tensors.Video(torch.stack([frames, frames])))
    assert videos.shape == (2, 5, 3, 16, 16)
    assert [len(one.unique(dim=0)) for one in videos.as_subclass(torch.Tensor)] == [1, 1]
    assert not torch.equal(videos[0], videos[1])


def test_a_list_of_tensors_is_a_list_of_images_and_a_tuple_starts_with_its_image():
    transform = RandomShading(p=1.0, **UNIT)
    images = transform([IMAGE, IMAGE[:, :16], BYTES])
    assert [type(one) for one in images] == [torch.Tensor] * 3
    assert [one.dtype for one in images] == [torch.float32, torch.float32, torch.uint8]
    assert not any(torch.equal(one, other) for one, other in zip(images, [IMAGE, IMAGE[:, :16], BYTES], strict=True))
    image, target = transform((IMAGE, IMAGE))
    assert not torch.equal(image, IMAGE)
    assert torch.equal(target, IMAGE)
    label, image = transform(torch.tensor(3), IMAGE)
    assert label == 3
    assert not torch.equal(image, IMAGE)


def test_volumes():
    volume = torch.rand(1, 8, 12, 10)
    shaded = RandomShading(p=1.0, grid_size=(2, 2, 2), **UNIT)(volume)
    assert shaded.shape == volume.shape
    assert not torch.equal(shaded, volume)


@pytest.mark.parametrize("mode", ["P", "RGBA", "CMYK", "1"])
def test_a_picture_whose_numbers_are_no_intensities_is_refused(mode):
    with pytest.raises(TypeError, match=f"mode L, RGB or F, got '{mode}'"):
        RandomShading(p=1.0)(picture(mode))


def test_a_sample_without_an_image_is_refused():
    with pytest.raises(TypeError, match="holds no image"):
        RandomShading()({"label": torch.tensor(3)})


def test_p_is_the_share_of_masked_images():
    transform = RandomShading(p=0.3, **UNIT)
    changed = sum(not torch.equal(transform(IMAGE), IMAGE) for _ in range(400))
    assert changed / 400 == pytest.approx(0.3, abs=0.1)


def test_in_a_mapping_the_key_says_what_is_an_image():
    transform = RandomShading(p=1.0, **UNIT)
    sample = transform({"label": IMAGE, "image": IMAGE})
    assert sample["label"] is IMAGE
    assert not torch.equal(sample["image"], IMAGE)
    assert type(sample["image"]) is torch.Tensor
    numbered = transform({"image": IMAGE, "image2": IMAGE, "img_3": IMAGE, "image_mask": IMAGE})
    assert torch.equal(numbered["image"], numbered["image2"])
    assert torch.equal(numbered["image"], numbered["img_3"])
    assert numbered["image_mask"] is IMAGE
    for unclear in ({"t1": IMAGE, "t2": IMAGE}, {"boxes": torch.rand(2, 3, 4), "scan": IMAGE}):
        with pytest.raises(TypeError, match="not clear from the keys"):
            transform(unclear)


def test_images_of_one_call_that_cannot_share_a_mask_are_refused():
    transform = RandomShading(p=1.0, per_channel=True, **UNIT)
    with pytest.raises(ValueError, match=r"numbers of channels, got \[\(3, 20, 24\), \(1, 20, 24\)\]"):
        transform(tv_tensors.Image(IMAGE), tv_tensors.Image(IMAGE[:1]))
    with pytest.raises(ValueError, match=r"batch sizes, got \[\(4, 3, 20, 24\), \(3, 20, 24\)\]"):
        transform(tv_tensors.Image(IMAGE.expand(4, -1, -1, -1)), tv_tensors.Image(IMAGE))
    colour, grey = RandomShading(p=1.0, **UNIT)(tv_tensors.Image(IMAGE), tv_tensors.Image(IMAGE[:1]))
    assert torch.equal(colour[:1], grey)


def test_values_that_do_not_fit_are_said():
    transform = RandomShading(p=1.0, mean=123.0, std=58.0)
    with pytest.warns(UserWarning, match="don't fit the black level"):
        transform(torch.randn(32, 3, 16, 16))
