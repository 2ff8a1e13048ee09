"""Training images among the images of test sets, for every pair of kinds of source."""

import argparse

import numpy as np
import pytest
from PIL import Image

from policy_noise.experiments.comparison import overlap as module
from policy_noise.experiments.comparison.overlap import Overlap, find_overlaps, sentence
from policy_noise.experiments.comparison.sites import open_site
from policy_noise.experiments.data import ImageSet, Split
from policy_noise.experiments.folders import load_image_folder
from policy_noise.experiments.images import Reading

OPTIONS = argparse.Namespace(
    skip_bad_files=True, window=None, split_seed=0, multi_label=False, fit="stretch", group=None, labels=None
)
SPLITS = ("train", "val", "test")


def noise(seed, size=8):
    return np.random.default_rng(seed).integers(0, 256, (size, size), np.uint8)


def images_of(start):
    """For each split two images of each of two classes."""
    return {split: [noise(start + 10 * number + i) for i in range(4)] for number, split in enumerate(SPLITS)}


def write_tree(root, images):
    for split, mine in images.items():
        for i, image in enumerate(mine):
            (root / split / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / split / "ab"[i % 2] / f"{i}.png")
    return root


def write_npz(path, images):
    content = {f"{split}_images": np.stack(mine) for split, mine in images.items()}
    content |= {f"{split}_labels": np.arange(len(mine)) % 2 for split, mine in images.items()}
    np.savez(path, **content, names=np.array(["a", "b"]))
    return path


def set_of(images):
    return ImageSet("mine", *(Split(np.stack(m), np.arange(len(m)) % 2) for m in images.values()), ("a", "b"), {})


@pytest.mark.parametrize("theirs", ["tree", "npz"])
@pytest.mark.parametrize("mine", ["tree", "memory"])
def test_copies_are_found_whatever_the_sources(tmp_path, mine, theirs, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 3)
    own, other = images_of(0), images_of(100)
    other["val"][1], other["test"][2] = own["train"][3], own["train"][0]
    other["test"][3] = own["test"][0]  # no training image
    data = set_of(own) if mine == "memory" else load_image_folder(write_tree(tmp_path / "mine", own), Reading(8))
    write = write_tree if theirs == "tree" else write_npz
    text = f"B={write(tmp_path / ('site' if theirs == 'tree' else 'site.npz'), other)}"
    found = find_overlaps(data, [open_site(text, OPTIONS, data, 8)], [], 8)
    example = "B/val/1" if theirs == "npz" else str(tmp_path / "site/val/b/1.png")
    original = "mine/train/3" if mine == "memory" else str(tmp_path / "mine/train/b/3.png")
    assert found == {"site:B": Overlap(2, 12, example, original)}


def test_splits_and_targets(tmp_path):
    own, target = images_of(0), images_of(100)
    own["val"][0] = own["test"][0] = own["test"][1] = own["train"][2]
    target["train"][1] = own["train"][1]
    found = find_overlaps(set_of(own), [], [set_of(target)], 8)
    assert found == {
        "val": Overlap(1, 4, "mine/val/0", "mine/train/2"),
        "clean": Overlap(2, 4, "mine/test/0", "mine/train/2"),
        "few-shot:mine": Overlap(1, 12, "mine/train/1", "mine/train/1"),
    }


def test_a_target_of_another_size_and_depth_is_compared_at_that_of_training():
    large = {split: [noise(number * 10 + i, 16) for i in range(4)] for number, split in enumerate(SPLITS)}
    small = {split: [np.asarray(Image.fromarray(i).resize((8, 8), Image.Resampling.BILINEAR)) for i in images]
             for split, images in large.items()}  # fmt: skip
    colour = {split: [np.repeat(image[..., None], 3, 2) for image in images] for split, images in large.items()}
    assert find_overlaps(set_of(small), [], [set_of(colour)], 8)["few-shot:mine"][:2] == (4, 12)


def test_what_is_constant_unreadable_or_only_alike_does_not_count(tmp_path):
    own, other = images_of(0), images_of(100)
    own["train"][0] = other["test"][0] = np.full((8, 8), 7, np.uint8)
    own["train"][1] = np.zeros((90, 90), np.uint8)
    own["train"][1][0, 0] = 1
    other["test"][1] = np.zeros((90, 90), np.uint8)
    other["test"][1][0, 0] = 2
    for root, images in ((tmp_path / "mine", own), (tmp_path / "site", other)):
        write_tree(root, images)
        (root / SPLITS[0] / "a" / "broken.png").write_bytes(b"broken")
        for path in root.rglob("*.png"):  # as bitmaps: of equal size, with equal last 4 KiB
            if path.name != "broken.png":
                Image.open(path).save(path.with_suffix(".bmp"))
                path.unlink()
    data = load_image_folder(tmp_path / "mine", Reading(8, skip_bad_files=True))
    site = open_site(f"B={tmp_path / 'site'}", OPTIONS, data, 8)
    assert find_overlaps(data, [site], [], 8) == {}


def test_few_files_are_decoded(tmp_path, monkeypatch):
    own, other = images_of(0), images_of(100)
    other["test"][2] = own["train"][0]
    data = load_image_folder(write_tree(tmp_path / "mine", own), Reading(8))
    site = open_site(f"B={write_tree(tmp_path / 'site', other)}", OPTIONS, data, 8)
    decoded, look_at = [], module.look_at
    monkeypatch.setattr(module, "look_at", lambda paths: decoded.extend(paths) or look_at(paths))
    assert find_overlaps(data, [site], [], 8)["site:B"].shared == 1
    assert sorted(decoded) == [str(tmp_path / "mine/train/a/0.png"), str(tmp_path / "site/test/a/2.png")]


@pytest.mark.parametrize(
    ("key", "overlap", "said"),
    [
        ("clean", Overlap(2, 9, "", ""), "2 of the 9 test images are training images too"),
        ("val", Overlap(1, 9, "", ""), "1 of the 9 validation images is a training image too"),
        ("few-shot:chest", Overlap(2, 9, "", ""), "2 of the 9 images of target chest are training images too"),
    ],
)
def test_the_sentence(key, overlap, said):
    assert sentence(key, overlap) == f"{said}: scores there say less about new images."


def test_the_example_names_the_training_image_where_it_is_another():
    assert Overlap(1, 2, "b.png", "a.png").instance == "such as b.png, equal to a.png"
    assert Overlap(1, 2, "a.png", "a.png").instance == "such as a.png"
