"""The images that a mask accepts: range, padding, number and dtype."""

import dataclasses
import math
import warnings

import pytest
import torch
from torch import nn

from policy_noise import PolicyNoiseMask, RandomShading, attach
from policy_noise.masks._base import low_percentile, smallest

HALF = ([0.5] * 3, [0.5] * 3)
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
UNIT = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def normalised(images, statistics):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in statistics)
    return (images - mean) / std


def loop(model, **settings):
    criterion, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1)
    hook = attach(model, optimizer, criterion, **settings)

    def step(images, targets):
        loss = criterion(model(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step, hook


# -- the range ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "statistics"),
    [
        (UNIT, HALF),
        (UNIT * 255, HALF),
        (UNIT, IMAGENET),
        (UNIT * 255, IMAGENET),
        (UNIT * 2 - 1, IMAGENET),
        (UNIT * 255 - 128, IMAGENET),
        (normalised(UNIT, IMAGENET), HALF),
    ],
    ids=["unit-half", "bytes-half", "unit-imagenet", "bytes-imagenet", "signed-imagenet", "caffe", "imagenet-half"],
)
def test_images_that_contradict_the_statistics_are_told_of(make_model, images, statistics):
    step, _ = loop(make_model(), mean=statistics[0], std=statistics[1])
    words = r"smallest values .* largest .* don't fit the black level .* and white"
    with pytest.warns(UserWarning, match=words):
        step(images, torch.arange(8) % 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(images, torch.arange(8) % 5)


def erased(images):
    """Random erasing after the normalisation, as timm's loader does it: normal noise in a part of some images."""
    images = images.clone()
    images[:4, :, 4:22, 4:22] = torch.randn(4, 3, 18, 18)
    return images


def jittered(images):
    """Brightness and contrast of torchvision's ColorJitter, which clamps to [0, 1]."""
    factor = torch.linspace(0.2, 1.8, 8).view(-1, 1, 1, 1)
    images = (images * factor).clamp(0, 1)
    return (images.mean() + factor.flip(0) * (images - images.mean())).clamp(0, 1)


PICTURES = {
    "plain": UNIT,
    "dark": UNIT * 0.05,
    "bright": UNIT.sqrt().sqrt(),
    "black": UNIT * 0,
    "jittered": jittered(UNIT),
    "padded": UNIT * (UNIT > 0.4),
}


@pytest.mark.parametrize("statistics", [HALF, IMAGENET], ids=["half", "imagenet"])
@pytest.mark.parametrize("after", [lambda images: images, erased], ids=["plain", "erased"])
@pytest.mark.parametrize("name", PICTURES)
def test_normalised_images_hear_nothing(make_model, recwarn, name, statistics, after):
    step, _ = loop(make_model(), mean=statistics[0], std=statistics[1])
    step(after(normalised(PICTURES[name], statistics)), torch.arange(8) % 5)
    assert not [str(w.message) for w in recwarn if "don't fit" in str(w.message)]


@pytest.mark.filterwarnings("ignore:.*non-finite loss")
@pytest.mark.parametrize("bad", [1, 8], ids=["one image", "all images"])
def test_values_that_are_not_finite_are_no_range(make_model, bad):
    """The range is looked at where there is one: in the first batch, or in a later one."""
    fitting = normalised(UNIT, IMAGENET)
    for images, warns in ((fitting, False), (UNIT, True)):
        step, _ = loop(make_model(), mean=IMAGENET[0], std=IMAGENET[1])
        broken = images.clone()
        broken[:bad] = math.nan
        with warnings.catch_warnings(record=True) as record:
            warnings.simplefilter("always")
            for batch in (broken, images):
                step(batch, torch.arange(8) % 5)
        assert sum("don't fit" in str(warning.message) for warning in record) == warns


def test_three_grey_images_without_a_channel_axis_are_refused_in_a_loop(make_model):
    step, hook = loop(make_model())
    with pytest.raises(TypeError, match="no floating-point tensor of 4 axes"):
        step(torch.randn(3, 32, 32), torch.arange(3))
    with pytest.raises(ValueError, match="4 axes"):
        hook.apply(torch.randn(3, 32, 32))
    assert PolicyNoiseMask(in_chans=3)(torch.rand(3, 32, 32)).shape == (3, 32, 32)


# -- outside the field of view -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PolicyNoiseMask, RandomShading])
@pytest.mark.parametrize("padding", [-math.inf, math.nan])
@pytest.mark.parametrize("statistics", [None, HALF], ids=["own", "half"])
def test_padding_outside_the_field_of_view_stays_there(kind, padding, statistics):
    images = UNIT.clone()
    images[:, :, :, :4] = padding
    settings = {} if statistics is None else {"mean": statistics[0], "std": statistics[1]}
    mask = kind(p=0.5, **settings)
    sample = mask.sample(images)
    assert 0 < sample.applied.sum() < 8
    masked = mask(images, sample)
    kept = ~sample.applied
    assert torch.equal(masked[kept].view(torch.int32), images[kept].view(torch.int32))
    assert masked[:, :, :, 4:].isfinite().all()
    assert not masked[:, :, :, :4].isfinite().any()
    clean = mask(UNIT.clone(), sample)
    if statistics is not None:
        assert torch.equal(masked[:, :, :, 4:], clean[:, :, :, 4:])


def test_black_is_the_darkest_finite_pixel():
    images = 0.5 + 0.5 * UNIT
    images[:, :, 0, 0] = -math.inf
    images[:, :, 0, 1] = math.nan
    images[:, :, 5, 5] = 0.25
    mask = PolicyNoiseMask(in_chans=3, p=1.0)
    masked = mask(images, mask.sample(images))
    assert torch.equal(masked[:, :, 5, 5], torch.full((8, 3), 0.25))


# -- how many ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["learned", "random", "paper"])
@pytest.mark.parametrize("first", [True, False])
def test_a_loop_outlives_empty_batches(make_model, batch, recwarn, preset, first):
    """The mean of no losses is NaN, in a plain loop too."""
    step, hook = loop(make_model(), preset=preset, grid_size=4, kernel_size=3)
    keys = hook.metrics.keys()
    if not first:
        step(*batch)
    seen = hook.metrics["samples_seen"]
    before = [parameter.clone() for parameter in hook.augmentation.parameters()]
    loss = step(batch[0][:0], batch[1][:0])
    assert loss.isnan()
    assert hook.metrics.keys() == keys
    assert hook.metrics["samples_seen"] == seen
    assert all(torch.equal(a, b) for a, b in zip(before, hook.augmentation.parameters(), strict=True))
    if preset != "random":  # its masks are not learned, so there is nothing to observe
        assert hook.observe(torch.zeros(0)).shape == (0,)
    assert not [str(w.message) for w in recwarn if issubclass(w.category, UserWarning)]


@pytest.mark.parametrize("kind", [PolicyNoiseMask, RandomShading])
def test_an_empty_batch_comes_back(kind):
    for settings in ({}, {"mean": 0.5, "std": 0.5}):
        mask = kind(**settings)
        assert mask(torch.rand(0, 3, 32, 32)).shape == (0, 3, 32, 32)


def test_the_papers_policy_takes_a_batch_of_one(make_model, batch):
    step, hook = loop(make_model(), preset="paper", grid_size=4, kernel_size=3)
    step(*batch)
    policy = hook.augmentation.policy
    norms = {name: value.clone() for name, value in policy.state_dict().items() if "running" in name}
    step(batch[0][:1], batch[1][:1])
    assert all(math.isfinite(value) for value in hook.metrics.values())
    assert all(torch.equal(value, policy.state_dict()[name]) for name, value in norms.items())
    assert all(module.training for module in policy.modules())
    step(*batch)
    assert not all(torch.equal(value, policy.state_dict()[name]) for name, value in norms.items())


# -- the dtype ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["spatial", "static", "test_resnet"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_mask_inside_a_model_of_another_dtype_keeps_its_policy_in_fp32(policy, dtype):
    mask = PolicyNoiseMask(in_chans=3, grid_size=4, policy=policy, p=1.0, mean=0.5, std=0.5)
    model = nn.Sequential(mask, nn.Flatten()).to(dtype)
    images = normalised(UNIT, HALF).to(dtype)
    assert model(images).dtype == dtype
    sample = mask.sample(images)
    assert sample.log_prob.dtype == torch.float32
    sample.log_prob.sum().backward()
    assert {p.dtype for p in mask.parameters()} == {torch.float32}
    assert {p.grad.dtype for p in mask.parameters() if p.grad is not None} == {torch.float32}


def test_a_mask_made_under_another_default_dtype_has_its_policy_in_fp32(make_model, batch):
    torch.set_default_dtype(torch.float64)
    try:
        step, hook = loop(make_model(), p=1.0, mean=0.5, std=0.5)
        step(batch[0].double(), batch[1])
        assert {p.dtype for p in hook.augmentation.parameters()} == {torch.float32}
        assert all(math.isfinite(value) for value in hook.metrics.values())
    finally:
        torch.set_default_dtype(torch.float32)


# -- black -------------------------------------------------------------------------------------------------------------


def change(shade, images, where):
    """Largest change of the pixels somewhere, over masks that only brighten or darken: the factor is known."""
    action = torch.full((len(images), 1, 1, 1), 0.75)
    sample = dataclasses.replace(shade.sample(images), action=action, applied=torch.ones(len(images), dtype=torch.bool))
    return (shade(images, sample) - images)[(..., *where)].abs().max()


def brightening(**settings):
    return RandomShading(grid_size=1, pattern_std=None, brightness_std=0.2, **settings)


def test_a_padded_corner_does_not_move_a_black_that_is_named_or_a_percentile():
    """Tissue of 40 HU at -1000 for air, and the same slice with a corner of -3024."""
    slices = torch.full((2, 1, 40, 40), -1000.0)
    slices[..., 10:30, 10:30] = torch.linspace(0, 80, 20)
    slices[1, 0, :8, :8] = -3024.0
    tissue = (slice(10, 30), slice(10, 30))
    factor = math.exp(0.2 * math.sqrt(12) * 0.25)
    expected = (factor - 1) * 1080
    for settings in ({"black": -1000}, {"black": "percentile"}):
        shade = brightening(**settings)
        for which in (slice(0, 1), slice(1, 2)):
            found = change(shade, slices[which], tissue)
            assert found == pytest.approx(expected, rel=1e-3)
    assert change(brightening(), slices[1:], tissue) == pytest.approx((factor - 1) * 3104, rel=1e-3)


@pytest.mark.parametrize("shape", [(2, 3, 50, 70), (2, 2, 20, 24, 30), (1, 1, 300, 200)])
def test_the_percentile_does_not_count_padding(shape):
    images = torch.randn(shape)
    images.flatten(2)[..., ::7] = -9.0
    images.flatten(2)[..., 3::11] = torch.nan
    images.flatten(2)[..., 5::13] = -torch.inf
    found = low_percentile(images)
    assert found.shape == (*shape[:2], *[1] * (len(shape) - 2))
    for value, channel in zip(found.flatten(), images.flatten(2).flatten(0, 1), strict=True):
        kept = channel[channel.isfinite() & (channel > -9)]
        assert (kept < value).float().mean() == pytest.approx(0.01, abs=0.006)
    background = torch.rand(2, 1, 40, 40)
    background[..., :10, :] = 0.0  # no gap to the other values
    assert low_percentile(background).flatten().tolist() == [0.0, 0.0]
    background = torch.rand(2, 1, 40, 40) + 1.0
    background[..., :30, :] = 0.0  # most of the image
    assert low_percentile(background).flatten().tolist() == [0.0, 0.0]
    constant = torch.full((1, 1, 8, 8), 0.3)
    assert low_percentile(constant).item() == smallest(constant).item() == pytest.approx(0.3)
    assert low_percentile(torch.full((1, 1, 8, 8), torch.nan)).item() == 0


def test_black_has_a_number_for_each_channel():
    black = torch.tensor([-1.0, 0.0, 2.0])
    shade = RandomShading(p=1.0, black=black.tolist(), grid_size=3, upsample="cubic")
    images = black.view(1, 3, 1, 1).expand(2, 3, 16, 16)
    assert torch.equal(shade(images), images)
    other = images + 1
    assert not torch.equal(shade(other), other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("infinite", [False, True])
def test_black_and_infinite_padding_stay_exactly(dtype, infinite):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    black = (-torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1)
    images = (torch.rand(6, 3, 20, 20) / 0.25 + black).to(dtype)
    images[:, :, :4] = black.to(dtype)
    if infinite:
        images[:, :, -2:, :3], images[:, :, -2:, 3:6], images[:, :, -2:, 6:8] = torch.inf, -torch.inf, torch.nan
    shade = RandomShading(p=0.5, mean=mean, std=std, grid_size=3, upsample="linear", pattern_std=0.3)
    sample = shade.sample(images, torch.Generator().manual_seed(4))
    assert 0 < sample.applied.sum() < 6
    masked = shade(images, sample)
    assert torch.equal(masked[:, :, :4], images[:, :, :4])
    assert torch.equal(torch.nan_to_num(masked[~sample.applied]), torch.nan_to_num(images[~sample.applied]))
    if infinite:
        assert torch.equal(masked[:, :, -2:, :8].isnan(), images[:, :, -2:, :8].isnan())
        assert torch.equal(masked[:, :, -2:, :6], images[:, :, -2:, :6])
    expected = black + shade.render(sample, (20, 20)) * (images.float() - black)
    rows = slice(4, 18)
    eps = float(torch.finfo(dtype).eps) if dtype in (torch.float16, torch.bfloat16) else 1e-6
    torch.testing.assert_close(masked[:, :, rows].float(), expected[:, :, rows], rtol=0, atol=24 * eps)


@pytest.mark.parametrize(
    ("images", "settings", "told"),
    [
        (normalised(UNIT, IMAGENET), {"mean": (123.7, 116.3, 103.5), "std": IMAGENET[1]}, "don't fit the black level"),
        (normalised(UNIT, IMAGENET), {"mean": 0.5, "std": 0.5}, "don't fit the black level"),
        (normalised(UNIT, IMAGENET), {"mean": IMAGENET[0], "std": IMAGENET[1]}, None),
        (UNIT, {"black": -1000.0}, "lie far from black"),
        (UNIT * 80, {"black": -1000.0}, None),
        (UNIT, {"black": 2.0}, "lie far from black"),
        (UNIT, {"black": 0.0}, None),
        (UNIT, {}, None),
    ],
    ids=str,
)
def test_a_transform_says_once_that_its_images_do_not_fit(images, settings, told):
    for batches in ([*images, *images, *images], [torch.cat([images] * 3)] * 2):
        shade = RandomShading(**settings)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for batch in batches:
                shade(batch)
        messages = [str(warning.message) for warning in caught]
        assert len(messages) == (told is not None)
        assert all(told in message for message in messages)


def test_images_with_another_number_of_channels_than_the_constants_are_refused():
    shade = RandomShading(mean=IMAGENET[0], std=IMAGENET[1])
    with pytest.raises(ValueError, match="images have 1 channels, but mean, std, black or white 3: pass one number"):
        shade(torch.rand(2, 1, 16, 16))


def test_a_target_that_is_the_image_itself_is_left_alone():
    image = torch.rand(1, 8, 8)
    shade = RandomShading(p=1.0, mean=0.0, std=1.0)
    for sample in ((image, image), {"image": image, "target": image}):
        shaded, target = shade(sample).values() if isinstance(sample, dict) else shade(sample)
        assert not torch.equal(shaded, image)
        assert target is image
