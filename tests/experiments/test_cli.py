"""The stages' command lines, from files to pages, and their complaints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from policy_noise.experiments.commands import COMMANDS, main

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TINY = ["epochs=2", "batch_size=8", "image_size=16", "load_size=16"]


def start(monkeypatch, stage, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{stage}.py", *map(str, arguments)])
    main([stage, *map(str, arguments)])


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


def test_radimagenet_is_reported_by_modality_and_anatomy(tmp_path, monkeypatch, capsys):
    folders = ("CT/lung/nodule", "MR/knee/acl", "US/thyroid_nodule")
    for split in ("train", "val", "test"):
        rows = ["filename,label"]
        for label, folder in enumerate(folders):
            place = tmp_path / "radiology_ai" / folder
            place.mkdir(parents=True, exist_ok=True)
            for index in range(6):
                Image.fromarray(np.full((16, 16), 40 + 80 * label, np.uint8)).save(place / f"{split}{index}.png")
                rows.append(f"radiology_ai/{folder}/{split}{index}.png,{folder.rpartition('/')[2]}")
        (tmp_path / f"RadiologyAI_{split}.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "radiology_ai" / "MR" / "knee" / "acl" / "train4.png").unlink()
    run = tmp_path / "run"
    start(monkeypatch, "pretrain", "--radimagenet", tmp_path, "--skip-bad-files", "--noise", "conventional",
          "--output", run, "--set", *TINY, "epochs=1", "in_chans=3")  # fmt: skip
    errors = capsys.readouterr().err
    assert "1 missing files are left out" in errors
    assert "train4.png" in errors
    assert load_file(run / "model.safetensors")["conv1.0.weight"].shape[1] == 3
    groups = json.loads((run / "scores.json").read_text())["groups"]
    assert [entry["group"] for entry in groups["modality"]] == ["CT", "MR", "US"]
    assert [entry["group"] for entry in groups["anatomy"]] == ["lung", "knee", "thyroid"]
    page = (run / "report.html").read_text()
    assert "<th>anatomy</th>" in page
    assert "Grey values of the training images" in page


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
        (["--npz", "LACKING"], r"lacking\.npz lacks the keys \['test_labels'\]"),
        (["--npz", "OUTSIDE"], r"outside\.npz: labels must run from 0 to 9 without a hole"),
        (["--npz", "ABSENT"], r"absent\.npz: the val split has no image of \['class 1'\]"),
        (["--image-folder", "EMPTY"], r"empty.train.a holds no images"),
    ],
)
def test_bad_input_before_any_training(tmp_path, monkeypatch, files, arguments, message):
    content = dict(np.load(files / "one.npz"))
    np.savez(tmp_path / "lacking.npz", **{key: value for key, value in content.items() if key != "test_labels"})
    np.savez(tmp_path / "outside.npz", **content | {"train_labels": np.full((24, 1), 9)})
    np.savez(tmp_path / "absent.npz", **content | {"val_labels": np.zeros((24, 1), int)})
    for split in ("train", "val", "test"):
        (tmp_path / "empty" / split / "a").mkdir(parents=True)
    places = {"ONE": files / "one.npz", "EMPTY": tmp_path / "empty"}
    places |= {name: tmp_path / f"{name.lower()}.npz" for name in ("LACKING", "OUTSIDE", "ABSENT")}
    arguments = [str(places.get(text, text)) for text in arguments]
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
        ("average --run {new}", "new holds no checkpoints"),
        ("evaluate --model {heated} --npz {two}", "trained on 2 other classes than two"),
        (
            "transfer --init a={heated} --npz {two} --output {new} --set image_size=16",
            "shots 256 is more than the 24 training images",
        ),
        ("transfer --init a={heated} --npz {two} --output {new} --set mean=0.1", "another normalisation"),
        ("transfer --init random --npz {two} --output {new}", "needs the name of a timm model"),
        ("transfer --init a={heated} a={heated} --npz {two} --output {new}", "--init must differ"),
        ("transfer --init a={heated} --npz {two} {two} --output {new}", "sets must differ"),
        ("transfer --init a={heated} imagenet={new} --npz {two} --output {new}", "must be a safetensors file"),
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
    for stage in COMMANDS:
        if stage not in ("check_data", "compare"):
            assert f'main(["{stage}", *sys.argv[1:]])' in (EXAMPLES / f"{stage}.py").read_text()


def on_two_processes(stage, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(EXAMPLES / f"{stage}.py"), *map(str, arguments)]
    return subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=200, check=False
    )


def test_transfer_on_two_processes_writes_the_same_log(tmp_path, monkeypatch, files, heated):
    def arguments(name):
        return ["--init", f"a={heated}", "random", "--npz", files / "two.npz", "--output", tmp_path / name,
                "--set", "shots=[6, 12]", "trials=3", "image_size=16", "mode=full", "steps=2"]  # fmt: skip

    done = on_two_processes("transfer", *arguments("two"))
    assert done.returncode == 0, done.stderr
    start(monkeypatch, "transfer", *arguments("one"))
    logs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(logs[0]) == 12
    for one, two in zip(*logs, strict=True):
        assert one == pytest.approx(two)


def test_bad_input_ends_all_processes_with_its_message(files, heated):
    done = on_two_processes("pretrain", "--npz", files / "one.npz", "--output", heated, "--set", *TINY)
    assert done.returncode != 0
    assert done.stderr.count("holds a run already: pass --resume") == 2
    assert "barrier" not in done.stderr
