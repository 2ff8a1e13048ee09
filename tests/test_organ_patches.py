"""The embedded organ patches and the script that builds them."""

import importlib.util
import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "examples" / "data"
FILE = DATA / "organpatches.npz"
PREFIXES = ("", "ct2_", "mr_")
SPLITS = ("train", "val", "test")


@pytest.fixture(scope="module")
def builder():
    """The script, loaded from its path, because examples/ is not a package."""
    spec = importlib.util.spec_from_file_location("build_organ_patches", ROOT / "examples" / "build_organ_patches.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def data():
    with np.load(FILE, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


@pytest.fixture
def volume():
    """36 slices of two organs, the second only in the upper two thirds; the grey value tells the slice."""
    labels = np.zeros((36, 40, 48), np.uint8)
    labels[:, 5:15, 5:15] = 1
    labels[12:, 20:30, 30:40] = 10
    rng = np.random.default_rng(0)
    grey = (np.arange(36)[:, None, None] * 6 + rng.integers(0, 6, labels.shape)).astype(np.uint8)
    return grey, labels


# --- The committed file -----------------------------------------------------------------------------------------------


def test_file_is_small():
    assert FILE.stat().st_size <= 3_000_000


def test_keys(data):
    expected = {"names"} | {p + "classes" for p in PREFIXES}
    expected |= {f"{p}{s}_{kind}" for p in PREFIXES for s in SPLITS for kind in ("images", "labels", "slices")}
    assert set(data) == expected
    assert data["names"].dtype.kind == "U"


@pytest.mark.parametrize("prefix", PREFIXES)
def test_shapes_and_labels(data, prefix):
    for split in SPLITS:
        images, labels, slices = (data[f"{prefix}{split}_{kind}"] for kind in ("images", "labels", "slices"))
        assert (images.dtype, labels.dtype, slices.dtype) == (np.uint8, np.uint8, np.int16)
        assert images.shape == (len(labels), 32, 32)
        assert labels.shape == (len(images), 1)
        assert slices.shape == (len(images),)
        assert labels.max() < len(data["names"])
        # Every class of a task is in every one of its splits, in equal numbers.
        classes, counts = np.unique(labels, return_counts=True)
        np.testing.assert_array_equal(classes, data[prefix + "classes"])
        assert len(set(counts)) == 1
        assert images.std(axis=(1, 2)).min() > 0


def test_pretraining_task_has_every_organ(data):
    np.testing.assert_array_equal(data["classes"], np.arange(len(data["names"])))
    for prefix in PREFIXES[1:]:
        assert set(data[prefix + "classes"]) < set(data["classes"])


@pytest.mark.parametrize("prefix", PREFIXES)
def test_two_unused_slices_lie_between_splits(data, prefix):
    used = [np.unique(data[f"{prefix}{split}_slices"]).astype(int) for split in SPLITS]
    for i, first in enumerate(used):
        for second in used[i + 1 :]:
            assert np.abs(first[:, None] - second).min() > 2


@pytest.mark.parametrize("prefix", PREFIXES)
def test_every_class_of_a_split_is_seen_in_two_slices(data, prefix):
    for split in SPLITS:
        labels, slices = data[f"{prefix}{split}_labels"][:, 0], data[f"{prefix}{split}_slices"]
        assert min(len(np.unique(slices[labels == c])) for c in np.unique(labels)) >= 2


def test_no_patch_occurs_twice(data):
    patches = [image.tobytes() for p in PREFIXES for s in SPLITS for image in data[f"{p}{s}_images"]]
    assert len(set(patches)) == len(patches)


def test_names_match_the_script(data, builder):
    assert data["names"].tolist() == list(builder.ORGANS)


def test_readme_tells_what_the_file_holds(data, builder):
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    for line in builder.describe(data).splitlines():
        assert line in readme
    assert builder.digest(data) in readme


def test_notice_names_the_source(builder):
    notice = (DATA / "NOTICE").read_text(encoding="utf-8")
    for recipe in builder.RECIPES:
        assert recipe.image in notice
        assert recipe.labels in notice
    assert "Apache" in notice
    assert re.search(r"not\s+(an\s+)?expert", notice)


# --- The script -------------------------------------------------------------------------------------------------------


def test_merge_labels(builder):
    label_map = {
        1: "kidney_left",
        2: "kidney_right",
        3: "brain",
        4: "vertebrae_L3",
        5: "vertebrae_S1",
        6: "kidney_cyst_left",
    }
    organs = list(builder.ORGANS)
    merged = builder.merge_labels(np.arange(7, dtype=np.uint8), label_map)
    kidney, vertebra, sacrum = (organs.index(name) + 1 for name in ("kidney", "vertebra", "sacrum"))
    assert merged.tolist() == [0, kidney, kidney, 0, vertebra, sacrum, 0]


def test_label_maps_are_read_and_not_run(builder):
    code = "raise SystemExit\nclass_map = {'total': {1: 'spleen'}}\nclass_map['more'] = class_map['total']\n"
    assert builder.parse_label_maps(code) == {"total": {1: "spleen"}}
    with pytest.raises(ValueError, match="class_map"):
        builder.parse_label_maps("other = {}")


def test_to_grey(builder):
    image = np.array([-1000.0, -160.0, 42.0, 240.0, 3000.0])
    assert builder.to_grey(image, -160.0, 240.0).tolist() == [0, 0, 129, 255, 255]
    with pytest.raises(ValueError, match="empty"):
        builder.to_grey(np.zeros(2), 1.0, 1.0)


def test_resampling_keeps_means_and_label_places(builder):
    rng = np.random.default_rng(0)
    image, labels = rng.normal(size=(2, 30, 45)), np.zeros((2, 30, 45), np.uint8)
    labels[:, 10:20, 15:30] = 3
    small, small_labels = builder.resample_in_plane(image, labels, 1.0, 3.0)
    np.testing.assert_allclose(small, image.reshape(2, 10, 3, 15, 3).mean(axis=(2, 4)), atol=1e-5)
    assert small_labels.shape == small.shape
    assert small_labels[:, 4:6, 6:9].min() == 3
    # A fractional step still averages: a constant does not change.
    uneven, _ = builder.resample_in_plane(np.full((1, 50, 50), 7.0), np.zeros((1, 50, 50), np.uint8), 0.9765625, 3.0)
    assert uneven.shape == (1, 16, 16)
    np.testing.assert_allclose(uneven, 7.0)
    same, _ = builder.resample_in_plane(image, labels, 3.0, 3.0)
    assert same is image


def test_interior_drops_borders(builder):
    labels = np.zeros((1, 6, 7), np.uint8)
    labels[0, 1:5, 1:4], labels[0, 1:5, 4:6] = 1, 2
    expected = np.zeros_like(labels)
    expected[0, 2:4, 2] = 1
    np.testing.assert_array_equal(builder.interior(labels), expected)


@pytest.mark.parametrize("gap", [0, 1, 2, 4])
def test_split_slices_keeps_its_gap(builder, volume, gap):
    counts = builder.count_per_slice(volume[1])
    split = builder.split_slices(counts, minimum=(10, 10, 10), gap=gap)
    assert set(split) == ({-1, 0, 1, 2} if gap else {0, 1, 2})
    used = np.flatnonzero(split >= 0)
    changes = np.diff(used)[np.diff(split[used]) != 0]
    assert changes.min() > gap
    kept = builder.kept_organs(counts, split, (10, 10, 10))
    assert np.flatnonzero(kept).tolist() == [0, 9]


def test_split_slices_repeats_its_blocks_only_when_it_must(builder):
    counts = np.full((80, 1), 50)
    once = builder.split_slices(counts)
    assert np.count_nonzero(np.diff(once)) == 4  # Train, gap, val, gap, test or a shift that wraps none of them.
    ends = np.zeros((80, 2), int)
    ends[:25, 0] = ends[55:, 1] = 50
    repeated = builder.split_slices(ends)
    assert builder.kept_organs(ends, repeated, (1, 1, 1)).all()
    assert np.count_nonzero(np.diff(repeated)) > 4


def test_split_slices_refuses_too_few(builder):
    with pytest.raises(ValueError, match="too few"):
        builder.split_slices(np.ones((9, 1), int))
    assert set(builder.split_slices(np.ones((10, 1), int))) == {-1, 0, 1, 2}


def test_cut_patches_are_centred_and_padded(builder):
    image = np.arange(1, 1 + 2 * 40 * 40).reshape(2, 40, 40)
    patches = builder.cut_patches(image, np.array([[1, 20, 18], [0, 0, 39]]))
    np.testing.assert_array_equal(patches[0], image[1, 4:36, 2:34])
    assert patches[1, 16, 16] == image[0, 0, 39]
    assert patches[1, :16].max() == patches[1, :, 17:].max() == 0


def test_build_task(builder, volume):
    amounts = (20, 5, 10)
    task = builder.build_task(*volume, amounts, np.random.default_rng(3))
    assert task["classes"].tolist() == [0, 9]
    for split, amount in zip(SPLITS, amounts, strict=True):
        images, labels, slices = (task[f"{split}_{kind}"] for kind in ("images", "labels", "slices"))
        assert np.bincount(labels[:, 0])[[0, 9]].tolist() == [amount, amount]
        np.testing.assert_array_equal(images[:, 16, 16] // 6, slices)
        # Spread evenly: no slice of an organ gives two patches more than another.
        for organ in (0, 9):
            spread = np.unique(slices[labels[:, 0] == organ], return_counts=True)[1]
            assert spread.max() - spread.min() <= 1
    again = builder.build_task(*volume, amounts, np.random.default_rng(3))
    other = builder.build_task(*volume, amounts, np.random.default_rng(4))
    assert builder.digest(task) == builder.digest(again) != builder.digest(other)


def test_build_task_refuses_an_empty_volume(builder):
    with pytest.raises(ValueError, match="no organ"):
        builder.build_task(
            np.zeros((20, 8, 8), np.uint8), np.zeros((20, 8, 8), np.uint8), (1, 1, 1), np.random.default_rng()
        )


def test_written_bytes_depend_on_the_arrays_alone(builder, tmp_path):
    arrays = {"a": np.arange(6, dtype=np.int16).reshape(2, 3), "names": np.array(["x", "yz"])}
    first, second = tmp_path / "new" / "first.npz", tmp_path / "second.npz"
    builder.write_npz(first, arrays)
    second.write_bytes(b"old")
    builder.write_npz(second, arrays)
    assert first.read_bytes() == second.read_bytes()
    assert builder.digest(builder.read_npz(first)) == builder.digest(arrays)
    assert [path.name for path in first.parent.iterdir()] == ["first.npz"]


def test_a_failed_write_leaves_the_old_file(builder, tmp_path):
    path = tmp_path / "set.npz"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="pickle"):
        builder.write_npz(path, {"bad": np.array([{}], dtype=object)})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_sources_are_read_alike_and_gaps_are_named(builder, tmp_path):
    names = [builder.LABEL_MAPS] + [n for r in builder.RECIPES for n in (r.image, r.labels)]
    contents = {name + "1" * name.endswith("/"): name.encode() for name in names}
    archive = tmp_path / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in {**contents, "tests/other": b""}.items():
            info = tarfile.TarInfo(f"top/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
            path = tmp_path / "top" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    assert builder.read_members(archive) == builder.read_members(tmp_path / "top") == contents
    (tmp_path / "top" / builder.LABEL_MAPS).unlink()
    with pytest.raises(FileNotFoundError, match=r"map_to_binary\.py"):
        builder.read_members(tmp_path / "top")


def test_missing_reader_names_the_extra(builder):
    with pytest.raises(ImportError, match=r"pip install policy_noise\[data\]"):
        builder._need("no_such_reader")


def test_command_line(builder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        builder.main([])
    with pytest.raises(SystemExit):
        builder.main(["--check", "--gap", "-1"])
    assert builder.main(["--sdist", str(tmp_path / "none.tar.gz"), "--output", str(tmp_path / "out.npz")]) == 1
    (tmp_path / "bad.tar.gz").write_bytes(b"no archive")
    assert builder.main(["--sdist", str(tmp_path / "bad.tar.gz"), "--output", str(tmp_path / "out.npz")]) == 1
    assert "error:" in capsys.readouterr().err
    assert not (tmp_path / "out.npz").exists()


def test_check_tells_a_leak_from_none(builder, volume):
    pytest.importorskip("sklearn")
    arrays = {"names": np.array(list(builder.ORGANS))}
    for prefix in PREFIXES:
        task = builder.build_task(*volume, (12, 4, 6), np.random.default_rng(0))
        arrays |= {prefix + key: value for key, value in task.items()}
    table = builder.check(arrays, draws=1)
    assert len(table.splitlines()) == 2 + 3 * 3 + 2
    assert all(0.0 <= float(line.split("|")[-2]) <= 1.0 for line in table.splitlines()[2:])
