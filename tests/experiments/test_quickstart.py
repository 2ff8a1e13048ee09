"""The first command of the README, with as little training as it allows, on every sixth image."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from policy_noise.experiments.commands import main, quickstart
from policy_noise.experiments.quickstart import Outcome, table


@pytest.fixture(autouse=True, scope="module")
def _fewer_images(tmp_path_factory):
    with np.load(quickstart.DATA) as file:
        arrays = {key: file[key] for key in file.files}
    for key in arrays:
        if key.endswith(("_images", "_labels")) and not key.startswith(("ct2_", "mr_")):
            arrays[key] = arrays[key][::6]
    path = tmp_path_factory.mktemp("data") / "organpatches.npz"
    np.savez(path, **arrays)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "DATA", path)
        yield


def start(folder, jobs):
    main(["quickstart", "--output", str(folder), "--seeds", "1", "--epochs", "1", "--jobs", str(jobs)])


@pytest.fixture(scope="module")
def in_turn(tmp_path_factory):
    """The folder that one process wrote."""
    folder = tmp_path_factory.mktemp("quickstart")
    start(folder, 1)
    return folder


def test_table_and_pictures(in_turn):
    body, _, origin = (in_turn / "table.md").read_text().partition("\n\n")
    assert origin.startswith("one seed, so no intervals; 1 + 1 epochs of test_resnet")
    assert "--seeds 1 --epochs 1" in origin
    rows = [line.split("|") for line in body.splitlines()[2:]]
    assert [row[2].strip() for row in rows] == ["conventional", "frozen noise", "policy noise"] * 4
    assert all(0 < float(row[3]) < 1 for row in rows)
    for name in ("gallery.png", "training.png"):
        with Image.open(in_turn / name) as picture:
            assert picture.width > 900
            assert len(picture.convert("RGB").getcolors(10**6)) > 100


def test_trainings_side_by_side_give_the_same_files_as_in_turn(tmp_path, in_turn, capsys):
    start(tmp_path, 2)
    printed = capsys.readouterr().out
    assert "3 trainings of 1 + 1 epochs, 2 at a time" in printed
    assert (tmp_path / "table.md").read_text() in printed
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["gallery.png", "table.md", "training.png"]
    assert [name for name in files if (tmp_path / name).read_bytes() != (in_turn / name).read_bytes()] == []


def test_intervals_of_scores_end_at_one():
    outcomes = {
        method: [Outcome([], {"task": {"f1": f1, "balanced_accuracy": 0.5}}) for f1 in (0.9, 1.0)]
        for method in ("conventional", "frozen", "policy")
    }
    first = table(outcomes).splitlines()[2]
    assert [cell.strip() for cell in first.split("|")[3:6]] == [
        "0.950 [0.315, 1.000]",
        "0.500 [0.500, 0.500]",
        "+0.000 [+0.000, +0.000]",
    ]


def die(index, training):
    os._exit(1)


def test_a_worker_that_dies_ends_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "_work", die)
    with pytest.raises(SystemExit, match=r"error: a process ended before its run did.*try fewer --jobs"):
        start(tmp_path, 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["seeds", "epochs", "jobs"])
def test_refuses_none(tmp_path, name):
    with pytest.raises(SystemExit, match=f"--{name} must be at least 1, got 0"):
        main(["quickstart", "--output", str(tmp_path), f"--{name}", "0"])


def test_a_missing_data_set_says_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(quickstart, "DATA", Path("nowhere.npz"))
    with pytest.raises(SystemExit, match=r"nowhere\.npz does not exist: run the quickstart from a clone"):
        start(tmp_path, 1)
