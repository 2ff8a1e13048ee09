"""Data sources that the command line opens: what is read, excluded and reported."""

import argparse
import re
import unicodedata

import numpy as np
import pytest
from PIL import Image

from policy_noise.experiments.image_check import read_exclusions
from policy_noise.experiments.images import TooDeep
from policy_noise.experiments.npz import load_npz
from policy_noise.experiments.sources import add_source_arguments, describe, open_joined, open_sources, open_tested

SPLITS = ("train", "val", "test")


def parse(*words):
    parser = argparse.ArgumentParser()
    add_source_arguments(parser)
    return parser.parse_args([str(word) for word in words])


def picture(path, values, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)


@pytest.fixture
def tree(tmp_path):
    """Two classes, three images each, all different."""
    for split_number, split in enumerate(SPLITS):
        for label, name in enumerate(("cat", "dog")):
            for index in range(3):
                values = np.full((8, 8), 20 * (3 * split_number + index) + label, np.uint8)
                values[0, 0] = 255
                picture(tmp_path / "tree" / split / name / f"{index}.png", values)
    return tmp_path / "tree"


def npz(path, dtype=np.uint8, top=255, shape=(8, 8)):
    content = {}
    for split in SPLITS:
        content[f"{split}_images"] = np.linspace(0, top, 4 * int(np.prod(shape))).reshape(4, *shape).astype(dtype)
        content[f"{split}_labels"] = np.array([0, 1, 0, 1])
    np.savez(path, **content)
    return path


class TestWindowOfNpz:
    @pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
    def test_values_are_mapped_by_it_and_the_record_says_so(self, tmp_path, dtype):
        path = npz(tmp_path / "deep.npz", dtype, 4095)
        arguments = parse("--npz", path, "--window", "0", "4095")
        data = open_joined(arguments, 8, 1)
        expected = np.linspace(0, 255, 256).reshape(4, 8, 8)
        assert np.abs(data.train.images - expected).max() <= 1
        assert describe(data, arguments)["window"] == (0.0, 4095.0)

    def test_auto_is_each_images_own(self, tmp_path):
        data = load_npz(npz(tmp_path / "deep.npz", np.uint16, 4095), window="auto")
        assert [(image.min(), image.max()) for image in data.val.images] == [(0, 255)] * 4

    def test_without_one_the_range_is_named(self, tmp_path):
        with pytest.raises(ValueError, match=r"train_images must be uint8, got uint16 with values 0 to 4095.*--window"):
            open_joined(parse("--npz", npz(tmp_path / "deep.npz", np.uint16, 4095)), 8, 1)

    def test_integers_in_the_range_of_bytes_need_none(self, tmp_path):
        data = load_npz(npz(tmp_path / "wide.npz", np.int64, 255))
        assert data.train.images.dtype == np.uint8
        assert data.train.images.max() == 255

    def test_a_window_that_nothing_would_use_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="--window is for images of more than 8 bits"):
            open_joined(parse("--medmnist", "pneumoniamnist", "--root", tmp_path, "--window", "auto"), 8, 1)


class TestHeaders:
    def test_one_deep_file_among_many_is_found_before_training(self, tree):
        picture(tree / "val" / "dog" / "9.png", np.linspace(0, 4095, 64).reshape(8, 8).astype(np.uint16))
        with pytest.raises(TooDeep, match=r"9\.png has more than 8 bits \(mode I;16, values 0 to 4095\)"):
            open_joined(parse("--image-folder", tree), 8, 1)
        data = open_joined(parse("--image-folder", tree, "--window", "0", "4095"), 8, 1)
        assert len(data.val) == 7

    def test_a_deep_file_is_no_bad_file(self, tree):
        picture(tree / "val" / "dog" / "9.png", np.full((8, 8), 4095, np.uint16))
        with pytest.raises(TooDeep):
            open_joined(parse("--image-folder", tree, "--skip-bad-files"), 8, 1)

    def test_a_corrupt_file_is_named_before_training(self, tree):
        (tree / "test" / "cat" / "1.png").write_bytes(b"no image")
        with pytest.raises(ValueError, match=r"1\.png cannot be read as an image.*--skip-bad-files"):
            open_joined(parse("--image-folder", tree), 8, 1)
        open_joined(parse("--image-folder", tree, "--skip-bad-files"), 8, 1)

    def test_transparency_is_said_once(self, tree, capsys):
        for index in range(2):
            picture(tree / "train" / "cat" / f"a{index}.png", np.full((8, 8, 4), 90, np.uint8))
        open_joined(parse("--image-folder", tree), 8, 1)
        assert re.findall(r"(\d+) images have transparency", capsys.readouterr().err) == ["2"]


def test_what_a_folder_holds_is_counted(tree, capsys):
    (tree / "train" / "cat" / "notes.txt").write_text("x")
    (tree / "train" / "cat" / "scan.dcm").write_text("x")
    (tree / "val" / "cat" / "deep").mkdir()
    (tree / "val" / "cat" / "deep" / "scan.DCM").write_text("x")
    (tree / "val" / "cat" / "._0.png").write_text("x")
    (tree / "val" / "cat" / "Thumbs.db").write_text("x")
    (tree / "val" / ".ipynb_checkpoints").mkdir()
    open_joined(parse("--image-folder", tree), 8, 1)
    said = capsys.readouterr().err
    assert "21 files found, 18 taken, left out by ending: 2 .dcm, 1 .txt, 3 hidden files and folders passed" in said


class TestLinksAndStrayImages:
    def test_a_link_to_another_class_is_refused(self, tree):
        (tree / "train" / "cat" / "more").symlink_to(tree / "train" / "dog", target_is_directory=True)
        with pytest.raises(ValueError, match=r"0\.png and .*0\.png are one file, in 'cat' and in 'dog'.*3 such files"):
            open_joined(parse("--image-folder", tree), 8, 1)

    def test_a_link_to_another_split_is_refused(self, tree):
        (tree / "test" / "cat" / "again.png").symlink_to(tree / "train" / "cat" / "1.png")
        with pytest.raises(ValueError, match=r"are one file, in train and in test"):
            open_joined(parse("--image-folder", tree), 8, 1)

    def test_a_link_within_a_class_is_taken_once(self, tree, capsys):
        (tree / "train" / "cat" / "again.png").symlink_to(tree / "train" / "cat" / "1.png")
        assert len(open_joined(parse("--image-folder", tree), 8, 1).train) == 6
        assert "train: 1 entry names a file again" in capsys.readouterr().err

    def test_a_tree_of_links_is_read(self, tree, tmp_path):
        for path in list(tree.rglob("*.png")):
            store = tmp_path / "store" / "-".join(path.parts[-3:])
            store.parent.mkdir(exist_ok=True)
            path.rename(store)
            path.symlink_to(store)
        assert len(open_joined(parse("--image-folder", tree), 8, 1).train) == 6

    def test_images_outside_the_class_folders_are_counted(self, tree, capsys):
        picture(tree / "stray.png", np.zeros((8, 8), np.uint8))
        picture(tree / "train" / "stray.png", np.zeros((8, 8), np.uint8))
        picture(tree / "train" / ".b" / "hidden.png", np.zeros((8, 8), np.uint8))
        open_joined(parse("--image-folder", tree), 8, 1)
        said = capsys.readouterr().err
        assert "20 files found, 18 taken, outside the class folders: 2, such as stray.png" in said
        assert "1 hidden files and folders passed over, such as the folder train/.b" in said

    def test_a_site_of_two_layouts_is_refused(self, tree):
        picture(tree / "cat" / "0.png", np.zeros((8, 8), np.uint8))
        with pytest.raises(ValueError, match=r"holds folders of images beside train/, such as cat/"):
            open_tested(str(tree), parse(), 8, 1)

    def test_one_name_in_two_unicode_forms_is_one_class(self, tree):
        for split, form in zip(SPLITS, ("NFC", "NFD", "NFC"), strict=True):
            (tree / split / "cat").rename(tree / split / unicodedata.normalize(form, "m\u00e9ninge"))
        data = open_joined(parse("--image-folder", tree), 8, 1)
        assert data.class_names == ("dog", "m\u00e9ninge")
        assert data.val.labels.tolist() == [0, 0, 0, 1, 1, 1]


class TestWhatIsChanged:
    def test_frames_and_values_that_are_not_finite_are_said(self, tree, capsys):
        pages = [Image.new("L", (8, 8), number) for number in range(3)]
        pages[0].save(tree / "train" / "cat" / "stack.tif", save_all=True, append_images=pages[1:])
        picture(tree / "val" / "dog" / "nan.tif", np.array([[np.nan, 1], [2, 3]], np.float32))
        open_joined(parse("--image-folder", tree, "--window", "0", "4"), 8, 1)
        said = capsys.readouterr().err
        assert re.search(r"1 image has several frames or pages, such as .*stack\.tif: only the first is read", said)
        assert re.search(r"1 image has values that are not finite, such as .*nan\.tif: NaN and -inf become black", said)

    def test_sizes_are_said_and_proportions_kept_if_asked(self, tree, capsys):
        values = np.zeros((8, 16), np.uint8)
        values[:, 4:12] = 200
        picture(tree / "train" / "cat" / "0.png", values)
        data = open_joined(parse("--image-folder", tree), 4, 1)
        said = capsys.readouterr().err
        assert (
            "1 of 18 images are not square, most of them 16 x 8 pixels: they are stretched to a square; --fit" in said
        )
        assert "18 of 18 images are larger than 4 x 4 pixels, most of them 8 x 8: they are reduced" in said
        assert data.train.read([0])[0][0, 0].tolist() == [29, 175, 175, 29]
        data = open_joined(parse("--image-folder", tree, "--fit", "crop"), 4, 1)
        assert (data.train.read([0])[0] == 200).all()
        assert "cropped to their middle\n" in capsys.readouterr().err
        data = open_joined(parse("--image-folder", tree, "--fit", "pad"), 4, 1)
        assert data.train.read([0])[0][0, 0].tolist() == [4, 25, 25, 4]

    def test_arrays_too(self, tmp_path, capsys):
        path = npz(tmp_path / "wide.npz", shape=(8, 16))
        arguments = parse("--npz", path, "--fit", "pad")
        data = open_joined(arguments, 8, 1)
        assert data.train.images.shape == (4, 8, 8)
        assert not data.train.images[:, 0].any()
        assert describe(data, arguments)["fit"] == "pad"
        assert "wide: 12 of 12 images are not square" in capsys.readouterr().err


class TestExclude:
    def test_a_list_of_paths(self, tree, tmp_path, capsys):
        listed = tmp_path / "list.txt"
        listed.write_text("# bad\ntrain/cat/1.png\n\nval/dog/0.png\n")
        arguments = parse("--image-folder", tree, "--exclude", listed)
        data = open_joined(arguments, 8, 1)
        assert [len(data.train), len(data.val), len(data.test)] == [5, 5, 6]
        assert [data.image_name("train", i) for i in range(2)] == ["train/cat/0.png", "train/cat/2.png"]
        assert data.train.read([1])[0][0, 5, 5] == 40
        assert describe(data, arguments)["excluded"] == 2
        assert "2 images are left out by" in capsys.readouterr().err

    def test_a_table_of_which_some_are_meant(self, tmp_path):
        path = npz(tmp_path / "set.npz")
        listed = tmp_path / "list.csv"
        listed.write_text("problem,image,exclude\nequal,set/train/0,no\nequal,set/train/2,yes\n")
        whole = load_npz(path)
        data = open_joined(parse("--npz", path, "--exclude", listed), 8, 1)
        assert np.array_equal(data.train.images, whole.train.images[[0, 1, 3]])
        assert data.train.labels.tolist() == [0, 1, 1]

    def test_names_that_are_not_there_are_an_error(self, tree, tmp_path):
        (tmp_path / "list.txt").write_text("train/cat/1.png\ntrain/cow/1.png\n")
        with pytest.raises(ValueError, match=r"names 2 images, but 1 of them are not in tree.*'train/cat/0\.png'"):
            open_sources(parse("--image-folder", tree, "--exclude", tmp_path / "list.txt"), 8, 1)

    def test_neither_yes_nor_no(self, tmp_path):
        (tmp_path / "list.csv").write_text("image,exclude\na.png,maybe\n")
        with pytest.raises(ValueError, match=r"list\.csv, row 2: needs an image and yes or no"):
            read_exclusions(tmp_path / "list.csv")


def test_channels_follow_the_files_unless_they_are_given(tree):
    assert open_joined(parse("--image-folder", tree), 8, None).in_chans == 1
    picture(tree / "train" / "dog" / "0.png", np.full((8, 8, 3), 90, np.uint8))
    assert open_joined(parse("--image-folder", tree), 8, None).in_chans == 1  # grey, stored as RGB
    picture(tree / "train" / "dog" / "0.png", np.full((8, 8, 3), (200, 90, 10), np.uint8))
    assert open_joined(parse("--image-folder", tree), 8, None).in_chans == 3
    assert open_joined(parse("--image-folder", tree), 8, 1).in_chans == 1


def test_looking_for_colours_says_nothing_of_a_file_that_cannot_be_read(tree, recwarn):
    (tree / "train" / "dog" / "0.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"0\.png cannot be read as an image.*--skip-bad-files"):
        open_joined(parse("--image-folder", tree), 8, None)
    assert not [warning for warning in recwarn if "left out" in str(warning.message)]


def test_a_prefix_that_is_not_there_is_answered_with_those_that_are(tmp_path):
    content = {}
    for prefix in ("", "ct2_", "mr_"):
        for split in SPLITS:
            content[f"{prefix}{split}_images"] = np.zeros((2, 8, 8), np.uint8)
            content[f"{prefix}{split}_labels"] = np.array([0, 1])
    np.savez(tmp_path / "organs.npz", **content)
    with pytest.raises(ValueError, match=r"no set 'ct3': it holds organs\.npz, organs\.npz:ct2, organs\.npz:mr"):
        open_joined(parse("--npz", f"{tmp_path / 'organs.npz'}:ct3"), 8, 1)
