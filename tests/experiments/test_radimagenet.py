"""Indexes of image files."""

import dataclasses
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from policy_noise.experiments.data import fingerprint, require_classes
from policy_noise.experiments.file_sets import split_of
from policy_noise.experiments.folders import load_image_folder
from policy_noise.experiments.images import Reading
from policy_noise.experiments.tables import load_radimagenet

FILES = {
    "radiology_ai/MR/knee/acl": 3,
    "radiology_ai/CT/lung/Nodule": 2,
    "radiology_ai/US/thyroid_nodule": 1,
    "radiology_ai/US/kidney": 1,
}
SPLITS = ("train", "val", "test")


def write_image(path, grey):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 10), grey, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path):
    """RadImageNet's own layout; each image's grey value is its number."""
    number = 0
    for split in SPLITS:
        rows = ["filename,label"]
        for folder, count in FILES.items():
            for index in range(count):
                number += 1
                name = f"{folder}/{split}{index}.png"
                write_image(tmp_path / name, number)
                rows.append(f"{name},{folder.rpartition('/')[2]}")
        (tmp_path / f"RadiologyAI_{split}.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_own_layout(root):
    data = load_radimagenet(root, Reading(8))
    assert data.missing == ()
    assert data.class_names == ("CT/lung/Nodule", "MR/knee/acl", "US/kidney", "US/thyroid_nodule")
    assert data.groups["modality"] == ("CT", "MR", "US", "US")
    assert data.groups["anatomy"] == ("lung", "knee", "abdomen", "thyroid")
    assert [len(part) for part in (data.train, data.val, data.test)] == [7, 7, 7]
    assert data.train.labels.tolist() == [1, 1, 1, 0, 0, 3, 2]
    images, kept = data.val.read([2, 0])
    assert images.shape == (2, 8, 8)
    assert images[:, 0, 0].tolist() == [10, 8]  # val images are numbered from 8
    assert kept.tolist() == [2, 0]
    assert data.train.images.path(0) == str(root / "radiology_ai/MR/knee/acl/train0.png")


def test_grey_as_three_channels(root):
    data = load_radimagenet(root, Reading(8, in_chans=3))
    images, _ = data.train.read([0])
    assert images.shape == (1, 8, 8, 3)
    assert (images == 1).all()


@pytest.mark.parametrize("lacking", ["radiology_ai", "RadiologyAI_val.csv"])
def test_missing_parts_say_how_to_ask_for_access(root, lacking):
    (root / lacking).rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=rf"{lacking} does not exist.*request.*radimagenet\.com"):
        load_radimagenet(root, Reading(8))


def test_missing_files_are_named_and_skipped_only_when_asked(root):
    (root / "radiology_ai/MR/knee/acl/train1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 file is missing.*train1\.png.*--skip-bad-files"):
        load_radimagenet(root, Reading(8))
    data = load_radimagenet(root, Reading(8, skip_bad_files=True))
    assert data.missing == (str(root / "radiology_ai/MR/knee/acl/train1.png"),)
    assert len(data.train) == 6
    assert data.train.read(range(6))[0][:, 0, 0].tolist() == [1, 3, 4, 5, 6, 7]
    assert data.train.labels.tolist() == [1, 1, 0, 0, 3, 2]


def test_corrupt_files_are_named_and_skipped_only_when_asked(root):
    (root / "radiology_ai/MR/knee/acl/train1.png").write_bytes(b"\x89PNG broken")
    data = load_radimagenet(root, Reading(8))
    with pytest.raises(ValueError, match=r"train1\.png cannot be read as an image"):
        data.train.read([0, 1])
    data = load_radimagenet(root, Reading(8, skip_bad_files=True))
    with pytest.warns(UserWarning, match=r"train1\.png is left out"):
        images, kept = data.train.read([0, 1, 2])
    assert len(images) == 2
    assert kept.tolist() == [0, 2]
    with pytest.warns(UserWarning, match=r"train1\.png is left out"):
        assert data.train.read([1])[0].shape == (0, 8, 8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,class\n", "must have the columns filename and label"),
        ("filename,label\n", "names no files"),
        ("filename,label\nx.png,acl\n", r"line 2: filename must be a path"),
        ("filename,label\nradiology_ai/MR/knee/acl/train0.png\n", "line 2: the column label is empty"),
        ("filename,label\nradiology_ai/MR/knee/acl/train0.png,acl\n", "the train split has no image of"),
    ],
)
def test_bad_tables(root, text, message):
    (root / "RadiologyAI_train.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_radimagenet(root, Reading(8))


def test_image_folder(tmp_path):
    for split in SPLITS:
        write_image(tmp_path / split / "MR__knee__acl" / "b.png", 9)
        write_image(tmp_path / split / "CT__lung__nodule" / "a.PNG", 5)
        (tmp_path / split / "CT__lung__nodule" / "notes.txt").write_text("no image")
    data = load_image_folder(tmp_path, Reading(8))
    assert data.class_names == ("CT__lung__nodule", "MR__knee__acl")
    assert data.groups == {"modality": ("CT", "MR"), "anatomy": ("lung", "knee")}
    assert data.test.read([0, 1])[0][:, 0, 0].tolist() == [5, 9]


def test_image_folder_of_other_names_has_no_groups(tmp_path):
    for split in SPLITS:
        for name in ("cat", "dog"):
            write_image(tmp_path / split / name / "a.png", 5)
    assert load_image_folder(tmp_path, Reading(8)).groups == {}


def test_bad_image_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="train does not exist"):
        load_image_folder(tmp_path, Reading(8))
    for split in SPLITS:
        (tmp_path / split / "empty").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"train.empty holds no images"):
        load_image_folder(tmp_path, Reading(8))
    for split in SPLITS:
        (tmp_path / split / "empty").rmdir()
    with pytest.raises(ValueError, match="train is empty"):
        load_image_folder(tmp_path, Reading(8))
    for split in SPLITS:
        write_image(tmp_path / split / "a" / "x.png", 1)
    write_image(tmp_path / "train" / "b" / "x.png", 1)
    with pytest.raises(ValueError, match=r"the val split has no image of \['b'\]"):
        load_image_folder(tmp_path, Reading(8))


def test_index_holds_few_bytes_an_image(tmp_path):
    folders = [f"radiology_ai/MR/knee/label{number % 165}" for number in range(20_000)]
    names = [f"img{number:07d}.png" for number in range(20_000)]
    kinds = [(folder, "", "") for folder in folders]
    files = pd.DataFrame({"folder": folders, "name": names, "kind": kinds})
    split = split_of(files, tmp_path, sorted(set(kinds)), Reading(8))
    assert (split.images.nbytes + split.labels.nbytes) / len(split) < 36


def test_fingerprint_of_files_is_of_paths_sizes_and_labels(root, tmp_path_factory):
    first = fingerprint(load_radimagenet(root, Reading(8)))
    copy = tmp_path_factory.mktemp("copy") / "moved"
    shutil.copytree(root, copy)
    assert fingerprint(load_radimagenet(copy, Reading(8))) == first
    path = copy / "radiology_ai/MR/knee/acl/train1.png"
    path.write_bytes(path.read_bytes() + b"\0")
    assert fingerprint(load_radimagenet(copy, Reading(8))) != first


def test_a_class_of_bad_files_alone_is_named_before_training(root):
    for index in range(3):
        (root / f"radiology_ai/MR/knee/acl/val{index}.png").write_bytes(b"broken")
    (root / "radiology_ai/CT/lung/Nodule/val0.png").write_bytes(b"broken")
    data = load_radimagenet(root, Reading(8, skip_bad_files=True))
    with pytest.raises(ValueError, match=r"the val split has no image of 'MR/knee/acl' that can be read: all 3 files"):
        require_classes(data)


def test_decompression_bombs_are_bad_files(root, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # the images have 120
    data = load_radimagenet(root, Reading(8))
    with pytest.raises(ValueError, match=r"train0\.png cannot be read as an image.*decompression bomb"):
        data.train.read([0])
    data = load_radimagenet(root, Reading(8, skip_bad_files=True))
    with pytest.warns(UserWarning, match=r"train0\.png is left out"):
        assert len(data.train.read([0])[0]) == 0


def test_folders_are_walked_and_litter_is_left_out(tmp_path):
    for split in SPLITS:
        for number, name in enumerate(("a.png", "deep/b.webp", "c.gif", "d.pgm", "e.ppm")):
            write_image(tmp_path / split / "cat" / name, 10 * number)
        for name in (".ipynb_checkpoints/x.png", "cat/.hidden/x.png", "__MACOSX/x.png", "cat/__MACOSX/x.png"):
            write_image(tmp_path / split / name, 1)
        (tmp_path / split / "cat" / "._a.png").write_bytes(b"\0\5\x16\7")
        (tmp_path / split / "cat" / "Thumbs.db").write_bytes(b"no image")
    data = load_image_folder(tmp_path, Reading(8))
    assert data.class_names == ("cat",)
    assert [data.train.images.path(i).rpartition("/")[2] for i in range(5)] == [
        "a.png",
        "c.gif",
        "d.pgm",
        "b.webp",
        "e.ppm",
    ]
    assert np.abs(data.train.read(range(5))[0][:, 0, 0].astype(int) - [0, 20, 30, 10, 40]).max() <= 1
    assert len(fingerprint(data)) == 64
    kept = data.train.take(np.arange(1, 5))
    assert [kept.images.path(i) for i in range(4)] == [data.train.images.path(i) for i in range(1, 5)]


def table(root, text, encoding="utf-8"):
    (root / "RadiologyAI_train.csv").write_bytes(text.encode(encoding))


def test_tables_of_windows(root):
    text = (root / "RadiologyAI_train.csv").read_text()
    before = load_radimagenet(root, Reading(8)).train
    table(root, "\ufeff" + text.replace("/", "\\").replace("\n", "\r\n") + "\r\n,\r\n\r\n")
    after = load_radimagenet(root, Reading(8)).train
    assert [after.images.path(i) for i in range(7)] == [before.images.path(i) for i in range(7)]


@pytest.mark.parametrize(
    ("change", "encoding", "message"),
    [
        (lambda text: text.replace("acl", "né"), "latin-1", r"RadiologyAI_train\.csv must be UTF-8"),
        (lambda text: text.replace(",", ";"), "utf-8", r"RadiologyAI_train\.csv must be separated by commas"),
        (lambda text: text + "radiology_ai/0.png,x\n", "utf-8", r"line 9: filename must be a path"),
        (lambda text: text.replace("acl/train0", "acl/test0"), "utf-8", r"test0\.png is in train and in test"),
    ],
)
def test_tables_that_are_refused(root, change, encoding, message):
    table(root, change((root / "RadiologyAI_train.csv").read_text()), encoding)
    with pytest.raises(ValueError, match=message):
        load_radimagenet(root, Reading(8))


def test_exclusions_settle_a_path_in_two_splits_and_a_missing_file(root):
    shared, gone = "radiology_ai/MR/knee/acl/test0.png", "radiology_ai/MR/knee/acl/gone.png"
    whole = load_radimagenet(root, Reading(8))
    text = (root / "RadiologyAI_train.csv").read_text()
    label = text.splitlines()[1].rpartition(",")[2]
    table(root, f"{text}{shared},{label}\n{gone},{label}\n")
    data = load_radimagenet(root, Reading(8), excluded={shared, gone})
    assert not data.missing
    assert data.excluded == 3
    assert (len(data.train), len(data.test)) == (len(whole.train), len(whole.test) - 1)


def test_names_that_are_not_utf_8(root):
    path = os.fsencode(root / "radiology_ai/MR/knee/acl") + b"/\xe9.png"
    data = load_radimagenet(root, Reading(8))
    assert os.fsencode(dataclasses.replace(data.train.images, names=np.array([b"\xe9.png"])).path(0)) == path


def test_a_path_twice_in_a_split_is_taken_once_and_said(root):
    text = (root / "RadiologyAI_train.csv").read_text()
    table(root, text + text.splitlines()[1] + "\n" + text.splitlines()[2].replace("/acl/", "/./acl/") + "\n")
    data = load_radimagenet(root, Reading(8))
    assert len(data.train) == 7
    assert data.notes == (
        f"train: 2 entries name a file again, such as {data.train.images.path(0)}: each is taken once",
    )


class TestLabels:
    def relabel(self, root, change):
        for split in SPLITS:
            path = root / f"RadiologyAI_{split}.csv"
            header, *rows = path.read_text().splitlines()
            path.write_text("\n".join([header, *(",".join(change(*row.split(","))) for row in rows)]) + "\n")

    def test_other_spellings_agree(self, root):
        self.relabel(root, lambda file, label: (file, label.upper().replace("_", " ")))
        assert load_radimagenet(root, Reading(8)).num_classes == 4

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda file, label: (file, "us" if "/US/" in file else label), "label 'us' stands for the folders"),
            (lambda file, label: (file, f"{label}{file[-5]}"), "folder 'radiology_ai/CT/lung/Nodule' has the labels"),
            (
                lambda file, label: (file, {"acl": "kidney", "kidney": "acl"}.get(label, label)),
                "which is another folder",
            ),
        ],
    )
    def test_a_table_that_contradicts_the_folders_is_refused(self, root, change, message):
        self.relabel(root, change)
        with pytest.raises(ValueError, match=message + r".*--labels folders or --labels table says which rules"):
            load_radimagenet(root, Reading(8))

    def test_one_may_say_which_rules(self, root):
        self.relabel(root, lambda file, label: (file, "us" if "/US/" in file else "other"))
        data = load_radimagenet(root, Reading(8), labels="folders")
        assert data.num_classes == 4
        data = load_radimagenet(root, Reading(8), labels="table")
        assert data.class_names == ("other", "us")
        assert data.groups == {"modality": ("several", "US"), "anatomy": ("several", "several")}
        assert data.train.labels.tolist() == [0, 0, 0, 0, 0, 1, 1]

    def test_columns_for_groups(self, root):
        for split in SPLITS:
            path = root / f"RadiologyAI_{split}.csv"
            header, *rows = path.read_text().splitlines()
            path.write_text("\n".join([f"{header},patient", *(f"{row},p{n}" for n, row in enumerate(rows))]) + "\n")
        assert load_radimagenet(root, Reading(8), group="patient").val.groups.tolist() == [f"p{n}" for n in range(7)]
        assert load_radimagenet(root, Reading(8), group=r"/(train|val|test)\d").val.groups.tolist() == ["val"] * 7


def test_a_table_in_utf_16_without_a_mark_is_named(root):
    text = (root / "RadiologyAI_train.csv").read_text()
    table(root, text, "utf-16-le")
    with pytest.raises(ValueError, match=r"RadiologyAI_train\.csv must be UTF-8, and .*UTF-16") as caught:
        load_radimagenet(root, Reading(8))
    assert "\0" not in str(caught.value)
