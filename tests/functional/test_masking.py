"""Scaling a mask and multiplying it in."""

import pytest
import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d

from policy_noise import functional as PF


def test_mean_preserving_scaling_has_mean_one():
    for mask in (torch.rand(4, 1, 20, 30), torch.rand(4, 1, 6, 7, 8)):
        scaled = PF.scale_mask(mask, mean_preserving=True)
        torch.testing.assert_close(scaled.flatten(1).mean(1), torch.ones(4))
        torch.testing.assert_close(scaled, mask / mask.flatten(1).mean(1).view(-1, *[1] * (mask.ndim - 1)))


@pytest.mark.parametrize(("grid", "size"), [((4, 4), (32, 32)), ((3, 5), (30, 41)), ((2, 3, 4), (12, 17, 20))])
def test_a_fixed_dose_has_mean_one_and_its_deviation(grid, size):
    action = torch.distributions.Beta(0.5, 0.5).sample((64, 1, *grid))
    mask = PF.noise_mask(torch.ones(64, 1, *size), action, pattern_std=0.15).flatten(1)
    torch.testing.assert_close(mask.mean(1), torch.ones(64))
    torch.testing.assert_close(mask.std(1, correction=0), torch.full((64,), 0.15))
    # An affine function of the rendered mask, so that cells keep their order.
    rendered = PF.render_mask(action, size).flatten(1)
    correlation = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(mask, rendered, strict=True)])
    torch.testing.assert_close(correlation, torch.ones(64))


def test_a_fixed_dose_never_turns_light_negative_and_a_flat_mask_stays_flat():
    action = torch.full((3, 1, 4, 4), 0.5)
    action[1, 0, 0, 0] = 1e-6  # one dark cell, which pattern_std=1 would push far below 0
    action[2] = 1e-6  # a saturated policy
    mask = PF.noise_mask(torch.ones(3, 1, 32, 32), action, pattern_std=1.0).flatten(1)
    assert torch.equal(mask[0], torch.ones(1024))
    assert torch.equal(mask[2], torch.ones(1024))
    assert 0 <= mask[1].min() < 0.1
    torch.testing.assert_close(mask[1].mean(), torch.tensor(1.0))
    assert 0.1 < mask[1].std() < 1


@pytest.mark.parametrize("grid", [(2, 2), (3, 4, 5)])
def test_levels_brighten_as_often_as_they_darken_and_keep_their_deviation(grid):
    action = torch.rand(20_000, 1, *grid, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    level = PF.mask_brightness(action, 0.2)
    assert level.shape == (20_000, 1, *[1] * len(grid))
    assert level.log().std().item() == pytest.approx(0.2, rel=0.02)
    assert (level > 1).double().mean().item() == pytest.approx(0.5, abs=0.01)
    images = torch.ones(200, 1, *(3 * cells for cells in grid)).double()
    means = PF.noise_mask(images, action[:200], pattern_std=0.1, brightness_std=0.2).flatten(1).mean(1)
    torch.testing.assert_close(means, level[:200].flatten())


def test_a_level_has_a_reach_that_no_policy_leaves():
    action = torch.stack([torch.full((1, 64, 64), value) for value in (1e-6, 0.5, 1 - 1e-6)])
    torch.testing.assert_close(PF.mask_brightness(action, 0.2).flatten(), torch.tensor([-0.6, 0.0, 0.6]).exp())


def test_strength_moves_the_mask_from_one():
    mask = torch.rand(4, 1, 8, 8)
    torch.testing.assert_close(PF.scale_mask(mask, strength=0.25), 1 + 0.25 * (mask - 1))
    assert torch.equal(PF.scale_mask(mask, strength=0.0), torch.ones_like(mask))
    assert torch.equal(PF.scale_mask(mask), mask)


def test_apply_multiplies_values_or_intensities():
    images, mask = torch.randn(4, 3, 8, 8), torch.rand(4, 1, 8, 8) * 2
    black = torch.tensor([-2.0, -1.5, -1.0]).view(1, 3, 1, 1)
    assert torch.equal(PF.apply_mask(images, mask), images * mask)
    torch.testing.assert_close(PF.apply_mask(images, mask, black), black + mask * (images - black))


@pytest.mark.parametrize("factor", [0.3, 0.8, 1.0, 1.5])
@pytest.mark.parametrize("black", [-2.0, 0.5])
def test_infinite_values_stay_infinite(factor, black):
    images = torch.tensor([-torch.inf, torch.inf, 1.0]).view(1, 1, 1, 3)
    masked = PF.apply_mask(images, torch.full((1, 1, 1, 3), factor), torch.tensor(black))
    torch.testing.assert_close(masked.flatten(), torch.tensor([-torch.inf, torch.inf, factor + black * (1 - factor)]))


def test_black_stays_black():
    black = torch.tensor([-2.1179, -2.0357, -1.8044]).view(1, 3, 1, 1)
    images = black.expand(2, 3, 16, 16).clone()
    masked = PF.noise_mask(images, torch.rand(2, 1, 4, 4), mean_preserving=True, black=black)
    torch.testing.assert_close(masked, images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("black", [None, torch.tensor([-2.0, -1.5, -1.0]).view(1, 3, 1, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_images_that_are_not_masked_come_back_bit_for_bit(dtype, black):
    images = torch.randn(6, 3, 16, 16).to(dtype)
    applied = torch.tensor([True, False, True, False, False, True])
    masked = PF.noise_mask(images, torch.rand(6, 1, 4, 4), black=black, applied=applied, mean_preserving=True)
    assert masked.dtype == dtype
    assert torch.equal(masked[~applied], images[~applied])
    assert (masked[applied] != images[applied]).flatten(1).any(1).all()


def test_noise_mask_is_its_parts():
    images, action, black = torch.randn(2, 1, 24, 20), torch.rand(2, 1, 4, 5), torch.tensor(-1.0)
    mask = PF.scale_mask(PF.render_mask(action, (24, 20), 5, 1.5), strength=0.5, mean_preserving=True)
    own = PF.noise_mask(
        images, action, kernel_size=5, sigma=1.5, strength=0.5, mean_preserving=True, black=black.view(1, 1, 1, 1)
    )
    torch.testing.assert_close(own, PF.apply_mask(images, mask, black.view(1, 1, 1, 1)))


def plain_noise_mask(
    images,
    action,
    kernel_size,
    sigma,
    strength,
    black,
    applied,
    mean_preserving=False,
    pattern_std=None,
    brightness_std=0.0,
):
    """Compute every step on the pixels, with Kornia's blur."""
    enlarged = F.interpolate(action, images.shape[2:], mode="nearest")
    mask = gaussian_blur2d(enlarged, (kernel_size, kernel_size), (sigma, sigma), border_type="reflect")
    mean = mask.mean((1, 2, 3), keepdim=True)
    if pattern_std is not None:
        lowest = action.amin((1, 2, 3), keepdim=True)
        scale = torch.maximum(mask.std((1, 2, 3), keepdim=True, correction=0) / pattern_std, mean - lowest)
        mask = 1 + (mask - mean) / scale * (1 - 1e-6)
    elif mean_preserving:
        mask = mask / mean
    z = (action.flatten(1).mean(1) - 0.5) / (1 / (12 * action[0].numel())) ** 0.5
    mask = mask * torch.exp(brightness_std * z).view(-1, 1, 1, 1)
    mask = 1 + strength * (mask - 1)
    if applied is not None:
        mask = torch.where(applied.view(-1, 1, 1, 1), mask, 1.0)
    return images * mask if black is None else black + mask * (images - black)


@pytest.mark.parametrize("applied", [None, torch.tensor([True, False, True])])
@pytest.mark.parametrize("black", [None, torch.tensor([-2.0, -1.5, -1.0]).double().view(1, 3, 1, 1)])
@pytest.mark.parametrize(
    "scaling", [{}, {"mean_preserving": True}, {"pattern_std": 0.2}, {"pattern_std": 1.0, "brightness_std": 0.3}]
)
@pytest.mark.parametrize("strength", [1.0, 0.4, 0.0])
def test_noise_mask_scales_cells_as_it_would_scale_pixels(strength, scaling, black, applied):
    images = torch.randn(3, 3, 30, 41, dtype=torch.float64)
    action = torch.rand(3, 1, 5, 7, dtype=torch.float64, requires_grad=True)
    settings = {"kernel_size": 7, "sigma": 2.5, "strength": strength, "black": black, "applied": applied, **scaling}
    expected = plain_noise_mask(images, action, **settings)
    result = PF.noise_mask(images, action, **settings)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(images)
    gradients = [torch.autograd.grad((value * weight).sum(), action)[0] for value in (result, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.parametrize("strength", [1.0, 0.3])
@pytest.mark.parametrize("shape", [(37, 64), (8, 9, 10)])
def test_images_left_out_come_back_bit_for_bit_at_any_strength(shape, strength):
    grid = [4] * len(shape)
    images, applied = torch.randn(6, 2, *shape), torch.tensor([True, False] * 3)
    black = torch.full((1, 2, *[1] * len(shape)), -1.7)
    for level in (None, black):
        masked = PF.noise_mask(
            images, torch.rand(6, 1, *grid), strength=strength, mean_preserving=True, black=level, applied=applied
        )
        assert torch.equal(masked[~applied], images[~applied])
        assert not torch.equal(masked[applied], images[applied])


def test_cells_of_zero_leave_images_that_are_left_out_alone():
    images = torch.randn(2, 1, 16, 16)
    action = torch.stack([torch.zeros(1, 4, 4), torch.rand(1, 4, 4)])
    masked = PF.noise_mask(images, action, mean_preserving=True, applied=torch.tensor([False, True]))
    assert torch.equal(masked[0], images[0])
    assert masked.isfinite().all()


def test_volumes_are_scaled_by_cells_too():
    images, action = torch.ones(2, 1, 8, 12, 10), torch.rand(2, 1, 2, 3, 4)
    mask = PF.scale_mask(PF.render_mask(action, (8, 12, 10)), strength=0.6, mean_preserving=True)
    torch.testing.assert_close(PF.noise_mask(images, action, strength=0.6, mean_preserving=True), mask)


def test_operators_made_in_inference_mode_enter_a_later_backward():
    images, action = torch.rand(2, 1, 23, 29), torch.rand(2, 1, 3, 4)
    arguments = {"mean_preserving": True, "applied": torch.tensor([True, True])}
    with torch.inference_mode():
        PF.noise_mask(images, action, **arguments)  # the first call of these sizes fills the cache
    action.requires_grad_()
    PF.noise_mask(images, action, **arguments).square().sum().backward()
    assert action.grad.abs().sum() > 0


def test_noise_mask_keeps_its_precision_under_autocast():
    images, action = torch.rand(2, 3, 32, 32), torch.rand(2, 1, 4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = PF.noise_mask(images, action, mean_preserving=True)
    assert torch.equal(inside, PF.noise_mask(images, action, mean_preserving=True))


@pytest.mark.parametrize("grid", [3, 9])
@pytest.mark.parametrize("upsample", ["nearest", "linear", "cubic"])
def test_each_image_has_its_own_deviations(upsample, grid):
    """A batch with a deviation for each image holds the masks of batches with one, on 9 and on 81 cells."""
    images, action = torch.rand(4, 2, 40, 30), torch.rand(4, 1, grid, grid)
    patterns, brightnesses = torch.tensor([0.0, 0.05, 0.2, 0.4]), torch.tensor([0.3, 0.0, 0.1, 0.2])
    expected = [
        PF.noise_mask(
            images[i : i + 1],
            action[i : i + 1],
            upsample=upsample,
            pattern_std=max(float(patterns[i]), 1e-6),
            brightness_std=float(brightnesses[i]),
        )
        for i in range(4)
    ]
    together = PF.noise_mask(images, action, upsample=upsample, pattern_std=patterns, brightness_std=brightnesses)
    torch.testing.assert_close(together, torch.cat(expected), rtol=0, atol=2e-6)
    assert PF.noise_mask(images, torch.full_like(action, 0.5), pattern_std=patterns).isfinite().all()


@pytest.mark.parametrize("scaling", [{"mean_preserving": True}, {"pattern_std": 0.2, "brightness_std": 0.3}], ids=str)
def test_each_channel_is_masked_as_if_it_were_alone(scaling):
    images, action, expected = torch.rand(2, 3, 24, 20), torch.rand(2, 3, 3, 4), torch.rand(2, 3, 3, 4)
    applied, black = torch.tensor([True, False]), torch.tensor([-1.0, 0.2, 0.0]).view(1, 3, 1, 1)
    together = PF.noise_mask(images, action, expected=expected, black=black, applied=applied, **scaling)
    for channel in range(3):
        one = slice(channel, channel + 1)
        alone = PF.noise_mask(
            images[:, one], action[:, one], expected=expected[:, one], black=black[:, one], applied=applied, **scaling
        )
        torch.testing.assert_close(together[:, one], alone)
    assert torch.equal(together[1], images[1])


@pytest.mark.parametrize("upsample", ["linear", "cubic"])
@pytest.mark.parametrize("pattern_std", [0.1, 0.4, 1.0])
def test_smooth_masks_have_mean_1_the_deviation_asked_for_and_no_negative_factor(upsample, pattern_std):
    action = torch.rand(500, 1, 3, 3, dtype=torch.float64)
    mask = PF.noise_mask(torch.ones(500, 1, 33, 25).double(), action, upsample=upsample, pattern_std=pattern_std)
    assert mask.amin() >= 0
    torch.testing.assert_close(mask.mean((1, 2, 3)), torch.ones(500).double())
    deviation = mask.std((1, 2, 3), correction=0)
    assert deviation.max() <= pattern_std + 1e-9
    full = (deviation - pattern_std).abs() < 1e-5
    if pattern_std < 1.0:
        assert full.double().mean() > {0.1: 0.99, 0.4: 0.35}[pattern_std]
    # Where it is smaller, a factor would be negative otherwise.
    assert ((mask.flatten(1).amin(1) < 0.1) | full).all()


def test_nothing_is_brightened_beyond_white_and_nothing_else_changes():
    images = torch.tensor([0.0, 0.4, 0.9, 1.3, torch.inf, -torch.inf]).view(1, 1, 1, 6)
    white = torch.ones(1, 1, 1, 1)
    for factor, expected in ((1.5, [0.0, 0.6, 1.0, 1.3]), (0.5, [0.0, 0.2, 0.45, 0.65]), (1.0, [0.0, 0.4, 0.9, 1.3])):
        masked = PF.apply_mask(images, torch.full((1, 1, 1, 6), factor), white=white)
        torch.testing.assert_close(masked.flatten(), torch.tensor([*expected, torch.inf, -torch.inf]))
    images, action, applied = torch.rand(2, 3, 16, 16) * 1.2, torch.rand(2, 1, 3, 3), torch.tensor([True, False])
    settings = {"pattern_std": 0.3, "black": torch.full((1, 1, 1, 1), -0.2), "applied": applied}
    masked, plain = (PF.noise_mask(images, action, white=level, **settings) for level in (white, None))
    assert torch.equal(masked[1], images[1])
    assert torch.equal(masked, torch.minimum(plain, images.clamp(min=1.0)))
    assert not torch.equal(masked, plain)
