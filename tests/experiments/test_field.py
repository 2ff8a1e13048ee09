"""Files on which users of neighbouring projects lost time, each written here; FIELD.md lists the threads."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from test_groups import parse
from test_images import chunk, tiff

from policy_noise.experiments.image_check import check
from policy_noise.experiments.images import Header, TooDeep, read_header, read_image
from policy_noise.experiments.npz import load_npz
from policy_noise.experiments.sources import open_joined

SPLITS = ("train", "val", "test")
COLOUR = np.full((16, 16, 3), (200, 90, 10), np.uint8)


def same(path, expected=COLOUR, within=1):
    """Whether a file is read as these colours."""
    return np.abs(read_image(path, 3).astype(int) - expected).max() <= within


def png(path, width, depth, kind, row, *chunks):
    """A PNG of one row, which Pillow reads and does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0))
    body = b"".join([header, *chunks, chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")])
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def bitmap(path, bits, data, masks=()):
    """A BMP of 2 x 2 pixels."""
    size = 124 if masks else 40
    info = struct.pack("<IiiHHIIiiII", size, 2, 2, 1, bits, 3 if masks else 0, len(data), 0, 0, 0, 0)
    info += b"".join(struct.pack("<I", mask) for mask in masks) + b"\0" * (size - 40 - 4 * len(masks))
    start = 14 + len(info)
    path.write_bytes(b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + info + data)
    return path


def tree(root, images):
    """An image folder of these images by class, the same in all splits but for one pixel."""
    for number, split in enumerate(SPLITS):
        for name, values in images.items():
            (root / split / name).mkdir(parents=True)
            own = values.copy()
            own[(0,) * own.ndim] += number
            Image.fromarray(own).save(root / split / name / "a.png")
    return root


class TestTiff:
    @pytest.mark.parametrize("compression", [1, 8])
    def test_planes_one_after_the_other(self, tmp_path, compression):
        planes = [COLOUR[..., channel].tobytes() for channel in range(3)]
        planes = [zlib.compress(plane) if compression == 8 else plane for plane in planes]
        starts = [8 + sum(map(len, planes[:number])) for number in range(3)]
        tags = [(256, [16]), (257, [16]), (258, [8] * 3), (259, [compression]), (262, [2]), (273, starts), (277, [3]),
                (278, [16]), (279, [len(plane) for plane in planes]), (284, [2])]  # fmt: skip
        start = 8 + sum(map(len, planes))
        after, entries = start + 2 + 12 * len(tags) + 4, b""
        more = b""
        for tag, values in tags:
            packed = struct.pack(f"<{len(values)}I", *values)
            if len(values) > 1:
                place, more = after + len(more), more + packed
                packed = struct.pack("<I", place)
            entries += struct.pack("<HHI", tag, 4, len(values)) + packed
        directory = struct.pack("<H", len(tags)) + entries + bytes(4) + more
        (tmp_path / "a.tif").write_bytes(b"II*\0" + struct.pack("<I", start) + b"".join(planes) + directory)
        assert same(tmp_path / "a.tif")

    def test_luminance_and_chrominance_inside_a_jpeg(self, tmp_path):
        Image.fromarray(COLOUR).save(tmp_path / "a.tif", compression="jpeg")
        assert same(tmp_path / "a.tif")

    def test_lab_is_refused_by_its_mode(self, tmp_path):
        Image.fromarray(COLOUR).convert("LAB").save(tmp_path / "a.tif")
        with pytest.raises(ValueError, match="mode LAB is not read"):
            read_header(tmp_path / "a.tif")

    def test_white_is_zero(self, tmp_path):
        values = np.arange(16, dtype=np.uint8).reshape(4, 4) * 16
        tiff(tmp_path / "a.tif", values[..., None])
        content = (tmp_path / "a.tif").read_bytes()
        plain = struct.pack("<HHIHH", 262, 3, 1, 1, 0)
        assert plain in content
        (tmp_path / "a.tif").write_bytes(content.replace(plain, struct.pack("<HHIHH", 262, 3, 1, 0, 0)))
        assert np.array_equal(read_image(tmp_path / "a.tif", 1), 255 - values)

    def test_a_compressed_one_is_not_turned_twice(self, tmp_path):
        values = np.arange(96, dtype=np.uint8).reshape(8, 12)
        Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={274: 6}, compression="tiff_lzw")
        assert np.array_equal(read_image(tmp_path / "a.tif", 1), np.rot90(values, -1))

    def test_hounsfield_units(self, tmp_path):
        tiff(tmp_path / "a.tif", np.array([[-1024, 0], [40, 3071]], "<i2")[..., None], sample_format=2)
        assert read_image(tmp_path / "a.tif", 1, (-160, 240)).tolist() == [[0, 102], [127, 255]]
        with pytest.raises(TooDeep, match="values -1024 to 3071"):
            read_image(tmp_path / "a.tif", 1)

    @pytest.mark.parametrize(("kind", "form"), [("<f8", 3), ("<f2", 3), ("<u8", 1), ("<c8", 6)])
    def test_numbers_that_pillow_does_not_read_are_refused(self, tmp_path, kind, form):
        tiff(tmp_path / "a.tif", np.ones((4, 4, 1), kind), sample_format=form)
        with pytest.raises(OSError, match="cannot identify"):
            read_image(tmp_path / "a.tif", 1, (0, 1))


class TestPng:
    @pytest.mark.parametrize(
        ("depth", "row", "grey"), [(2, b"\x1b", [0, 85, 170, 255]), (4, b"\x0f\x5a", [0, 255, 85, 170])]
    )
    def test_two_and_four_bits(self, tmp_path, depth, row, grey):
        assert read_image(png(tmp_path / "a.png", 4, depth, 0, row), 1).ravel().tolist() == grey

    def test_one_bit_with_transparency_keeps_its_values(self, tmp_path):
        path = png(tmp_path / "a.png", 8, 1, 0, b"\xaa", chunk(b"tRNS", b"\0\1"))
        assert read_image(path, 1).ravel().tolist() == [255, 0] * 4
        assert read_header(path).alpha

    def test_a_palette_of_two_bits(self, tmp_path):
        path = png(tmp_path / "a.png", 4, 2, 3, b"\x1b", chunk(b"PLTE", bytes(range(12))))
        assert read_image(path, 3)[0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]

    def test_a_text_that_unpacks_to_megabytes_is_refused(self, tmp_path):
        path = png(tmp_path / "a.png", 4, 8, 0, bytes(4), chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(3 << 20))))
        with pytest.raises(ValueError, match="too large"):
            read_image(path, 1)

    def test_an_orientation_in_its_own_chunk(self, tmp_path):
        exif = Image.Exif()
        exif[274] = 6
        values = np.arange(8, dtype=np.uint8).reshape(2, 4)
        Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
        assert np.array_equal(read_image(tmp_path / "a.png", 1), np.rot90(values, -1))


class TestOtherFormats:
    @pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
    def test_jpeg_of_other_colours(self, tmp_path, mode):
        Image.fromarray(COLOUR).convert(mode).save(tmp_path / "a.jpg")
        assert same(tmp_path / "a.jpg")

    def test_a_photograph_with_a_second_picture_is_one_of_two_frames(self, tmp_path):
        second = Image.fromarray(COLOUR // 2)
        Image.fromarray(COLOUR).save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
        assert same(tmp_path / "a.jpg", within=2)
        assert read_header(tmp_path / "a.jpg") == Header((16, 16), frames=2)

    @pytest.mark.parametrize(("masks", "pixel"), [
        ((), (10, 90, 200, 0)), ((0xFF000000, 0xFF0000, 0xFF00, 0xFF), (7, 10, 90, 200)),
        ((0xFF, 0xFF00, 0xFF0000, 0xFF000000), (200, 90, 10, 7)),
    ])  # fmt: skip
    def test_bitmaps_of_32_bits_keep_the_colours_whatever_the_fourth_byte(self, tmp_path, masks, pixel):
        assert same(bitmap(tmp_path / "a.bmp", 32, bytes(pixel) * 4, masks), COLOUR[:2, :2], 0)

    def test_a_bitmap_of_16_bits_a_pixel_is_not_too_deep(self, tmp_path):
        data = struct.pack("<H", (25 << 11) | (22 << 5) | 1) * 4
        assert same(bitmap(tmp_path / "a.bmp", 16, data, (0xF800, 0x7E0, 0x1F, 0)), COLOUR[:2, :2], 6)

    def test_a_floating_point_pixmap(self, tmp_path):
        (tmp_path / "a.ppm").write_bytes(b"Pf\n2 1\n-1.0\n" + np.array([0.5, 1], "<f4").tobytes())
        assert read_image(tmp_path / "a.ppm", 1, (0, 1)).tolist() == [[128, 255]]

    def test_later_frames_of_a_gif_do_not_change_the_first(self, tmp_path):
        frames = [Image.fromarray(np.roll(COLOUR, shift, 2)) for shift in range(3)]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        assert same(tmp_path / "a.gif", within=6)
        assert read_header(tmp_path / "a.gif").frames == 3


class TestTrees:
    def test_classes_called_1_to_12_keep_their_names(self, tmp_path):
        images = {str(number): np.full((8, 8), 10 * number, np.uint8) for number in range(1, 13)}
        data = open_joined(parse("--image-folder", tree(tmp_path / "t", images)), 8, 1)
        assert data.class_names[:4] == ("1", "10", "11", "12")
        assert [int(data.class_names[label]) * 10 for label in data.val.labels] == data.val.read(range(12))[0][
            :, 5, 5
        ].tolist()

    @pytest.mark.parametrize("empty", [True, False])
    def test_a_class_that_a_split_lacks_does_not_shift_the_others(self, tmp_path, empty):
        root = tree(tmp_path / "t", {name: np.full((8, 8), 9, np.uint8) for name in "abc"})
        (root / "val" / "b" / "a.png").unlink()
        if not empty:
            (root / "val" / "b").rmdir()
        with pytest.raises(ValueError, match=r"val.b holds no images|the val split has no image of \['b'\]"):
            open_joined(parse("--image-folder", root), 8, 1)

    def test_grey_colour_and_transparent_files_side_by_side(self, tmp_path):
        shapes = {"a": (8, 8), "b": (8, 8, 3), "c": (8, 8, 4)}
        root = tree(tmp_path / "t", {name: np.full(shape, 90, np.uint8) for name, shape in shapes.items()})
        images, _ = open_joined(parse("--image-folder", root), 8, 1).train.read(range(3))
        assert images.shape == (3, 8, 8)
        assert (images == 90).all()

    def test_masks_of_0_and_1_are_refused(self, tmp_path):
        root = tree(tmp_path / "t", {name: np.zeros((8, 8), np.uint8) for name in "ab"})
        for path in root.rglob("*.png"):
            Image.fromarray(np.eye(8, dtype=np.uint8)).save(path)
        with pytest.raises(ValueError, match="hold nothing but 0 and 1, which is black"):
            open_joined(parse("--image-folder", root), 8, 1)

    def test_an_empty_file_is_named_before_training(self, tmp_path):
        root = tree(tmp_path / "t", {name: np.full((8, 8), 90, np.uint8) for name in "ab"})
        (root / "test" / "b" / "a.png").write_bytes(b"")
        with pytest.raises(ValueError, match=r"test/b/a\.png cannot be read as an image"):
            open_joined(parse("--image-folder", root), 8, 1)

    def test_a_file_is_neither_turned_nor_transposed(self, tmp_path):
        values = np.arange(64, dtype=np.uint8).reshape(8, 8)
        data = open_joined(parse("--image-folder", tree(tmp_path / "t", {"a": values, "b": values.T})), 8, 1)
        assert np.array_equal(data.train.read([0])[0][0], values)


class TestArrays:
    def content(self, first=0):
        rng = np.random.default_rng(0)
        return {f"{split}_images": rng.integers(0, 256, (12, 8, 8), np.uint8) for split in SPLITS} | {
            f"{split}_labels": np.arange(12) % 3 + first for split in SPLITS
        }

    def test_labels_from_1_are_refused(self, tmp_path):
        np.savez(tmp_path / "a.npz", **self.content(first=1))
        with pytest.raises(ValueError, match=r"labels must run from 0 to 3 without a hole, but \[0\] do not occur"):
            load_npz(tmp_path / "a.npz")

    def test_black_images_at_the_end_of_a_published_set_are_listed(self, tmp_path):
        content = self.content()
        content["test_images"][-3:] = 0
        np.savez(tmp_path / "a.npz", **content)
        found = check(load_npz(tmp_path / "a.npz"))
        assert [(finding.problem, finding.image) for finding in found] == [
            ("constant", f"a/test/{index}") for index in (9, 10, 11)
        ]

    def test_floats_from_0_to_1_are_refused_and_mapped_by_a_window(self, tmp_path):
        content = self.content()
        bytes_ = content["train_images"]
        content |= {key: value / np.float32(255) for key, value in content.items() if "images" in key}
        np.savez(tmp_path / "a.npz", **content)
        with pytest.raises(ValueError, match="train_images must be uint8, got float32 with values 0"):
            load_npz(tmp_path / "a.npz")
        assert np.array_equal(load_npz(tmp_path / "a.npz", window=(0, 1)).train.images, bytes_)

    @pytest.mark.parametrize("kind", [">u2", "<f2"])
    def test_other_byte_orders_and_half_precision(self, tmp_path, kind):
        content = self.content()
        bytes_ = content["train_images"]
        content |= {key: value.astype(kind) for key, value in content.items() if "images" in key}
        np.savez(tmp_path / "a.npz", **content)
        assert np.array_equal(load_npz(tmp_path / "a.npz", window=(0, 255)).train.images, bytes_)
