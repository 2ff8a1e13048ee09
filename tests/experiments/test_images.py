"""Image files of every kind as 8 bits."""

import numpy as np
import pytest
from PIL import Image

from policy_noise.experiments.images import MODES, NeedsWindow, apply_window, read_image


@pytest.mark.parametrize(("dtype", "top", "ending"), [
    (np.uint16, 65535, "png"), (np.uint16, 4095, "tif"), (np.int32, 4095, "tif"), (np.float32, 1, "tif"),
])  # fmt: skip
def test_deep_grey_needs_a_window_and_is_mapped_by_it(tmp_path, dtype, top, ending):
    path = tmp_path / f"ramp.{ending}"
    Image.fromarray(np.linspace(0, top, 256).reshape(16, 16).astype(dtype)).save(path)
    with pytest.raises(NeedsWindow, match=rf"ramp\.{ending} has more than 8 bits \(mode .*--window LOW HIGH"):
        read_image(path, 1)
    ramp = np.arange(256).reshape(16, 16)
    for window in ((0, top), "auto"):
        assert np.abs(read_image(path, 1, window).astype(int) - ramp).max() <= 1
    assert (read_image(path, 1, (0, top / 2))[8:] >= 254).all()


@pytest.mark.parametrize(("mode", "color", "grey"), [
    ("1", 1, 255), ("L", 90, 90), ("LA", (90, 10), 90), ("P", 90, 90), ("RGB", (90, 90, 90), 90),
    ("RGBA", (90, 90, 90, 10), 90), ("CMYK", (0, 0, 0, 165), 90),
])  # fmt: skip
def test_modes_of_eight_bits(tmp_path, mode, color, grey):
    image = Image.new(mode, (4, 4), color)
    if mode == "P":
        image.putpalette([value for value in range(256) for _ in range(3)])
    image.save(tmp_path / "a.tif")
    assert mode in MODES
    assert (read_image(tmp_path / "a.tif", 1) == grey).all()
    assert read_image(tmp_path / "a.tif", 3).shape == (4, 4, 3)


def test_both_byte_orders(tmp_path):
    values = np.array([[0, 1000], [2000, 4000]])
    Image.frombytes("I;16B", (2, 2), values.astype(">u2").tobytes()).save(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", 1, (0, 4000)).tolist() == [[0, 64], [128, 255]]


def test_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((4, 8), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", 1).shape == (8, 4)


def test_values_that_are_not_finite_and_constant_images():
    values = np.array([np.nan, -np.inf, 0, 1, np.inf])
    assert apply_window(values, "auto").tolist() == [0, 0, 0, 255, 255]
    assert apply_window(np.full(3, 7), "auto").tolist() == [0, 0, 0]
