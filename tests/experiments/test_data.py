"""Image sets in memory."""

from pathlib import Path

import numpy as np
import pytest
import torch

from policy_noise.experiments.data import (
    ImageSet,
    Split,
    fingerprint,
    join_sets,
    match_channels,
    require_classes,
    resize,
    split_stratified,
    to_tensor,
)
from policy_noise.experiments.medmnist import load_medmnist
from policy_noise.experiments.npz import load_npz

ORGANS = Path(__file__).resolve().parents[2] / "policy_noise" / "experiments" / "embedded" / "organpatches.npz"


def arrays(classes=3, per_class=4, side=8, colour=False):
    """A whole and valid file's content."""
    rng = np.random.default_rng(0)
    result = {}
    for split in ("train", "val", "test"):
        labels = np.repeat(np.arange(classes), per_class)[:, None].astype(np.uint8)
        shape = (len(labels), side, side, 3) if colour else (len(labels), side, side)
        result |= {f"{split}_images": rng.integers(0, 256, shape, np.uint8), f"{split}_labels": labels}
    return result


def save(path, content):
    np.savez(path, **content)
    return path


class TestLoadNpz:
    def test_medmnist_layout(self, tmp_path):
        content = arrays()
        data = load_npz(save(tmp_path / "set.npz", content))
        assert (data.name, data.num_classes, data.in_chans, data.multi_label) == ("set", 3, 1, False)
        assert np.array_equal(data.val.images, content["val_images"])
        assert data.test.labels.dtype == np.int64
        assert data.test.labels.tolist() == content["test_labels"].ravel().tolist()

    def test_embedded_labels_become_consecutive_and_keep_their_names(self):
        data = load_npz(ORGANS, "mr_")
        with np.load(ORGANS) as file:
            names = file["names"][file["mr_test_labels"].ravel()]
        assert data.num_classes == 8
        assert set(np.unique(data.train.labels)) == set(range(8))
        assert [data.class_names[label] for label in data.test.labels] == names.tolist()

    def test_without_splits(self, tmp_path):
        images = np.arange(40, dtype=np.uint8)[:, None, None].repeat(8, 1).repeat(8, 2)
        path = save(tmp_path / "whole.npz", {"images": images, "labels": np.repeat([0, 1], 20)})
        data = load_npz(path, seed=1)
        assert [len(part) for part in (data.train, data.val, data.test)] == [28, 4, 8]
        for part in (data.train, data.val, data.test):
            assert np.bincount(part.labels).tolist() == [len(part) // 2] * 2
        parts = (data.train, data.val, data.test)
        seen = np.concatenate([part.images[:, 0, 0] for part in parts])
        assert sorted(seen.tolist()) == list(range(40))
        assert np.array_equal(load_npz(path, seed=1).test.images, data.test.images)
        assert not np.array_equal(load_npz(path, seed=2).test.images, data.test.images)

    def test_several_labels(self, tmp_path):
        content = arrays()
        rng = np.random.default_rng(1)
        for split in ("train", "val", "test"):
            content[f"{split}_labels"] = rng.integers(0, 2, (12, 5), np.uint8)
        data = load_npz(save(tmp_path / "chest.npz", content))
        assert data.multi_label
        assert data.num_classes == 5
        assert data.train.labels.shape == (12, 5)

    def test_three_channels(self, tmp_path):
        assert load_npz(save(tmp_path / "set.npz", arrays(colour=True))).in_chans == 3

    def test_missing_file(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"nowhere\.npz does not exist"):
            load_npz(tmp_path / "nowhere.npz")

    @pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
    def test_not_an_npz(self, tmp_path, content):
        path = tmp_path / "broken.npz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken\.npz cannot be read"):
            load_npz(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"val_labels": None}, r"set\.npz lacks the keys \['val_labels'\]"),
            ({"train_images": np.zeros((12, 8, 8), np.float32)}, "train_images must be uint8"),
            ({"train_images": np.zeros((12, 8, 8, 4), np.uint8)}, "train_images must be uint8 of shape"),
            ({"test_images": np.zeros((0, 8, 8), np.uint8)}, "test_images is empty"),
            ({"test_labels": np.zeros(7, np.uint8)}, "test_labels must hold one row for each of 12 images, got 7"),
            ({"val_labels": np.zeros(12)}, "val_labels must be integers"),
            ({"val_labels": np.full(12, -1)}, "val_labels must not be negative"),
            ({"val_labels": np.full((12, 2), 3)}, "val_labels with 2 columns must be 0 or 1"),
            ({"train_labels": np.repeat([0, 1, 9], 4)}, r"labels must run from 0 to 9 without a hole"),
            ({"val_labels": np.zeros(12, np.uint8)}, r"the val split has no image of \['class 1', 'class 2'\]"),
            ({"classes": np.array([0, 1])}, r"labels \[2\] are not among classes"),
            ({"names": np.array(["a", "b"])}, "label 2 is out of the range of names"),
            ({"val_images": np.zeros((12, 8, 8, 3), np.uint8)}, "equally many channels"),
            ({"val_labels": np.ones((12, 2), np.uint8)}, "same number of columns"),
        ],
    )
    def test_bad_content(self, tmp_path, change, message):
        content = {key: value for key, value in (arrays() | change).items() if value is not None}
        with pytest.raises(ValueError, match=message):
            load_npz(save(tmp_path / "set.npz", content))


class TestMedmnist:
    def test_local_file(self, tmp_path):
        content = arrays(classes=2)
        save(tmp_path / "pneumoniamnist_64.npz", content)
        data = load_medmnist("pneumoniamnist", tmp_path, size=64)
        assert data.class_names == ("normal", "pneumonia")

    def test_chestmnist_has_fourteen_labels_an_image(self, tmp_path):
        content = arrays()
        for split in ("train", "val", "test"):
            content[f"{split}_labels"] = np.eye(14, dtype=np.uint8)[np.arange(28) % 14]
            content[f"{split}_images"] = np.zeros((28, 8, 8), np.uint8)
        save(tmp_path / "chestmnist.npz", content)
        data = load_medmnist("chestmnist", tmp_path)
        assert data.multi_label
        assert data.class_names[:2] == ("atelectasis", "cardiomegaly")
        assert len(data.class_names) == 14

    def test_nothing_is_fetched_unasked(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"pneumoniamnist\.npz does not exist.*--download"):
            load_medmnist("pneumoniamnist", tmp_path)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("flag", ["nodulemnist3d", "nonsense"])
    def test_unknown_flag(self, tmp_path, flag):
        with pytest.raises(ValueError, match=f"flag must be one of.*got '{flag}'"):
            load_medmnist(flag, tmp_path)

    def test_unknown_size(self, tmp_path):
        with pytest.raises(ValueError, match="size must be 28, 64, 128 or 224, got 32"):
            load_medmnist("pneumoniamnist", tmp_path, size=32)

    def test_foreign_file(self, tmp_path):
        save(tmp_path / "pneumoniamnist.npz", arrays(classes=3))
        with pytest.raises(ValueError, match="holds 3 classes, and pneumoniamnist has 2"):
            load_medmnist("pneumoniamnist", tmp_path)


class TestJoin:
    def test_classes_and_images(self, tmp_path):
        one = load_npz(save(tmp_path / "one.npz", arrays(classes=2, side=8)))
        two = load_npz(save(tmp_path / "two.npz", arrays(classes=3, side=16)))
        joined = join_sets([one, two], 8)
        assert joined.num_classes == 5
        assert joined.class_names[0] == "one/class 0"
        assert joined.groups == {"set": ("one", "one", "two", "two", "two")}
        assert np.array_equal(joined.train.images[: len(one.train)], one.train.images)
        assert joined.train.labels.max() == 4
        assert len(joined.test) == len(one.test) + len(two.test)

    def test_grey_becomes_colour_beside_colour(self, tmp_path):
        grey = load_npz(save(tmp_path / "one.npz", arrays()))
        colour = load_npz(save(tmp_path / "two.npz", arrays(colour=True)))
        assert join_sets([grey, colour], 8).train.images.shape == (24, 8, 8, 3)

    def test_refusals(self, tmp_path):
        one = load_npz(save(tmp_path / "one.npz", arrays()))
        with pytest.raises(ValueError, match="different names"):
            join_sets([one, one], 8)
        with pytest.raises(ValueError, match="at least one"):
            join_sets([], 8)


def test_split_needs_three_images_a_class():
    with pytest.raises(ValueError, match="label 1 has 2 images"):
        split_stratified(Split(np.zeros((6, 4, 4), np.uint8), np.array([0, 0, 0, 0, 1, 1])), 0)


def test_resize_keeps_grey_values():
    flat = np.full((2, 16, 16), 77, np.uint8)
    assert np.array_equal(resize(flat, 8), np.full((2, 8, 8), 77, np.uint8))
    assert resize(flat, 16) is flat


def test_to_tensor():
    images = np.array([[[0, 255]]], np.uint8)
    assert torch.equal(to_tensor(images, 0.5, 0.25), torch.tensor([[[[-2.0, 2.0]]]]))
    assert to_tensor(np.zeros((2, 4, 5, 3), np.uint8), 0.5, 0.25).shape == (2, 3, 4, 5)


def test_match_channels():
    grey = torch.rand(2, 1, 4, 4)
    assert torch.equal(match_channels(grey, 3)[:, 2], grey[:, 0])
    assert torch.allclose(match_channels(match_channels(grey, 3), 1), grey)
    assert match_channels(grey, 1) is grey


class TestFingerprint:
    def loaded(self, tmp_path, name="set", **change):
        return load_npz(save(tmp_path / f"{name}.npz", arrays() | change))

    def test_content_counts_and_place_does_not(self, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        one = fingerprint(self.loaded(tmp_path))
        assert one == fingerprint(load_npz(save(tmp_path / "elsewhere" / "other.npz", arrays())))
        assert len(one) == 64

    def test_a_pixel_a_label_and_a_name_change_it(self, tmp_path):
        images = arrays()["test_images"].copy()
        images[5, 3, 3] ^= 1
        labels = arrays()["val_labels"][::-1].copy()
        names = np.array(["a", "b", "c"])
        prints = [
            fingerprint(self.loaded(tmp_path, **change))
            for change in ({}, {"test_images": images}, {"val_labels": labels}, {"names": names})
        ]
        assert len(set(prints)) == 4


class TestRequireClasses:
    def several(self, test_labels):
        parts = [Split(np.zeros((4, 2, 2), np.uint8), labels) for labels in (np.eye(2, dtype=int)[[0, 1, 0, 1]],) * 2]
        test = Split(np.zeros((4, 2, 2), np.uint8), np.array(test_labels))
        return ImageSet("chest", *parts, test, ("a", "b"), {})

    def test_a_label_that_nobody_or_everybody_has(self):
        require_classes(self.several([[0, 1], [1, 0], [1, 1], [0, 0]]))
        with pytest.raises(ValueError, match=r"chest: the test split has no image of \['b'\]"):
            require_classes(self.several([[0, 0], [1, 0], [1, 0], [0, 0]]))
        with pytest.raises(ValueError, match=r"chest: the test split has \['a'\] in every image"):
            require_classes(self.several([[1, 0], [1, 1], [1, 0], [1, 0]]))


def test_a_label_of_any_size_is_refused_at_once(tmp_path):
    labels = np.array([0] * 11 + [4294967295], np.uint32)
    with pytest.raises(ValueError, match=r"labels must run from 0 to 4294967295 without a hole.*\[3\] do not occur"):
        load_npz(save(tmp_path / "set.npz", arrays() | {"train_labels": labels}))


def test_a_single_array_is_no_set(tmp_path):
    np.save(tmp_path / "set.npy", np.zeros((3, 4, 4), np.uint8))
    with pytest.raises(ValueError, match=r"set\.npy cannot be read.*a single array"):
        load_npz(tmp_path / "set.npy")


@pytest.mark.parametrize("axis", [1, 3])
def test_a_grey_axis_is_taken_off(tmp_path, axis):
    content = arrays()
    wide = {key: np.expand_dims(value, axis) if "images" in key else value for key, value in content.items()}
    data = load_npz(save(tmp_path / "set.npz", wide))
    assert data.in_chans == 1
    assert np.array_equal(data.train.images, content["train_images"])


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_other_values_than_bytes_are_refused_with_their_range(tmp_path, dtype):
    images = np.linspace(0, 4095, 12 * 64).reshape(12, 8, 8).astype(dtype)
    with pytest.raises(ValueError, match=r"train_images must be uint8, got .* with values 0.* to 4095"):
        load_npz(save(tmp_path / "set.npz", arrays() | {"train_images": images}))


def test_one_hot_labels_are_single_labels_unless_asked(tmp_path):
    content = arrays()
    labels = {key: np.eye(3, dtype=np.uint8)[value.ravel()] for key, value in content.items() if "labels" in key}
    path = save(tmp_path / "set.npz", content | labels)
    with pytest.warns(UserWarning, match="exactly one 1 in every row"):
        data = load_npz(path)
    assert data.train.labels.tolist() == content["train_labels"].ravel().tolist()
    assert load_npz(path, multi_label=True).multi_label


class TestWhatWouldBeReadWrongly:
    def test_published_splits_go_before_a_whole(self, tmp_path):
        content = arrays()
        whole = {"images": np.zeros((20, 8, 8), np.uint8), "labels": np.arange(20) % 2}
        with pytest.warns(UserWarning, match=r"\['images', 'labels'\] are ignored"):
            data = load_npz(save(tmp_path / "set.npz", content | whole))
        assert np.array_equal(data.test.images, content["test_images"])
        del content["val_images"]
        with pytest.raises(ValueError, match=r"beside a part of the splits: it lacks \['val_images'\]"):
            load_npz(save(tmp_path / "set.npz", content | whole))

    @pytest.mark.parametrize("dtype", [np.uint8, bool, np.int64])
    def test_masks_of_0_and_1_need_a_window(self, tmp_path, dtype):
        content = arrays()
        content |= {key: (value > 127).astype(dtype) for key, value in content.items() if "images" in key}
        path = save(tmp_path / "set.npz", content)
        with pytest.raises(ValueError, match=r"train_images are all 0 or 1, which is black: pass --window 0 1"):
            load_npz(path)
        assert np.unique(load_npz(path, window=(0, 1)).val.images).tolist() == [0, 255]

    def test_values_that_are_not_finite_are_counted(self, tmp_path):
        images = np.ones((12, 8, 8), np.float32)
        images[0, 0, :3] = np.nan, np.inf, -np.inf
        path = save(tmp_path / "set.npz", arrays() | {"train_images": images})
        with pytest.raises(ValueError, match=r"values 1\.0 to 1\.0, and 3 that are NaN or infinite"):
            load_npz(path)
        with pytest.warns(UserWarning, match="3 values are not finite: NaN and -inf become black"):
            data = load_npz(path, window=(0, 2))
        assert data.train.images[0, 0, :4].tolist() == [0, 255, 0, 128]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"names": np.array(["a", "b", "a"])}, r"names must differ from one another, and \['a'\] occur"),
            ({"train_labels": np.array(["cat"] * 12)}, "got texts such as 'cat'.*under the key 'names'"),
            ({"train_labels": np.array([0] * 11 + [2**64 - 1], np.uint64)}, "run from 0 to 18446744073709551615"),
        ],
    )
    def test_labels_and_names(self, tmp_path, change, message):
        with pytest.raises(ValueError, match=message):
            load_npz(save(tmp_path / "set.npz", arrays() | change))
