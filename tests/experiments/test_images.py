"""Image files of every kind as 8 bits."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from policy_noise.experiments.images import MODES, Header, TooDeep, apply_window, as_square, read_header, read_image


@pytest.mark.parametrize(("dtype", "top", "ending"), [
    (np.uint16, 65535, "png"), (np.uint16, 4095, "tif"), (np.int32, 4095, "tif"), (np.float32, 1, "tif"),
])  # fmt: skip
def test_deep_grey_needs_a_window_and_is_mapped_by_it(tmp_path, dtype, top, ending):
    path = tmp_path / f"ramp.{ending}"
    Image.fromarray(np.linspace(0, top, 256).reshape(16, 16).astype(dtype)).save(path)
    with pytest.raises(TooDeep, match=rf"ramp\.{ending} has more than 8 bits \(mode .*--window LOW HIGH"):
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


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_that_lies_on_its_side_is_turned_and_not_scrambled(tmp_path, dtype, orientation):
    a = np.arange(192, dtype=dtype).reshape(16, 12)
    expected = {1: a, 2: np.fliplr(a), 3: np.rot90(a, 2), 4: np.flipud(a), 5: a.T, 6: np.rot90(a, -1),
                7: np.rot90(a, 2).T, 8: np.rot90(a, 1)}[orientation]  # fmt: skip
    Image.fromarray(a).save(tmp_path / "a.tif", tiffinfo={274: orientation})
    assert np.array_equal(read_image(tmp_path / "a.tif", 1), expected)


def test_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((4, 8), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg", 1).shape == (8, 4)


def test_values_that_are_not_finite_and_constant_images():
    values = np.array([np.nan, -np.inf, 0, 1, np.inf])
    assert apply_window(values, "auto").tolist() == [0, 0, 0, 255, 255]
    assert apply_window(np.full(3, 7), "auto").tolist() == [0, 0, 0]


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(path, channels):
    """A 16-bit PNG of 4 x 4 pixels, which Pillow reads and does not write."""
    kind = {2: 4, 3: 2, 4: 6}[channels]
    rows = (b"\0" + np.full(4 * channels, 1000, ">u2").tobytes()) * 4
    header = struct.pack(">IIBBBBB", 4, 4, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def tiff(path, values, sample_format=1, colours=None):
    """An uncompressed TIFF of any depth, which Pillow reads and does not write."""
    high, wide, channels = values.shape
    bits = values.dtype.itemsize * 8
    tags = [(256, 3, [wide]), (257, 3, [high]), (258, 3, [bits] * channels), (259, 3, [1]),
            (262, 3, [2 if channels == 3 else 1]), (273, 4, [8]), (277, 3, [channels]), (278, 3, [high]),
            (279, 4, [values.nbytes]), (339, 3, [sample_format] * channels)]  # fmt: skip
    if colours is not None:
        tags[4] = (262, 3, [3])
        tags.insert(-1, (320, 3, colours))
    start = 8 + values.nbytes
    more, entries = b"", b""
    for tag, kind, numbers in tags:
        packed = struct.pack("<" + ("H" if kind == 3 else "I") * len(numbers), *numbers)
        if len(packed) > 4:
            place = start + 2 + 12 * len(tags) + 4 + len(more)
            more += packed
            packed = struct.pack("<I", place)
        entries += struct.pack("<HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0) + more
    path.write_bytes(b"II*\0" + struct.pack("<I", start) + values.tobytes() + directory)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_in_colour_or_with_alpha_are_refused(tmp_path, channels):
    deep_png(tmp_path / "deep.png", channels)
    for read in (lambda path: read_image(path, 1, "auto"), read_header):
        with pytest.raises(TooDeep, match=r"deep\.png has 16 bits a channel"):
            read(tmp_path / "deep.png")


def test_tiffs_and_pixmaps_that_would_be_cut_are_refused(tmp_path):
    tiff(tmp_path / "deep.tif", np.full((4, 4, 3), 1000, "<u2"))
    (tmp_path / "deep.ppm").write_bytes(b"P6 4 4 4095\n" + np.full(48, 1000, ">u2").tobytes())
    for name in ("deep.tif", "deep.ppm"):
        with pytest.raises(TooDeep, match=f"{name} has 16 bits a channel"):
            read_image(tmp_path / name, 3, (0, 4095))
    tiff(tmp_path / "signed.tif", np.full((4, 4, 1), -3, np.int8), sample_format=2)
    with pytest.raises(TooDeep, match=r"signed\.tif holds signed values"):
        read_image(tmp_path / "signed.tif", 1)


@pytest.mark.parametrize("maxval", [4095, 65535])
def test_a_pgm_has_the_values_that_stand_in_it(tmp_path, maxval):
    ramp = np.linspace(0, maxval, 16).round()
    (tmp_path / "a.pgm").write_bytes(f"P5 4 4 {maxval}\n".encode() + ramp.astype(">u2").tobytes())
    with pytest.raises(TooDeep, match=f"values 0 to {maxval}"):
        read_image(tmp_path / "a.pgm", 1)
    read = read_image(tmp_path / "a.pgm", 1, (0, maxval)).ravel()
    assert np.abs(read - np.linspace(0, 255, 16)).max() <= 1


def test_integers_in_the_range_of_bytes_need_no_window(tmp_path):
    tiff(tmp_path / "a.tif", np.arange(16, dtype="<u2").reshape(4, 4, 1))
    assert read_image(tmp_path / "a.tif", 1).ravel().tolist() == list(range(16))


def test_headers_tell_depth_and_transparency(tmp_path):
    Image.new("RGBA", (4, 4)).save(tmp_path / "a.png")
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "b.png")
    Image.new("L", (4, 4)).save(tmp_path / "c.jpg")
    Image.new("L", (4, 4)).save(tmp_path / "d.png")
    Image.new("L", (4, 4)).save(tmp_path / "e.png", transparency=0)
    found = [read_header(path) for path in sorted(tmp_path.iterdir())]
    plain, alpha = Header((4, 4)), Header((4, 4), alpha=True)
    assert found == [alpha, Header((4, 4), deep=True), plain, plain, alpha]


@pytest.mark.parametrize("ending", ["tif", "png", "gif", "webp"])
def test_headers_tell_frames_and_pages(tmp_path, ending):
    pages = [Image.new("L", (4, 6), 80 * number) for number in range(3)]
    pages[0].save(tmp_path / f"a.{ending}", save_all=True, append_images=pages[1:])
    assert read_header(tmp_path / f"a.{ending}").frames == 3


def test_a_palette_of_bytes_is_not_black(tmp_path):
    indices = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    tiff(tmp_path / "a.tif", indices, colours=[*range(256), *[7] * 256, *range(255, -1, -1)])
    assert read_image(tmp_path / "a.tif", 3)[1, 1].tolist() == [5, 7, 250]
    tiff(tmp_path / "b.tif", indices, colours=[257 * value for value in [*range(256), *[7] * 256, *range(255, -1, -1)]])
    assert np.array_equal(read_image(tmp_path / "b.tif", 3), read_image(tmp_path / "a.tif", 3))


def test_large_unsigned_values_do_not_wrap(tmp_path):
    values = np.array([[0, 1 << 31], [3 << 30, (1 << 32) - 1]], "<u4")
    tiff(tmp_path / "a.tif", values[..., None])
    assert read_image(tmp_path / "a.tif", 1, (0, 1 << 32)).tolist() == [[0, 128], [191, 255]]
    tiff(tmp_path / "b.tif", np.array([[-5, 0], [5, 10]], "<i4")[..., None], sample_format=2)
    assert read_image(tmp_path / "b.tif", 1, (-5, 10)).tolist() == [[0, 85], [170, 255]]


def test_the_range_of_values_leaves_out_those_that_are_not_finite(tmp_path):
    Image.fromarray(np.array([[np.nan, 1], [np.inf, 3]], np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(TooDeep, match=r"values 1\.0 to 3\.0, and 2 that are NaN or infinite"):
        read_image(tmp_path / "a.tif", 1)


def test_images_become_square_by_stretching_cropping_or_padding():
    wide = np.arange(12).reshape(3, 4)
    assert as_square(wide, "stretch") is wide
    assert as_square(wide, "crop").tolist() == [[0, 1, 2], [4, 5, 6], [8, 9, 10]]
    assert np.array_equal(as_square(wide, "pad"), np.pad(wide, ((0, 1), (0, 0))))
    batch = np.ones((2, 3, 5, 3))
    assert as_square(batch, "crop", axis=1).shape == (2, 3, 3, 3)
    assert as_square(batch, "pad", axis=1).sum((1, 2, 3)).tolist() == [45, 45]
