"""What belongs together, such as the images of a patient."""

import argparse

import numpy as np
import pytest
from PIL import Image

from policy_noise.experiments.groups import Groups, crossing, crossing_note
from policy_noise.experiments.image_check import check
from policy_noise.experiments.sources import add_source_arguments, open_joined, open_tested

SPLITS = ("train", "val", "test")


def parse(*words):
    parser = argparse.ArgumentParser()
    add_source_arguments(parser)
    return parser.parse_args([str(word) for word in words])


@pytest.fixture
def tree(tmp_path):
    """Three patients a class and split, of which p0 is everywhere."""
    for number, split in enumerate(SPLITS):
        for name in ("cat", "dog"):
            for patient in (0, 1 + 2 * number, 2 + 2 * number):
                path = tmp_path / "tree" / split / name / f"p{patient}_x.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.random.default_rng().integers(0, 256, (8, 8), np.uint8)).save(path)
    return tmp_path / "tree"


def test_a_pattern_reads_groups_out_of_paths(tree, capsys):
    data = open_joined(parse("--image-folder", tree, "--group", r"/(p\d+)_"), 8, 1)
    assert data.val.groups.tolist() == ["p0", "p3", "p4"] * 2
    assert data.val.take(np.array([1, 5])).groups.tolist() == ["p3", "p4"]
    assert crossing(data) == {"p0": SPLITS}
    assert (
        "tree: 1 of 7 groups are in several splits, such as 'p0' in train and val and test" in capsys.readouterr().err
    )
    found = [finding for finding in check(data) if finding.problem == "group"]
    assert {(finding.image, finding.exclude) for finding in found} == {
        (f"{split}/{name}/p0_x.png", "no" if split == "test" else "yes") for split in SPLITS for name in ("cat", "dog")
    }


@pytest.mark.parametrize(("pattern", "message"), [
    (r"(p\d+", "is no regular expression"), (r"p\d+", "must have one part in parentheses"),
    (r"(q\d+)", r"does not match test|does not match train"),
])  # fmt: skip
def test_patterns_that_are_refused(tree, pattern, message):
    with pytest.raises(ValueError, match=message):
        open_joined(parse("--image-folder", tree, "--group", pattern), 8, 1)


def test_a_site_of_another_kind_goes_without_groups_aloud(tree, tmp_path):
    content = {f"{split}_images": np.zeros((2, 8, 8), np.uint8) for split in SPLITS}
    np.savez(tmp_path / "set.npz", **content, **{f"{split}_labels": np.arange(2) for split in SPLITS})
    for source, group, kind in ((tree, "patient", "npz files"), (tmp_path / "set.npz", r"/(p\d+)_", "paths")):
        data = open_tested(str(source), parse("--group", group), 8, 1)
        assert data.test.groups is None
        assert f"--group {group} is for {kind}, so its images have no groups" in data.notes[0]
    data = open_tested(str(tree), parse("--group", r"/(p\d+)_"), 8, 1)
    assert data.test.groups[0].startswith("p")


def test_groups_that_were_not_given_are_hinted_at(tree, tmp_path, capsys):
    open_joined(parse("--image-folder", tree), 8, 1)
    assert "tree: 'p0' is in the paths of several splits, as are 0 others like it" in capsys.readouterr().err
    for split in ("val", "test"):
        for name in ("cat", "dog"):
            (tree / split / name / "p0_x.png").unlink()
    open_joined(parse("--image-folder", tree), 8, 1)
    assert "paths of several splits" not in capsys.readouterr().err
    content = {f"{split}_images": np.zeros((2, 8, 8), np.uint8) for split in SPLITS}
    content |= {f"{split}_labels": np.arange(2) for split in SPLITS} | {
        f"{split}_patient": np.arange(2) for split in SPLITS
    }
    np.savez(tmp_path / "set.npz", **content)
    open_joined(parse("--npz", tmp_path / "set.npz"), 8, 1)
    assert "set: it has the key patient; --group patient keeps such" in capsys.readouterr().err


def test_medmnist_has_no_groups(tmp_path):
    with pytest.raises(ValueError, match="--group names a key"):
        open_joined(parse("--medmnist", "pneumoniamnist", "--root", tmp_path, "--group", "patient"), 8, 1)


def test_a_whole_array_is_split_by_its_groups(tmp_path):
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 5)
    content = {"images": rng.integers(0, 256, (200, 8, 8), np.uint8), "labels": patients % 2, "patient": patients}
    np.savez(tmp_path / "set.npz", **content)
    data = open_joined(parse("--npz", tmp_path / "set.npz", "--group", "patient"), 8, 1)
    assert crossing(data) == {}
    assert crossing_note(data) == []
    assert [len(part) for part in (data.train, data.val, data.test)] == [140, 20, 40]
    assert all(set(part.labels) == {0, 1} for part in (data.train, data.val, data.test))
    alone = open_joined(parse("--npz", tmp_path / "set.npz"), 8, 1)
    assert alone.train.groups is None
    with pytest.raises(ValueError, match="has no key 'scan', which --group scan asks for"):
        open_joined(parse("--npz", tmp_path / "set.npz", "--group", "scan"), 8, 1)


def test_arrays_with_splits_have_a_key_a_split(tmp_path):
    content = {}
    for number, split in enumerate(SPLITS):
        content[f"{split}_images"] = np.random.default_rng(number).integers(0, 256, (4, 8, 8), np.uint8)
        content[f"{split}_labels"] = np.arange(4) % 2
        content[f"{split}_patient"] = np.array([[number], [number], [9], [9]])
    for name in ("one", "two"):
        np.savez(tmp_path / f"{name}.npz", **content)
    data = open_joined(parse("--npz", tmp_path / "one.npz", tmp_path / "two.npz", "--group", "patient"), 8, 1)
    assert data.test.groups.tolist() == [f"{name}/{patient}" for name in ("one", "two") for patient in (2, 2, 9, 9)]
    assert set(crossing(data)) == {"one/9", "two/9"}


def test_a_pattern_needs_one_part():
    assert Groups(r"(p\d+)_").of("train/cat/p23_4.png") == "p23"
