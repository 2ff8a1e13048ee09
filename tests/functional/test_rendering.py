"""Rendering, against Kornia's own calls."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from kornia.filters import gaussian_blur2d
from scipy.interpolate import BSpline

from policy_noise import functional as PF

UPSAMPLES = ("nearest", "linear", "cubic")


def kornia_render(action, size, kernel_size, sigma):
    enlarged = F.interpolate(action, size, mode="nearest")
    kernels, sigmas = (value if isinstance(value, tuple) else (value, value) for value in (kernel_size, sigma))
    return gaussian_blur2d(enlarged, kernels, sigmas, border_type="reflect")


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
@pytest.mark.parametrize(("kernel_size", "sigma"), [(13, 6.0), (3, 0.75), (5, 0.3), (1, 2.0), (27, 4.0)])
@pytest.mark.parametrize(
    ("grid", "size"),
    [((8, 8), (28, 28)), ((7, 5), (33, 57)), ((64, 64), (224, 224)), ((2, 2), (164, 230)), ((16, 16), (16, 16))],
)
def test_render_is_kornias_call(grid, size, kernel_size, sigma, dtype, atol):
    action = torch.rand(2, 1, *grid, dtype=dtype)
    expected = kornia_render(action, size, kernel_size, sigma)
    torch.testing.assert_close(PF.render_mask(action, size, kernel_size, sigma), expected, rtol=0, atol=atol)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    extra=st.tuples(st.integers(0, 230), st.integers(0, 230)),
    given_kernel=st.booleans(),
)
def test_render_fits_every_size_and_is_kornias_call(grid, extra, given_kernel):
    size = tuple(cells + more for cells, more in zip(grid, extra, strict=True))
    kernel_size = 2 * min(size) - 1 if given_kernel else None
    action = torch.rand(1, 1, *grid)
    mask = PF.render_mask(action, size, kernel_size)
    assert mask.shape == (1, 1, *size)
    assert mask.min() >= action.min() - 1e-5
    assert mask.max() <= action.max() + 1e-5
    expected = kornia_render(action, size, *PF.blur_parameters(size, grid, kernel_size))
    torch.testing.assert_close(mask, expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_render_in_half_precision(dtype):
    action = torch.rand(2, 1, 8, 8).to(dtype)
    mask = PF.render_mask(action, (64, 64))
    assert mask.dtype == dtype
    expected = PF.render_mask(action.float(), (64, 64))
    torch.testing.assert_close(mask.float(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_render_of_volumes_is_a_separable_convolution():
    action, size, kernel_size, sigma = torch.rand(2, 1, 3, 4, 5, dtype=torch.float64), (12, 17, 20), 7, 1.7
    expected = F.interpolate(action, size, mode="nearest")
    offsets = torch.arange(kernel_size, dtype=torch.float64) - kernel_size // 2
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1)
    for axis in (2, 3, 4):
        lines = expected.movedim(axis, -1)
        flat = F.pad(lines.reshape(-1, 1, lines.shape[-1]), (kernel_size // 2,) * 2, mode="reflect")
        expected = F.conv1d(flat, kernel).view(lines.shape).movedim(-1, axis)
    torch.testing.assert_close(PF.render_mask(action, size, kernel_size, sigma), expected, rtol=0, atol=1e-12)


def test_render_is_differentiable_in_the_action_also_after_inference_mode():
    """The rendering operators are cached, and autograd cannot save a tensor that was made in inference mode."""
    action = torch.rand(1, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        PF.render_mask(action.detach(), (11, 13))
    assert torch.autograd.gradcheck(lambda value: PF.render_mask(value, (11, 13)), action)


@pytest.mark.parametrize("upsample", UPSAMPLES)
def test_render_keeps_its_precision_under_autocast(upsample):
    action = torch.rand(2, 1, 8, 8)
    expected = PF.render_mask(action, (32, 32), upsample=upsample)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(PF.render_mask(action, (32, 32), upsample=upsample), expected)


def test_blur_parameters_are_a_share_of_each_axis_cell():
    assert PF.blur_parameters((96, 128), (4, 4)) == ((17, 23), (8.0, 128 / 12))
    assert PF.blur_parameters((48, 48), (4, 4)) == ((9, 9), (4.0, 4.0))
    assert PF.blur_parameters((48, 48), (2, 2)) == ((17, 17), (8.0, 8.0))
    assert PF.blur_parameters((48, 48), (2, 8)) == ((17, 5), (8.0, 2.0))
    transposed = PF.blur_parameters((64, 28), (4, 4))
    assert tuple(values[::-1] for values in transposed) == PF.blur_parameters((28, 64), (4, 4))
    assert PF.blur_parameters((100, 100), (4, 4), kernel_size=13) == ((13, 13), (6.0, 6.0))
    assert PF.blur_parameters((100, 100), (4, 4), sigma=6) == ((13, 13), (6.0, 6.0))
    assert PF.blur_parameters((100, 100), (4, 4), 5, 9.0) == ((5, 5), (9.0, 9.0))
    assert PF.blur_parameters((100, 100), (4, 4), (5, 7), (9.0, 2.0)) == ((5, 7), (9.0, 2.0))
    assert PF.blur_parameters((8, 128, 128), (2, 2, 2))[1] == (8 / 6, 128 / 6, 128 / 6)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(cells=st.integers(2, 6), pixels=st.integers(8, 40), stretch=st.integers(1, 12), tall=st.booleans())
def test_the_largest_step_over_the_range_does_not_depend_on_the_aspect_ratio(cells, pixels, stretch, tall):
    """Compare along the axis that keeps its length, and more finely along the one that is stretched."""
    short = pixels * cells
    action = torch.rand(1, 1, cells, cells, dtype=torch.float64, generator=torch.Generator().manual_seed(cells))

    def steps(size):
        mask = PF.render_mask(action, size)[0, 0]
        largest = torch.stack([mask.diff(dim=axis).abs().max() for axis in (0, 1)])
        return largest / (mask.max() - mask.min())

    square, long = steps((short, short)), steps((short * stretch, short) if tall else (short, short * stretch))
    assert long.max() <= 1.1 * square.max()
    assert long[1 if tall else 0] >= 0.9 * square[1 if tall else 0]


@pytest.mark.parametrize("kernel_size", [None, 13])
def test_square_images_are_kornias_call_with_one_number(kernel_size):
    action = torch.rand(2, 1, 4, 4)
    kernels, sigmas = PF.blur_parameters((96, 96), (4, 4), kernel_size)
    assert (len(set(kernels)), len(set(sigmas))) == (1, 1)
    expected = gaussian_blur2d(
        F.interpolate(action, (96, 96), mode="nearest"), kernels[0], (sigmas[0], sigmas[0]), border_type="reflect"
    )
    torch.testing.assert_close(PF.render_mask(action, (96, 96), kernel_size), expected, rtol=0, atol=2e-6)


@given(side=st.integers(1, 2000), other=st.integers(1, 2000), cells=st.integers(1, 64))
def test_blur_parameters_left_out_always_fit(side, other, cells):
    kernels, sigmas = PF.blur_parameters((side, other), (cells, cells))
    for pixels, kernel_size, sigma in zip((side, other), kernels, sigmas, strict=True):
        assert kernel_size % 2 == 1
        assert 1 <= kernel_size <= 2 * pixels - 1
        assert sigma == pytest.approx(pixels / cells / 3)


@given(side=st.integers(1, 300), sigma=st.floats(1e-3, 1e4))
def test_a_given_sigma_always_finds_a_kernel_that_fits(side, sigma):
    kernels, kept = PF.blur_parameters((side, side), (4, 4), sigma=sigma)
    assert kept == (sigma, sigma)
    for kernel_size in kernels:
        assert kernel_size % 2 == 1
        assert 1 <= kernel_size <= 2 * side - 1


@pytest.mark.parametrize(("name", "value"), [("kernel_size", [13]), ("sigma", [6]), ("sigma", (1.0, 2.0, 3.0))])
def test_another_number_of_numbers_than_axes_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be one number or 2, one for each axis") as error:
        PF.blur_parameters((64, 64), (4, 4), **{name: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("kernel_size", [0, -3, 4, 3.5, math.nan, math.inf, (13, 4)])
def test_blur_parameters_refuse_a_kernel(kernel_size):
    with pytest.raises(ValueError, match="kernel_size must be an odd positive integer") as error:
        PF.blur_parameters((64, 64), (4, 4), kernel_size)
    assert repr(kernel_size) in str(error.value)


@pytest.mark.parametrize("sigma", [0, -1.0, math.nan, math.inf, (6.0, 0)])
def test_blur_parameters_refuse_a_sigma(sigma):
    with pytest.raises(ValueError, match="sigma must be a positive number") as error:
        PF.blur_parameters((64, 64), (4, 4), 5, sigma)
    assert repr(sigma) in str(error.value)


def test_a_kernel_that_does_not_fit_is_refused_with_the_largest_that_does():
    with pytest.raises(ValueError, match=r"kernel_size 21 .*\(10, 30\).* at most 19"):
        PF.render_mask(torch.rand(1, 1, 4, 4), (10, 30), kernel_size=21)
    assert PF.render_mask(torch.rand(1, 1, 4, 4), (10, 30), kernel_size=19).shape == (1, 1, 10, 30)


@pytest.mark.parametrize(
    ("shape", "size", "arguments", "message"),
    [
        ((4, 4), (8, 8), {}, r"action must have shape .*got \(4, 4\)"),
        ((1, 1, 4), (8,), {}, r"action must have shape .*got \(1, 1, 4\)"),
        ((1, 1, 4, 4), (8,), {}, r"size \(8,\) does not fit a grid of \(4, 4\)"),
        ((1, 1, 4, 4), (8, 3), {}, r"size \(8, 3\) does not fit a grid of \(4, 4\)"),
        ((1, 1, 4, 4), (8, 8, 8), {}, r"size \(8, 8, 8\) does not fit"),
        ((1, 1, 4, 4), (8, 8), {"upsample": "bicubic"}, "upsample must be .*'bicubic'"),
    ],
)
def test_render_refuses(shape, size, arguments, message):
    with pytest.raises(ValueError, match=message):
        PF.render_mask(torch.rand(shape), size, **arguments)


@pytest.mark.parametrize(("grid", "size"), [((3, 3), (64, 64)), ((2, 5), (17, 40)), ((1, 4), (9, 4)), ((8, 8), (8, 8))])
def test_linear_is_torchs_interpolation_with_aligned_corners(grid, size):
    action = torch.rand(2, 1, *grid, dtype=torch.float64)
    expected = F.interpolate(action, size, mode="bilinear", align_corners=True)
    torch.testing.assert_close(PF.render_mask(action, size, upsample="linear"), expected, rtol=0, atol=1e-12)
    volume = torch.rand(2, 1, 3, *grid, dtype=torch.float64)
    expected = F.interpolate(volume, (7, *size), mode="trilinear", align_corners=True)
    torch.testing.assert_close(PF.render_mask(volume, (7, *size), upsample="linear"), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("cells", "pixels"), [(1, 5), (2, 9), (3, 64), (4, 33), (7, 7), (16, 224)])
def test_cubic_is_scipys_spline_of_uniform_knots_that_reaches_the_edges(cells, pixels):
    degree = min(3, cells - 1)
    inner = np.linspace(0, 1, cells - degree + 1)
    knots = np.concatenate([np.zeros(degree), inner, np.ones(degree)])
    weights = BSpline.design_matrix(np.linspace(0, 1, pixels), knots, degree).toarray()
    action = torch.rand(1, 1, cells, 1, dtype=torch.float64)
    expected = torch.from_numpy(weights) @ action[0, 0]
    found = PF.render_mask(action, (pixels, 1), upsample="cubic")[0, 0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("upsample", ["linear", "cubic"])
@pytest.mark.parametrize("grid", [2, 3, 5])
def test_smooth_masks_span_the_image_and_are_nowhere_flat(upsample, grid):
    action = torch.rand(16, 1, grid, grid, dtype=torch.float64)
    mask = PF.render_mask(action, (96, 96), upsample=upsample)
    torch.testing.assert_close(mask[..., ::95, ::95], action[..., :: grid - 1, :: grid - 1])
    assert mask.amax() <= action.amax() + 1e-12
    assert mask.amin() >= action.amin() - 1e-12

    def flat(mask):
        steps = torch.stack([mask.diff(dim=2)[..., :-1].abs(), mask.diff(dim=3)[..., :-1, :].abs()]).amax(0)
        return (steps < 1e-4 * (mask.amax() - mask.amin())).double().mean()

    assert flat(mask) < 0.002
    assert flat(PF.render_mask(action, (96, 96))) > 0.2


def test_a_cubic_mask_has_no_kinks_and_a_linear_one_only_at_its_cells():
    """Twice the pixels make the largest second difference four times smaller; at a kink it is only halved."""
    action = torch.rand(8, 1, 5, 5, dtype=torch.float64)

    def bend(pixels, upsample):
        return PF.render_mask(action, (pixels, 8), upsample=upsample).diff(n=2, dim=2).abs().amax()

    assert bend(161, "cubic") / bend(321, "cubic") == pytest.approx(4, rel=0.05)
    assert bend(161, "linear") / bend(321, "linear") == pytest.approx(2, rel=0.05)
    kinks = PF.render_mask(action, (161, 8), upsample="linear").diff(n=2, dim=2).abs().amax(dim=(0, 1, 3)) > 1e-9
    assert (kinks.nonzero().flatten() + 1).tolist() == [40, 80, 120]


def test_smooth_masks_are_blurred_only_if_asked():
    action = torch.rand(2, 1, 3, 3)
    for upsample in ("linear", "cubic"):
        assert set(PF.blur_parameters((64, 64), (3, 3), upsample=upsample)[0]) == {1}
        plain = PF.render_mask(action, (64, 64), upsample=upsample)
        blurred = PF.render_mask(action, (64, 64), sigma=6.0, upsample=upsample)
        kernels, sigmas = PF.blur_parameters((64, 64), (3, 3), sigma=6.0, upsample=upsample)
        expected = gaussian_blur2d(plain, kernels, sigmas, border_type="reflect")
        torch.testing.assert_close(blurred, expected, rtol=0, atol=2e-6)


def test_each_channel_can_have_its_own_mask():
    action = torch.rand(2, 3, 4, 4)
    together = PF.render_mask(action, (20, 24))
    apart = [PF.render_mask(action[:, channel : channel + 1], (20, 24)) for channel in range(3)]
    torch.testing.assert_close(together, torch.cat(apart, dim=1))
