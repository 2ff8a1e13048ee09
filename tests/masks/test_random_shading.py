"""RandomShading as a transform."""

import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from policy_noise import PolicyNoiseMask, RandomShading


def moments(mask, draws, size=(12, 16)):
    """Mean, deviation, skew and cross terms of the factors, and of their logarithms' mean: (draws, numbers)."""
    sample = mask.sample(torch.ones(draws, 1, *size), torch.Generator().manual_seed(0 if mask.policy is None else 1))
    factors = mask.render(sample, size).flatten(1)
    brightness = factors.mean(1, keepdim=True)
    corner, middle, last = factors[:, 0], factors[:, factors.shape[1] // 2], factors[:, -1]
    pattern = factors.std(1) / brightness[:, 0]
    values = [corner, middle, last, corner**2, last**3, corner * last, brightness[:, 0].log(), pattern]
    return torch.stack([*values, brightness[:, 0].log() ** 2, sample.applied.float()], 1).double()


@pytest.mark.parametrize(
    "settings", [{}, {"grid_size": (3, 4), "strength": 0.6}, {"pattern_std": None, "brightness_std": 0.0}], ids=str
)
def test_its_masks_are_those_of_a_frozen_static_policy(settings):
    """Ten moments of 20,000 draws each, within 4.5 standard errors of the difference."""
    count, shading = 20_000, RandomShading(**settings)
    shading.policy = None
    names = ("grid_size", "pattern_std", "brightness_std", "strength", "upsample")
    settings = {"policy": "static", **{name: getattr(shading, name) for name in names}}
    own = moments(shading, count)
    other = moments(PolicyNoiseMask(in_chans=1, **settings), count)
    error = ((own.var(0) + other.var(0)) / count).sqrt()
    assert ((own.mean(0) - other.mean(0)).abs() <= 4.5 * error + 1e-6).all()
    assert (error < 0.03).all()  # precise enough to tell
    # Neither is the distribution of a policy that has learned.
    learned = PolicyNoiseMask(in_chans=1, **settings)
    torch.nn.init.constant_(learned.policy.log_concentration, 1.0)
    third = moments(learned, count)
    error = ((own.var(0) + third.var(0)) / count).sqrt()
    assert ((own.mean(0) - third.mean(0)).abs() > 4.5 * error + 1e-6).any()


class Draws(TorchDispatchMode):
    """Counts operations that draw random numbers."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if torch.Tag.nondeterministic_seeded in function.tags:
            self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_a_batch_takes_one_draw():
    shading, images = RandomShading(p=0.5), torch.rand(8, 3, 32, 32)
    with Draws() as draws:
        shading(images)
    assert draws.names == ["uniform_"]
    with Draws() as draws:
        shading.eval()(images)
    assert draws.names == []


def test_p_is_the_share_of_masked_images_and_the_others_come_back_bit_for_bit():
    images = torch.rand(4000, 1, 8, 8)
    masked = RandomShading(p=0.3, mean=0.0, std=1.0)(images)
    untouched = (masked == images).flatten(1).all(1)
    assert untouched.float().mean() == pytest.approx(0.7, abs=4.5 * math.sqrt(0.21 / 4000))
    assert not (masked == images)[~untouched].flatten(1).all(1).any()
    assert torch.equal(RandomShading(p=0.0)(images), images)
    assert (RandomShading(p=1.0)(images) != images).flatten(1).any(1).all()


def test_evaluation_gives_the_very_same_object_back():
    shading, images = RandomShading(p=1.0).eval(), torch.rand(2, 3, 16, 16)
    assert shading(images) is images
    image, label = shading(images, 3)
    assert image is images
    assert label == 3
    sample = {"image": images, "label": 1}
    assert shading(sample) is sample


@pytest.mark.parametrize("shape", [(3, 24, 20), (1, 24, 20), (5, 3, 24, 20)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_single_images_and_batches_keep_shape_and_dtype(shape, dtype):
    images = torch.rand(shape).to(dtype)
    masked = RandomShading(p=1.0, mean=0.0, std=1.0)(images)
    assert (masked.shape, masked.dtype) == (images.shape, dtype)
    assert not torch.equal(masked, images)
    torch.manual_seed(1)
    half = RandomShading(p=1.0, mean=0.0, std=1.0)(images)
    torch.manual_seed(1)
    full = RandomShading(p=1.0, mean=0.0, std=1.0)(images.double())
    torch.testing.assert_close(half.double(), full, rtol=0, atol=8 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("shape", [(1, 8, 16, 12), (2, 1, 8, 16, 12)])
def test_volumes(shape):
    volumes = torch.rand(shape)
    shading = RandomShading(p=1.0, grid_size=(2, 3, 2))
    masked = shading(volumes)
    assert masked.shape == shape
    assert not torch.equal(masked, volumes)
    with pytest.raises(ValueError, match=r"images must have shape \(B, C, D, H, W\) or \(C, D, H, W\), got \(16, 12\)"):
        shading(torch.rand(16, 12))


def test_images_whose_black_is_zero_are_multiplied():
    images = torch.rand(4, 3, 20, 24) + 0.1
    shading = RandomShading(p=0.5, mean=0.0, std=1.0)
    sample = shading.sample(images, torch.Generator().manual_seed(1))
    assert torch.equal(shading(images, sample), images * shading.render(sample, (20, 24)))
    almost = RandomShading(p=0.5, mean=1e-6, std=1.0)
    torch.testing.assert_close(almost(images, sample), shading(images, sample))


def test_integers_are_refused():
    with pytest.raises(TypeError, match=r"floating point .*got dtype torch\.uint8"):
        RandomShading()(torch.zeros(3, 16, 16, dtype=torch.uint8))


# -- among torchvision's transforms ------------------------------------------------------------------------------------


def transforms():
    own = {"p": 1.0, "mean": 0.5, "std": 0.25}
    return [RandomShading(**own), PolicyNoiseMask(**own)]


@pytest.fixture(params=[0, 1], ids=["RandomShading", "PolicyNoiseMask"])
def compose(request):
    steps = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
    return v2.Compose([*steps, transforms()[request.param]]), v2.Compose(steps)


UNTOLD = torch.rand(3, 16, 16)
PICTURE = torch.arange(3 * 20 * 24, dtype=torch.uint8).view(3, 20, 24)


@pytest.mark.parametrize(
    "pack",
    [
        lambda image: (image, 7),
        lambda image: [image, {"label": 7}],
        lambda image: {"image": image, "label": 7, "name": "a"},
        lambda image: (image, {"boxes": tv_tensors.BoundingBoxes([[1, 2, 3, 4]], format="XYXY", canvas_size=(20, 24))}),
        lambda image: (tv_tensors.Mask(torch.zeros(1, 20, 24)), image),
    ],
    ids=["tuple", "list", "dict", "boxes", "mask first"],
)
def test_samples_of_a_data_set_keep_their_form_and_their_labels(compose, pack):
    whole, before = compose
    sample = pack(tv_tensors.Image(PICTURE))
    result, expected = whole(sample), before(sample)
    assert type(result) is type(expected)
    changed = 0
    for own, other in zip(*(torch.utils._pytree.tree_leaves(value) for value in (result, expected)), strict=True):
        assert type(own) is type(other)
        if isinstance(other, tv_tensors.Image):
            changed += 1
            assert own.shape == other.shape
            assert not torch.equal(own, other)
        elif isinstance(other, torch.Tensor):
            assert torch.equal(own, other)
        else:
            assert own == other
    assert changed == 1


def test_an_image_and_its_label_as_two_arguments(compose):
    image, label = compose[0](tv_tensors.Image(PICTURE), 7)
    assert isinstance(image, tv_tensors.Image)
    assert label == 7


def test_plain_tensors_follow_torchvisions_rule(compose):
    """The first floating-point tensor of three axes is the image."""
    shading = compose[0].transforms[-1]
    images, weights = torch.rand(2, 3, 16, 16), torch.rand(3, 16, 16)
    masked, label, kept = shading((images, torch.tensor(3), weights))
    assert not torch.equal(masked, images)
    assert label == 3
    assert torch.equal(kept, weights)
    with pytest.raises(TypeError, match=r"images must be floating-point tensors of three axes or more, got .*convert"):
        shading((torch.zeros(3, 16, 16, dtype=torch.uint8), 3))


@pytest.mark.parametrize("key", ["image", "Images", "img", "pixel_values", "x", "volume"])
def test_a_mapping_names_its_images_and_the_order_does_not_matter(compose, key):
    shading = compose[0].transforms[-1]
    image, label = torch.rand(3, 16, 16), torch.rand(3, 16, 16)
    for sample in ({"label": label, key: image}, {key: image, "label": label}, (image, {"label": label})):
        result = shading(sample)
        kept = result[1] if isinstance(result, tuple) else result
        masked = result[0] if isinstance(result, tuple) else result[key]
        assert torch.equal(kept["label"], label)
        assert not torch.equal(masked, image)
    several = shading({"img": image, "image": [image, image], "label": label})
    assert not any(torch.equal(one, image) for one in (several["img"], *several["image"]))


@pytest.mark.parametrize(
    ("sample", "words"),
    [
        ({"t1": UNTOLD, "t2": UNTOLD}, r"not clear from the keys \['t1', 't2'\]: name the key 'image'"),
        ({"label": UNTOLD, "id": 3}, r"not clear from the keys \['label'\]"),
        ((UNTOLD, {"image": UNTOLD}), r"not clear from the keys \['image'\]"),
        ([UNTOLD, UNTOLD], "a list of 2 tensors may hold images only, or an image and its target"),
    ],
    ids=["modalities", "a label", "two places", "a list"],
)
def test_what_may_be_no_image_is_refused_by_name(compose, sample, words):
    with pytest.raises(TypeError, match=words):
        compose[0].transforms[-1](sample)


class Pictures(Dataset):
    def __init__(self):
        self.transform = RandomShading(p=1.0, mean=0.0, std=1.0)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.transform(torch.full((1, 16, 16), 0.5), index)


def test_workers_draw_masks_of_their_own():
    images, labels = (torch.cat(parts) for parts in zip(*DataLoader(Pictures(), 4, num_workers=2), strict=True))
    assert labels.tolist() == list(range(8))
    assert len(images.flatten(1).unique(dim=0)) == 8


def test_deviations_are_drawn_uniformly_from_their_ranges_for_each_image():
    shading = RandomShading(p=1.0, pattern_std=(0.05, 0.2), brightness_std=(0.0, 0.4), upsample="linear", grid_size=3)
    sample = shading.sample(torch.rand(4000, 1, 12, 12))
    for drawn, low, high in ((sample.pattern_std, 0.05, 0.2), (sample.brightness_std, 0.0, 0.4)):
        assert low <= drawn.min() < drawn.max() <= high
        assert drawn.mean() == pytest.approx((low + high) / 2, abs=4.5 * (high - low) / math.sqrt(12 * 4000))
    assert torch.corrcoef(torch.stack([sample.pattern_std, sample.brightness_std]))[0, 1].abs() < 0.08
    factors = shading.render(sample, (12, 12))
    brightness = factors.mean((1, 2, 3), keepdim=True)
    found = (factors / brightness).std((1, 2, 3), correction=0)
    assert ((found - sample.pattern_std).abs() < 1e-4).float().mean() > 0.9


def test_a_range_of_one_value_is_that_value_and_ranges_leave_the_other_draws_alone():
    images = torch.rand(6, 3, 24, 24)
    settings = [{"pattern_std": 0.1, "brightness_std": 0.2}, {"pattern_std": (0.1, 0.1), "brightness_std": (0.2, 0.2)}]
    fixed, ranged = (RandomShading(p=0.5, mean=0.0, std=1.0, **values) for values in settings)
    samples = [fixed.sample(images, torch.Generator().manual_seed(1)), ranged.sample(images[:1])]
    ranged_sample = dataclasses.replace(samples[1], action=samples[0].action, applied=samples[0].applied)
    ranged_sample = dataclasses.replace(
        ranged_sample, pattern_std=torch.full((6,), 0.1), brightness_std=torch.full((6,), 0.2)
    )
    torch.testing.assert_close(ranged(images, ranged_sample), fixed(images, samples[0]))


def test_channels_can_have_masks_of_their_own():
    shading, images = RandomShading(p=1.0, per_channel=True, mean=0.0, std=1.0), torch.rand(3, 4, 16, 16)
    sample = shading.sample(images)
    assert sample.action.shape == (3, 4, 3, 3)
    factors = shading.render(sample, (16, 16))
    assert factors.shape == images.shape
    torch.testing.assert_close(shading(images, sample), images * factors)
    assert RandomShading(p=1.0, per_channel=True, grid_size=(2, 2, 2))(torch.rand(2, 8, 8, 8)).shape == (2, 8, 8, 8)


@pytest.mark.parametrize(
    "settings", [{"mean": (0.4, 0.5, 0.6), "std": 0.25}, {"mean": 0.5, "std": 0.5, "white": 0.7}], ids=str
)
def test_clipping_at_white_follows_the_normalization_or_what_was_said(settings):
    images = torch.rand(4, 3, 16, 16)
    normalized = (images - torch.tensor(settings["mean"]).view(-1, 1, 1)) / settings["std"]
    shading = RandomShading(p=1.0, pattern_std=0.3, brightness_std=0.3, clip=True, **settings)
    masked = shading(normalized, shading.sample(normalized))
    white = (1 - torch.tensor(settings["mean"]).view(-1, 1, 1)) / settings["std"]
    white = white.new_full((1,), settings["white"]) if "white" in settings else white
    assert (masked <= torch.maximum(normalized, white.expand_as(normalized)) + 1e-5).all()
    assert (masked >= white - 1e-6).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": True}, "clip=True needs to know white"),
        ({"white": 0.0, "mean": 0.0, "std": 1.0}, "white must be brighter than black"),
        ({"white": "bright"}, "white must be one finite number .*'bright'"),
        ({"pattern_std": "big"}, r"pattern_std must be a number in \[0, 1\] or a range \(low, high\) .*'big'"),
        ({"pattern_std": (0.3, 0.1)}, r"pattern_std must be .*\(0.3, 0.1\)"),
        ({"pattern_std": 0.0}, "pattern_std must be larger than 0"),
        ({"brightness_std": (0.1, 0.2, 0.3)}, "brightness_std must be"),
        ({"brightness_std": None}, "brightness_std must be .*None"),
        ({"p": "often"}, "p must be a number .*'often'"),
        ({"upsample": "bicubic"}, "upsample must be one of .*'bicubic'"),
    ],
    ids=str,
)
def test_what_it_refuses_names_what_to_write(settings, message):
    with pytest.raises(ValueError, match=message):
        RandomShading(**settings)


@pytest.mark.parametrize("as_arguments", [False, True])
def test_a_sample_repeats_its_masks_also_beside_labels(as_arguments):
    shade = RandomShading(p=1.0).eval()
    images, label = torch.rand(2, 3, 16, 16), torch.tensor([0, 1])
    sample = shade.sample(images)
    pair = (images, label)
    masked, kept = shade(*pair, sample=sample) if as_arguments else shade(pair, sample=sample)
    assert kept is label
    assert torch.equal(masked, shade(images, sample))
