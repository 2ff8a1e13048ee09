"""The check of all images for problems before training."""

import csv
import os

import numpy as np
import pytest
from PIL import Image

from policy_noise.experiments import image_check as module
from policy_noise.experiments import processes
from policy_noise.experiments.commands import main
from policy_noise.experiments.data import ImageSet, Split
from policy_noise.experiments.folders import load_image_folder
from policy_noise.experiments.image_check import check, look_before_training
from policy_noise.experiments.images import Reading

SPLITS = ("train", "val", "test")


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)


@pytest.fixture
def tree(tmp_path):
    """Two classes; two good images in each, and one of every kind of trouble."""
    root = tmp_path / "tree"
    for number, split in enumerate(SPLITS):
        for label, name in enumerate(("cat", "dog")):
            (root / split / name).mkdir(parents=True)
            for index in range(2):
                Image.fromarray(noise(100 * number + 10 * label + index)).save(root / split / name / f"{index}.png")

    def copy(place, seed):
        Image.fromarray(noise(seed)).save(root / place)

    copy("train/cat/within.bmp", 0)  # as train/cat/0.png
    copy("test/dog/leak.png", 11)  # as train/dog/1.png
    copy("val/dog/other.png", 101)  # as val/cat/1.png
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(root / "train/dog/flat.png")
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(root / "train/cat/flat.png")
    (root / "train/dog/broken.png").write_bytes(b"\x89PNG broken")
    return root


COUNTED = "2 constant images and 6 equal ones (2 across splits)"
EXPECTED = {
    "train/dog/broken.png": ("unreadable", "", "yes"),
    "train/dog/flat.png": ("constant", "", "yes"),
    "train/cat/flat.png": ("constant", "", "yes"),
    "train/cat/0.png": ("equal", "within a split", "no"),
    "train/cat/within.bmp": ("equal", "within a split", "yes"),
    "train/dog/1.png": ("equal", "across splits", "yes"),
    "test/dog/leak.png": ("equal", "across splits", "no"),
    "val/cat/1.png": ("equal", "across classes", "yes"),
    "val/dog/other.png": ("equal", "across classes", "yes"),
}


def as_expected(findings):
    return {finding.image: (finding.problem, finding.where, finding.exclude) for finding in findings}


def test_every_kind_is_found(tree, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    data = load_image_folder(tree, Reading(8, skip_bad_files=True))
    findings = check(data)
    assert as_expected(findings) == EXPECTED
    assert len({finding.group for finding in findings if finding.group}) == 3


def test_a_stopped_check_goes_on_and_reads_only_what_it_has_not_seen(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 4)
    data = load_image_folder(tree, Reading(8, skip_bad_files=True))
    journal = tmp_path / "journal.jsonl"
    monkeypatch.setattr(processes, "THREADS", 1)
    look, calls = module.look_at, []

    def stops(paths):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(paths)
        return look(paths)

    monkeypatch.setattr(module, "look_at", stops)
    with pytest.raises(KeyboardInterrupt):
        check(data, journal=journal)
    with journal.open("a") as file:
        file.write('{"image": "cut sho')
    read = []
    monkeypatch.setattr(module, "look_at", lambda paths: read.extend(paths) or look(paths))
    assert as_expected(check(data, journal=journal)) == EXPECTED
    assert len(read) == 18 - 8
    read.clear()
    path = tree / "val" / "cat" / "1.png"
    Image.fromarray(noise(999)).save(path)
    os.utime(path, (1, 1))
    assert "val/cat/1.png" not in as_expected(check(data, journal=journal))
    assert read == [str(path)]


def test_deep_images_need_no_window(tmp_path):
    for split in SPLITS:
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            values = np.random.default_rng(0).integers(0, 4096, (8, 8)).astype(np.uint16)
            Image.fromarray(values).save(tmp_path / split / name / "a.png")
    found = as_expected(check(load_image_folder(tmp_path, Reading(8))))
    assert found["train/dog/a.png"] == ("equal", "across splits and classes", "yes")


def test_pixels_are_compared_and_not_the_numbers_of_a_palette(tmp_path):
    shades = [[value] * 3 for value in range(256)]
    grey = Image.fromarray(noise(0))
    plain = grey.convert("RGB")
    palette = Image.fromarray(noise(0), "P")
    palette.putpalette([part for shade in shades for part in shade])
    other = palette.copy()
    other.putpalette([part for shade in shades for part in (255 - shade[0], 9, 9)])
    black = palette.copy()
    black.putpalette([0] * 768)
    images = {"train/a/grey": grey, "test/a/rgb": plain, "val/b/palette": palette, "train/b/other": other,
              "train/a/black": black}  # fmt: skip
    images |= {f"{split}/{name}/own": Image.fromarray(noise(50 + 2 * number + (name == "a")))
               for number, split in enumerate(SPLITS) for name in "ab"}  # fmt: skip
    for name, image in images.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / f"{name}.png")
    found = as_expected(check(load_image_folder(tmp_path, Reading(8))))
    assert found.pop("train/a/black.png") == ("constant", "", "yes")
    assert set(found) == {"train/a/grey.png", "test/a/rgb.png", "val/b/palette.png"}
    assert set(found.values()) == {("equal", "across splits and classes", "yes")}


def test_sets_in_memory():
    images = np.stack([noise(0), noise(1), noise(0), np.full((8, 8), 3, np.uint8)])
    parts = [Split(images + np.uint8(number), np.array([0, 1, 0, 1])) for number in range(3)]
    found = as_expected(check(ImageSet("set", *parts, ("a", "b"), {})))
    assert found["set/train/2"] == ("equal", "within a split", "yes")
    assert found["set/test/3"] == ("constant", "", "yes")
    assert len(found) == 9


class TestBeforeTraining:
    def test_constant_and_equal_images_are_counted_in_a_line(self, tree):
        (tree / "train/dog/broken.png").unlink()
        data = load_image_folder(tree, Reading(8))
        said = look_before_training(data)
        assert said == [f"tree: {COUNTED}, which check-data names and --exclude leaves out"]

    def test_a_truncated_test_image_is_found(self, tree, monkeypatch):
        (tree / "train/dog/broken.png").unlink()
        path = tree / "test" / "cat" / "1.png"
        path.write_bytes(path.read_bytes()[:-40])
        data = load_image_folder(tree, Reading(8))
        total = sum(int(getattr(data, split).images.sizes.sum()) for split in SPLITS)
        for cheap in (total, int(data.test.images.sizes.sum())):
            monkeypatch.setattr(module, "CHEAP", cheap)
            with pytest.raises(ValueError, match=r"test/cat/1\.png cannot be read as an image .*--skip-bad-files"):
                look_before_training(data)
        look_before_training(load_image_folder(tree, Reading(8, skip_bad_files=True)))
        monkeypatch.setattr(module, "CHEAP", 0)
        assert look_before_training(data) == []

    def test_sets_in_memory(self):
        images = np.stack([noise(0), noise(1), np.zeros((8, 8), np.uint8)])
        data = ImageSet("set", *[Split(images, np.array([0, 1, 0]))] * 3, ("a", "b"), {})
        assert look_before_training(data)[0].startswith("set: 3 constant images and 6 equal ones (6 across splits)")
        images = [np.stack([noise(2 * number), noise(2 * number + 1)]) for number in range(3)]
        data = ImageSet("set", *[Split(part, np.array([0, 1])) for part in images], ("a", "b"), {})
        assert look_before_training(data) == []


def test_the_command_writes_a_table_that_exclude_takes(tree, tmp_path, capsys):
    table = tmp_path / "found" / "check.csv"
    main(["check-data", "--image-folder", str(tree), "--output", str(table)])
    out = capsys.readouterr().out
    assert "| tree | train | val | test |" in out
    assert "| unreadable | 1 | 0 | 0 |" in out
    assert "| equal across classes | 0 | 2 | 0 |" in out
    with table.open() as file:
        assert {row["image"] for row in csv.DictReader(file)} == set(EXPECTED)
    again = tmp_path / "again.csv"
    main(["check-data", "--image-folder", str(tree), "--output", str(again), "--exclude", str(table)])
    assert again.read_text().splitlines() == [",".join(module.COLUMNS)]
