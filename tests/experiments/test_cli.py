"""The stages' command lines, from files to pages, and their complaints."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from policy_noise.experiments import cli

TINY = ["epochs=2", "batch_size=8", "image_size=16", "load_size=16"]


def start(monkeypatch, stage, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{stage}.py", *map(str, arguments)])
    getattr(cli, stage)()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two sets, of two and of three classes."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for name, classes in (("one", 2), ("two", 3)):
        content = {}
        for split in ("train", "val", "test"):
            labels = np.arange(24) % classes
            grey = (labels * 160 // classes)[:, None, None]
            content[f"{split}_images"] = (rng.integers(0, 60, (24, 16, 16)) + grey).astype(np.uint8)
            content[f"{split}_labels"] = labels[:, None]
        np.savez(folder / f"{name}.npz", **content)
    return folder


def test_all_stages(tmp_path, monkeypatch, capsys, files):
    one, two = files / "one.npz", files / "two.npz"
    heated, tuned = tmp_path / "heated", tmp_path / "tuned"
    start(monkeypatch, "pretrain", "--npz", one, two, "--output", heated, "--noise", "policy", "--set", *TINY)
    start(monkeypatch, "finetune", "--init", heated, "--npz", one, "--output", tuned, "--set", *TINY)
    start(monkeypatch, "average", "--run", tuned, "--last", "2")
    start(monkeypatch, "evaluate", "--model", tuned / "averaged.safetensors", "--npz", one)
    start(monkeypatch, "transfer", "--init", f"policy={heated}", "random", "--npz", two, "--output",
          tmp_path / "transfer", "--set", "shots=[6, 12]", "trials=2", "image_size=16")  # fmt: skip

    assert load_file(heated / "model.safetensors")["fc.weight"].shape[0] == 5
    assert load_file(tuned / "model.safetensors")["fc.weight"].shape[0] == 2
    averaged = load_file(tuned / "averaged.safetensors")["fc.weight"]
    assert not averaged.equal(load_file(tuned / "model.safetensors")["fc.weight"])
    scores = json.loads((heated / "scores.json").read_text())
    assert [group["group"] for group in scores["groups"]["set"]] == ["one", "two"]
    assert scores["scores"]["medmnist_acc"] == pytest.approx(scores["scores"]["top1"])
    assert (tuned / "scores-averaged.json").is_file()
    printed = capsys.readouterr().out
    assert "| two | policy noise |" in printed
    assert "| two | from scratch |" in printed
    for folder in (heated, tuned, tmp_path / "transfer"):
        page = (folder / "report.html").read_text()
        assert page.count("data:image/png;base64,") >= 2
        assert "http" not in page.replace("http-equiv", "")  # self-contained
    page = (heated / "report.html").read_text()
    assert "Masks over training" in page
    assert "two/class 2" in page

    (heated / "report.html").unlink()
    start(monkeypatch, "report", heated)
    assert (heated / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--npz", "nowhere.npz"], r"nowhere\.npz does not exist"),
        ([], "exactly one of --npz, --medmnist, --radimagenet, --image-folder"),
        (["--npz", "a.npz", "--image-folder", "b"], "exactly one of"),
        (["--radimagenet", "nowhere"], r"nowhere does not exist.*radimagenet\.com"),
        (["--image-folder", "nowhere"], "train does not exist"),
        (["--medmnist", "pneumoniamnist", "--root", "nowhere"], "--download"),
        (["--npz", "ONE", "--set", "epoch=2"], "--set takes NAME=VALUE"),
        (["--npz", "ONE", "--set", "model=resnet9000"], "resnet9000"),
        (["--npz", "ONE", "--set", "batch_size=25"], "needs 25 training images, got 24"),
    ],
)
def test_bad_input_before_any_training(tmp_path, monkeypatch, files, arguments, message):
    arguments = [str(files / "one.npz") if text == "ONE" else text for text in arguments]
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, "pretrain", *arguments, "--output", tmp_path / "run")
    assert str(stop.value).startswith("error: ")
    stop.match(message)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def heated(tmp_path_factory, files):
    """A pretrained model of two classes."""
    folder = tmp_path_factory.mktemp("runs") / "heated"
    with pytest.MonkeyPatch.context() as monkeypatch:
        settings = ["--noise", "conventional", "--set", *TINY, "epochs=1"]
        start(monkeypatch, "pretrain", "--npz", files / "one.npz", "--output", folder, *settings)
    return folder


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("pretrain --npz {one} --output {heated} --set batch_size=8", "holds a run already"),
        ("pretrain --npz {two} --output {heated} --resume --set batch_size=8", "belongs to another run"),
        ("finetune --init {new} --npz {one} --output {new}", "new does not exist"),
        ("finetune --init {heated} --npz {one} --output {new} --set model=resnet10t", "another architecture"),
        ("average --run {heated} --last 2", "--last must lie in 1 to 1"),
        ("evaluate --model {heated} --npz {two}", "trained on 2 other classes"),
        (
            "transfer --init a={heated} --npz {two} --output {new} --set image_size=16",
            "shots 256 is more than the 24 training images",
        ),
        ("transfer --init a={heated} --npz {two} --output {new} --set mean=0.1", "another normalisation"),
        ("transfer --init random --npz {two} --output {new}", "needs the name of a timm model"),
        ("report {new}", "holds no run"),
    ],
)
def test_bad_input_after_pretraining(tmp_path, monkeypatch, files, heated, command, message):
    places = {"one": files / "one.npz", "two": files / "two.npz", "heated": heated, "new": tmp_path / "new"}
    stage, *arguments = [word.format(**places) for word in command.split()]
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, stage, *arguments)
    stop.match(message)
    assert not (tmp_path / "new").exists()


def test_scripts_are_thin():
    examples = Path(__file__).resolve().parents[2] / "examples"
    for stage in cli.__all__:
        assert f"from policy_noise.experiments.cli import {stage}" in (examples / f"{stage}.py").read_text()
