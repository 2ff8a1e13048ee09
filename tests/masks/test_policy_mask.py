"""The mask module."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from policies import moved
from torch import nn
from torchvision.transforms import v2

from policy_noise import MaskSample, PolicyNoiseMask
from policy_noise import functional as PF

NORMALIZATIONS = [
    {"black": 0.0},
    {"black": "percentile"},
    {"mean": 0.4, "std": 0.3},
]


# -- modes -------------------------------------------------------------------------------------------------------------


def test_eval_mode_is_the_identity(batch):
    images, _ = batch
    mask = PolicyNoiseMask().eval()
    before = torch.get_rng_state()
    assert mask(images) is images
    assert torch.equal(torch.get_rng_state(), before)


def test_training_mode_masks(batch):
    images, _ = batch
    mask = PolicyNoiseMask(p=1.0)
    assert (mask(images) != images).flatten(1).any(1).all()


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_replay_is_exact_in_either_mode_and_under_autocast(batch, normalization):
    images, _ = batch
    mask = moved(PolicyNoiseMask(**normalization))
    torch.manual_seed(5)
    drawn = mask(images)
    torch.manual_seed(5)
    sample = mask.sample(images)
    assert torch.equal(mask(images, sample), drawn)
    assert torch.equal(mask(images, sample.detach()), drawn)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mask(images, sample), drawn)
    moved(mask)
    assert torch.equal(mask.eval()(images, sample), drawn)


# -- the sample --------------------------------------------------------------------------------------------------------


def test_sample_holds_what_its_distribution_says(batch):
    images, _ = batch
    sample = moved(PolicyNoiseMask(grid_size=(4, 6))).sample(images)
    for value in (sample.action, sample.concentration1, sample.concentration0):
        assert value.shape == (8, 1, 4, 6)
        assert value.dtype == torch.float32
    for value in (sample.log_prob, sample.entropy, sample.applied):
        assert value.shape == (8,)
    assert not sample.action.requires_grad
    assert sample.applied.dtype == torch.bool
    reference = torch.distributions.Beta(sample.concentration1, sample.concentration0)
    torch.testing.assert_close(sample.log_prob, reference.log_prob(sample.action).flatten(1).sum(1))
    torch.testing.assert_close(sample.entropy, reference.entropy().flatten(1).sum(1))
    torch.testing.assert_close(sample.cell_log_prob(), reference.log_prob(sample.action).flatten(1))
    assert sample.log_prob.requires_grad
    assert sample.entropy.requires_grad
    detached = sample.detach()
    assert not any(value.requires_grad for value in vars(detached).values() if value is not None)


def test_sample_is_the_same_under_autocast(batch):
    images, _ = batch
    mask = moved(PolicyNoiseMask())
    samples = []
    for enabled in (False, True):
        torch.manual_seed(5)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            samples.append(mask.sample(images))
    for name in ("log_prob", "entropy", "applied", "action", "concentration1", "concentration0"):
        assert torch.equal(*(getattr(sample, name) for sample in samples)), name


def test_generator_decides_alone(batch):
    images, _ = batch
    mask = PolicyNoiseMask()
    before = torch.get_rng_state()
    first, second, other = (mask.sample(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.action, second.action)
    assert torch.equal(first.applied, second.applied)
    assert not torch.equal(first.action, other.action)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("value", "bound"), [(-1e9, 0.05), (1e9, 100.0), (-math.inf, 0.05), (math.inf, 100.0)])
def test_concentrations_are_floored_and_capped(batch, value, bound):
    class Extreme(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.tensor(value))

        def forward(self, images):
            return (self.bias.expand(len(images), 1, 4, 4),) * 2

    sample = PolicyNoiseMask(grid_size=4, policy=Extreme()).sample(batch[0])
    torch.testing.assert_close(sample.concentration1, torch.full((8, 1, 4, 4), bound))
    assert torch.isfinite(sample.log_prob).all()


def test_p_is_the_share_of_masked_images():
    mask = PolicyNoiseMask(in_chans=1, policy="static", p=0.3)
    images = torch.randn(4000, 1, 8, 8)
    sample = mask.sample(images)
    assert abs(sample.applied.float().mean().item() - 0.3) < 4 * math.sqrt(0.21 / 4000)
    masked = mask(images, sample)
    assert torch.equal(masked[~sample.applied], images[~sample.applied])
    assert (masked[sample.applied] != images[sample.applied]).flatten(1).any(1).all()


@pytest.mark.parametrize("arguments", [{"p": 0.0}, {"p": 1.0, "strength": 0.0}])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_switched_off_is_exact(batch, arguments, normalization):
    images, _ = batch
    assert torch.equal(PolicyNoiseMask(**arguments, **normalization)(images), images)


# -- rendering ---------------------------------------------------------------------------------------------------------


def test_masks_preserve_the_mean(batch):
    images, _ = batch
    mask = PolicyNoiseMask(p=1.0, brightness_std=0.0)
    rendered = mask.render(mask.sample(images), (48, 40))
    assert rendered.shape == (8, 1, 48, 40)
    torch.testing.assert_close(rendered.flatten(1).mean(1), torch.ones(8))


def test_a_fixed_dose_is_that_of_every_masked_image(batch):
    images, _ = batch
    mask = moved(PolicyNoiseMask(strength=0.5, pattern_std=0.3, brightness_std=0.0))
    sample = mask.sample(images)
    rendered = mask.render(sample, images.shape[2:]).flatten(1)
    torch.testing.assert_close(rendered.std(1, correction=0), 0.15 * sample.applied)


def test_without_a_fixed_dose_the_policy_decides(batch):
    images, _ = batch
    mask = moved(PolicyNoiseMask(pattern_std=None, brightness_std=0.0, p=1.0))
    rendered = mask.render(mask.sample(images), images.shape[2:]).flatten(1)
    torch.testing.assert_close(rendered.mean(1), torch.ones(8))
    assert rendered.std(1).std() > 0.01


def test_without_mean_preserving_masks_start_at_half_the_light():
    mask = PolicyNoiseMask(p=1.0, mean_preserving=False, pattern_std=None, brightness_std=0.0, grid_size=16)
    rendered = mask.render(mask.sample(torch.randn(64, 3, 32, 32)), (32, 32))
    assert rendered.mean().item() == pytest.approx(0.5, abs=0.01)
    assert rendered.min() > 0
    assert rendered.max() < 1


def test_render_is_what_forward_multiplies_by(batch):
    images, _ = batch
    mask = PolicyNoiseMask(black=0.0, strength=0.7)
    sample = mask.sample(images)
    assert not sample.applied.all()
    torch.testing.assert_close(mask(images, sample), images * mask.render(sample, (32, 32)))
    assert (mask.render(sample, (32, 32))[~sample.applied] == 1).all()


def test_black_stays_black_and_grey_stays_grey(batch):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    shape = (1, 3, 1, 1)
    black = -torch.tensor(mean).view(shape) / torch.tensor(std).view(shape)
    intensity = PolicyNoiseMask(p=1.0, mean=mean, std=std)
    torch.testing.assert_close(intensity(black.expand(8, 3, 32, 32)), black.expand(8, 3, 32, 32), rtol=0, atol=1e-6)
    grey = torch.zeros(8, 3, 32, 32)
    assert torch.equal(PolicyNoiseMask(p=1.0, black=0.0)(grey), grey)
    assert (intensity(grey) != grey).any()


def test_intensities_are_multiplied():
    """Normalise(mask * intensity) and mask(normalise(intensity)) are the same."""
    mean, std = torch.tensor([0.5, 0.3]).view(1, 2, 1, 1), torch.tensor([0.2, 0.4]).view(1, 2, 1, 1)
    intensity = torch.rand(4, 2, 32, 32)
    mask = PolicyNoiseMask(2, p=1.0, mean=mean.flatten().tolist(), std=std.flatten().tolist())
    sample = mask.sample(intensity)
    expected = (mask.render(sample, (32, 32)) * intensity - mean) / std
    torch.testing.assert_close(mask((intensity - mean) / std, sample), expected, rtol=1e-4, atol=1e-5)


def test_without_mean_and_std_the_darkest_value_is_black(batch):
    images, _ = batch
    mask = PolicyNoiseMask(p=1.0)
    sample = mask.sample(images)
    black = images.amin(dim=(2, 3), keepdim=True)
    expected = black + mask.render(sample, (32, 32)) * (images - black)
    torch.testing.assert_close(mask(images, sample), expected, rtol=1e-4, atol=1e-5)


# -- formats -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_dtype_device_and_memory_format_are_kept(in_chans, dtype, memory_format, normalization):
    mask = PolicyNoiseMask(in_chans, p=1.0, **normalization)
    for count in (1, 4):
        images = torch.randn(count, in_chans, 32, 24).to(dtype).to(memory_format=memory_format)
        masked = mask(images)
        assert (masked.dtype, masked.device, masked.shape) == (images.dtype, images.device, images.shape)
        assert masked.is_contiguous(memory_format=memory_format)
        assert torch.isfinite(masked).all()


def test_channels_last_changes_no_value(batch):
    images, _ = batch
    mask = PolicyNoiseMask()
    sample = mask.sample(images)
    assert torch.equal(mask(images.to(memory_format=torch.channels_last), sample), mask(images, sample))


@pytest.mark.parametrize("size", [(28, 28), (33, 57), (224, 224), (8, 8), (9, 200)])
@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_odd_sizes_and_channels(in_chans, size):
    images = torch.randn(2, in_chans, *size)
    assert PolicyNoiseMask(in_chans, p=1.0)(images).shape == images.shape


def test_volumes():
    mask = PolicyNoiseMask(2, grid_size=(2, 3, 4), p=1.0, brightness_std=0.0, mean=[0.1, 0.2], std=[1.0, 2.0])
    images = torch.randn(2, 2, 9, 11, 13)
    sample = mask.sample(images)
    assert mask(images, sample).shape == images.shape
    torch.testing.assert_close(mask.render(sample, (9, 11, 13)).flatten(1).mean(1), torch.ones(2))


@pytest.mark.parametrize("shape", [(3, 32, 48), (3, 8, 32, 48)])
@pytest.mark.parametrize("arguments", [{}, {"policy": "static", "p": 1.0}, {"mean": 0.4, "std": 0.3, "p": 1.0}])
def test_one_image_is_a_batch_of_one(shape, arguments):
    mask = PolicyNoiseMask(**arguments, grid_size=(2,) * (len(shape) - 1))
    images = torch.randn(shape)
    torch.manual_seed(3)
    batch = mask(images[None])
    torch.manual_seed(3)
    assert torch.equal(mask(images), batch[0])
    sample = mask.sample(images)
    assert len(sample.action) == 1
    assert mask.eval()(images) is images
    assert torch.equal(mask(images, sample), mask(images[None], sample)[0])


class Photos(torch.utils.data.Dataset):
    """One photograph, eight times, through transforms that end with a mask."""

    def __init__(self):
        mask = PolicyNoiseMask(policy="static", p=1.0, mean=0.5, std=0.25)
        self.transform = v2.Compose(
            [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3), mask]
        )
        self.photo = np.random.default_rng(0).integers(256, size=(32, 40, 3), dtype=np.uint8)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.transform(self.photo)


@pytest.mark.parametrize("workers", [0, 2])
def test_among_a_data_sets_transforms(workers):
    def load():
        torch.manual_seed(0)
        return torch.cat(list(torch.utils.data.DataLoader(Photos(), batch_size=2, num_workers=workers)))

    images = load()
    assert images.shape == (8, 3, 32, 40)
    assert len({image.sum().item() for image in images}) == 8  # also from worker to worker
    assert torch.equal(load(), images)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    batch_size=st.integers(0, 5),
    in_chans=st.integers(1, 5),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    extra=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    p=st.floats(0, 1),
    strength=st.floats(0, 1),
    scaling=st.sampled_from([(False, None, 0.0), (True, None, 0.3), (True, 0.2, 0.0), (True, 1.0, 1.0)]),
    black=st.sampled_from([None, 0.0, -0.7, "minimum", "percentile"]),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_any_settings_give_finite_images_of_the_same_shape(
    batch_size, in_chans, grid, extra, p, strength, scaling, black, scale
):
    size = tuple(cells + more for cells, more in zip(grid, extra, strict=True))
    settings = {"p": p, "strength": strength, "black": black}
    settings |= dict(zip(("mean_preserving", "pattern_std", "brightness_std"), scaling, strict=True))
    if grid == (1, 1):  # one cell has no pattern
        settings |= {"pattern_std": None, "brightness_std": 0.3 if settings["mean_preserving"] else 0.0}
    mask = PolicyNoiseMask(in_chans, grid, **settings)
    images = scale * torch.randn(batch_size, in_chans, *size)
    sample = mask.sample(images)
    masked = mask(images, sample)
    assert masked.shape == images.shape
    assert torch.isfinite(masked).all()
    assert torch.isfinite(sample.log_prob).all()
    assert ((sample.action > 0) & (sample.action < 1)).all()
    assert torch.equal(masked[~sample.applied], images[~sample.applied])
    assert mask.render(sample, size).min() >= 0 if batch_size else True


# -- state -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda mask: pickle.loads(pickle.dumps(mask))])
def test_copies_draw_the_same(batch, copy_of):
    images, _ = batch
    mask = moved(PolicyNoiseMask(mean=0.0, std=1.0))
    torch.manual_seed(5)
    expected = mask(images)
    torch.manual_seed(5)
    assert torch.equal(copy_of(mask)(images), expected)


@pytest.mark.parametrize("policy", ["spatial", "static", "test_resnet"])
def test_state_dict_round_trip_through_a_file(batch, policy):
    images, _ = batch
    mask = moved(PolicyNoiseMask(policy=policy, mean=0.0, std=1.0))
    file = io.BytesIO()
    torch.save(mask.state_dict(), file)
    file.seek(0)
    other = PolicyNoiseMask(policy=policy, mean=0.0, std=1.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    torch.manual_seed(5)
    expected = mask(images)
    torch.manual_seed(5)
    assert torch.equal(other(images), expected)


def test_the_normalisation_is_not_in_the_state_dict():
    assert PolicyNoiseMask(mean=0.5, std=0.5).state_dict().keys() == PolicyNoiseMask().state_dict().keys()


def test_a_sample_can_be_kept_in_a_file(batch):
    images, _ = batch
    mask = PolicyNoiseMask()
    sample = mask.sample(images).detach()
    file = io.BytesIO()
    torch.save(vars(sample), file)
    file.seek(0)
    again = MaskSample(**torch.load(file, weights_only=True))
    assert torch.equal(mask(images, again), mask(images, sample))


def test_repr_names_the_settings():
    text = repr(PolicyNoiseMask(in_chans=1, grid_size=(4, 6), p=0.25))
    assert all(part in text for part in ("in_chans=1", "grid_size=(4, 6)", "p=0.25", "black='minimum'"))


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid_size": 0}, "grid_size .*got 0"),
        ({"grid_size": -3}, "grid_size .*got -3"),
        ({"grid_size": 8.0}, r"grid_size .*got 8\.0"),
        ({"grid_size": None}, "grid_size .*got None"),
        ({"grid_size": "88"}, "grid_size .*got '88'"),
        ({"grid_size": (8,)}, r"grid_size .*got \(8,\)"),
        ({"grid_size": (8, 8, 8, 8)}, r"grid_size .*got \(8, 8, 8, 8\)"),
        ({"grid_size": (8, 0)}, r"grid_size .*got \(8, 0\)"),
        ({"grid_size": (8, 2.5)}, r"grid_size .*got \(8, 2\.5\)"),
        ({"kernel_size": 4}, "kernel_size must be an odd positive integer in pixels, got 4"),
        ({"kernel_size": 0}, "kernel_size must be an odd positive integer in pixels, got 0"),
        ({"sigma": 0.0}, r"sigma must be a positive number of pixels, got 0\.0"),
        ({"sigma": -2}, "sigma must be a positive number of pixels, got -2"),
        ({"in_chans": 0}, "in_chans must be a positive integer, got 0"),
        ({"in_chans": 1.5}, r"in_chans must be a positive integer, got 1\.5"),
        ({"p": 1.5}, r"p must be a number in \[0, 1\].*got 1\.5"),
        ({"p": math.nan}, r"p must be a number in \[0, 1\].*got nan"),
        ({"strength": -0.1}, r"strength must be a number in \[0, 1\].*got -0\.1"),
        ({"pattern_std": 0.0}, r"pattern_std must be larger than 0.*got 0\.0"),
        (
            {"mean_preserving": False},
            r"brightness_std=0, got pattern_std=0\.1 and brightness_std=0\.2",
        ),
        (
            {"mean_preserving": False, "pattern_std": None},
            r"mean_preserving=False .*got pattern_std=None and brightness_std=0\.2",
        ),
        (
            {"mean_preserving": False, "brightness_std": 0},
            r"mean_preserving=False .*got pattern_std=0\.1 and brightness_std=0$",
        ),
        ({"brightness_std": -0.1}, r"brightness_std must be a number in \[0, 1\].*got -0\.1"),
        (
            {"grid_size": 1},
            r"grid_size=1 is a single cell, .* got pattern_std=0\.1 and brightness_std=0\.2: use more cells",
        ),
        (
            {"grid_size": (1, 1), "brightness_std": 0},
            r"grid_size=\(1, 1\) is a single cell, .*pattern_std=0\.1 and brightness_std=0:",
        ),
        (
            {"grid_size": 1, "pattern_std": None, "brightness_std": 0},
            "grid_size=1 is a single cell, .*got pattern_std=None",
        ),
        ({"black": "darkest"}, "black must be one of .*'darkest'"),
        ({"mean": 0.5}, r"mean and std belong together, got mean=0\.5 and std=None"),
        ({"mean": [0.5, 0.5], "std": 1.0}, r"mean must be one finite number or 3 \(in_chans\), got \[0\.5, 0\.5\]"),
        ({"mean": 0.5, "std": 0.0}, r"std must be positive, got 0\.0"),
        ({"mean": math.nan, "std": 1.0}, "mean must be one finite number .*nan"),
        ({"policy": "nonsense"}, "policy must be .*'nonsense'"),
    ],
)
def test_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PolicyNoiseMask(**arguments)


@pytest.mark.parametrize("scaling", [{"brightness_std": 0.2}, {"mean_preserving": False, "brightness_std": 0.0}])
def test_one_cell_brightens_or_darkens_the_whole_image(scaling):
    mask = PolicyNoiseMask(grid_size=1, p=1.0, pattern_std=None, **scaling)
    images = torch.rand(64, 3, 20, 30)
    rendered = mask.render(mask.sample(images), images.shape[2:]).flatten(1)
    assert rendered.std(1).max() < 1e-5
    assert rendered.mean(1).std() > 0.1


def test_numpys_numbers_are_numbers():
    assert PolicyNoiseMask(kernel_size=np.int64(5), sigma=np.float32(2.0))(torch.randn(1, 3, 32, 32)).dim() == 4


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.randn(2, 32, 32), ValueError, r"shape \(B, C, H, W\) or \(C, H, W\) with C = 3, got \(2, 32, 32\)"),
        (torch.randn(32, 32), ValueError, r"got \(32, 32\)"),
        (torch.randn(2, 1, 32, 32), ValueError, r"with C = 3, got \(2, 1, 32, 32\)"),
        (torch.randn(2, 3, 8, 32, 32), ValueError, r"got \(2, 3, 8, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), TypeError, r"images must be floating point.*torch\.uint8"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.long), TypeError, r"images must be floating point.*torch\.int64"),
        (np.zeros((2, 3, 32, 32)), TypeError, "images must be a tensor, got ndarray"),
        (torch.randn(2, 3, 32, 1), ValueError, r"grid_size \(2, 2\) does not fit images of size \(32, 1\)"),
        (torch.randn(2, 3, 9, 9), ValueError, r"kernel_size 19 does not fit .*\(9, 9\).* at most 17"),
    ],
)
def test_images_are_refused_and_nothing_has_moved(images, error, message):
    mask = PolicyNoiseMask(kernel_size=19, policy="test_resnet")
    state, random = copy.deepcopy(mask.state_dict()), torch.get_rng_state()
    for call in (mask, mask.sample):
        with pytest.raises(error, match=message):
            call(images)
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in mask.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_sample_of_another_batch_is_refused(batch):
    images, _ = batch
    mask = PolicyNoiseMask()
    with pytest.raises(ValueError, match="sample holds 5 masks, got 8 images"):
        mask(images, mask.sample(images[:5]))


def test_a_policy_of_the_wrong_shape_is_refused(batch):
    from policy_noise.policy import StaticPolicy

    mask = PolicyNoiseMask(grid_size=8, policy=StaticPolicy((4, 4)))
    with pytest.raises(ValueError, match=r"policy must give two tensors of shape \(8, 1, 8, 8\).*\(8, 1, 4, 4\)"):
        mask(batch[0])


def test_a_bad_pixel_leaves_the_other_images_alone(batch):
    images, _ = batch
    mask = moved(PolicyNoiseMask(p=1.0))
    sample = mask.sample(images)
    expected = mask(images, sample)
    images = images.clone()
    images[2, 0, 0, 0] = math.nan
    others = [0, 1, 3, 4, 5, 6, 7]
    assert torch.equal(mask(images, sample)[others], expected[others])
    assert torch.isfinite(mask.sample(images).log_prob).all()


def test_functional_and_module_agree(batch):
    images, _ = batch
    mask = PolicyNoiseMask(kernel_size=5, sigma=2.0, strength=0.5, brightness_std=0.1, black=0.0)
    sample = mask.sample(images)
    expected = PF.noise_mask(
        images,
        sample.action,
        kernel_size=5,
        sigma=2.0,
        strength=0.5,
        pattern_std=0.1,
        brightness_std=0.1,
        applied=sample.applied,
    )
    assert torch.equal(mask(images, sample), expected)


def test_without_gradients_the_log_probability_is_the_same():
    mask, images = PolicyNoiseMask(grid_size=3), torch.rand(4, 3, 32, 32)
    expected = mask.sample(images, torch.Generator().manual_seed(1))
    with torch.no_grad():
        sample = mask.sample(images, torch.Generator().manual_seed(1))
    assert torch.equal(sample.action, expected.action)
    torch.testing.assert_close(sample.log_prob, expected.log_prob.detach())
    torch.testing.assert_close(sample.detach().log_prob, expected.log_prob.detach())


def test_masks_are_drawn_inside_functional_transforms():
    mask = moved(PolicyNoiseMask(grid_size=4))
    images = torch.rand(3, 3, 32, 32)
    parameters = {name: parameter.detach() for name, parameter in mask.named_parameters()}

    class Draw(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mask = mask

        def forward(self, images):
            return self.mask.sample(images, torch.Generator().manual_seed(2)).log_prob.sum()

    def score(parameters):
        return torch.func.functional_call(Draw(), {f"mask.{k}": v for k, v in parameters.items()}, (images,))

    gradients = torch.func.grad(score)(parameters)
    plain = torch.autograd.grad(Draw()(images), list(mask.parameters()))
    torch.testing.assert_close(list(gradients.values()), list(plain), rtol=1e-4, atol=1e-4)
