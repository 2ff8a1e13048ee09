"""The stages' command lines, from files to pages, and their complaints."""

import configparser
import contextlib
import importlib.util
import json
import re
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ranks import free_port, run_ranks, under_torchrun
from safetensors.torch import load_file

from policy_noise.experiments.commands import COMMANDS, main, verdict
from policy_noise.experiments.recipes import RECIPES, TrainRecipe
from policy_noise.experiments.runs import only_one
from policy_noise.experiments.training import create_model
from policy_noise.heated import read_heated_metadata, save_heated

pytestmark = pytest.mark.usefixtures("undrawn")  # but the last page of all stages is drawn
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
    start(monkeypatch, "pretrain", "--npz", one, two, "--output", heated, "--noise", "learned", "--set", *TINY)
    start(monkeypatch, "finetune", "--init", heated, "--npz", one, "--output", tuned, "--set", *TINY)
    start(monkeypatch, "average", "--run", tuned, "--last", "2")
    start(monkeypatch, "evaluate", "--model", tuned / "averaged.safetensors", "--npz", one)
    start(monkeypatch, "transfer", "--init", f"policy={heated}", "scratch", "--npz", two, "--output",
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
    assert "| two | policy |" in printed
    assert "| two | scratch |" in printed
    for folder in (heated, tuned, tmp_path / "transfer"):
        page = (folder / "report.html").read_text()
        assert page.count("data:image/png;base64,") >= 2
        assert "http" not in page.replace("http-equiv", "")  # self-contained
    page = (heated / "report.html").read_text()
    assert "Masks over training" in page
    assert "two/class 2" in page

    (heated / "report.html").unlink()
    monkeypatch.undo()
    start(monkeypatch, "report", heated)
    assert (heated / "report.html").is_file()


def test_radimagenet_is_reported_by_modality_and_anatomy(tmp_path, monkeypatch, capsys):
    folders = ("CT/abd/cyst", "CT/lung/nodule", "MR/abd/cyst", "MR/knee/acl", "US/liver", "US/thyroid_nodule")
    for split in ("train", "val", "test"):
        rows = ["filename,label"]
        for label, folder in enumerate(folders):
            place = tmp_path / "radiology_ai" / folder
            place.mkdir(parents=True, exist_ok=True)
            for index in range(6):
                Image.fromarray(np.full((16, 16), 40 + 40 * label, np.uint8)).save(place / f"{split}{index}.png")
                rows.append(f"radiology_ai/{folder}/{split}{index}.png,{folder.rpartition('/')[2]}")
        (tmp_path / f"RadiologyAI_{split}.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "radiology_ai" / "MR" / "knee" / "acl" / "train4.png").unlink()
    run = tmp_path / "run"
    start(monkeypatch, "pretrain", "--radimagenet", tmp_path, "--skip-bad-files", "--noise", "plain",
          "--output", run, "--set", *TINY, "epochs=1", "in_chans=3")  # fmt: skip
    errors = capsys.readouterr().err
    assert "1 missing file is left out" in errors
    assert "train4.png" in errors
    assert load_file(run / "model.safetensors")["conv1.0.weight"].shape[1] == 3
    groups = json.loads((run / "scores.json").read_text())["groups"]
    assert [entry["group"] for entry in groups["modality"]] == ["CT", "MR", "US"]
    assert [entry["group"] for entry in groups["anatomy"]] == ["abdomen", "lung", "knee", "thyroid"]
    assert groups["anatomy"][0]["classes"] == 3  # the tables of CT and MR call it abd
    page = (run / "report.html").read_text()
    assert "<th>anatomy</th>" in page


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
        (
            ["--npz", "ONE", "--set", "batch_size=25"],
            "needs 25 training images, got 24: pass --set batch_size=24 or less",
        ),
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
        settings = ["--noise", "plain", "--set", *TINY, "epochs=1"]
        start(monkeypatch, "pretrain", "--npz", files / "one.npz", "--output", folder, *settings)
    return folder


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("pretrain --npz {one} --output {heated} --set batch_size=8", "already holds a run"),
        ("pretrain --npz {two} --output {heated} --resume --set batch_size=8", "belongs to another run"),
        ("finetune --init {new} --npz {one} --output {new}", "new does not exist"),
        ("finetune --init {heated} --npz {one} --output {new} --set model=resnet10t", "another architecture"),
        ("average --run {heated} --last 2", "--last must be between 1 and 1"),
        ("average --run {new}", "new holds no checkpoints"),
        ("evaluate --model {heated} --npz {two}", "trained on 2 classes that differ from the 3 of two"),
        (
            "transfer --init a={heated} --npz {two} --output {new} --set image_size=16",
            "shots 256 is more than the 24 training images",
        ),
        ("transfer --init a={heated} --npz {two} --output {new} --set mean=0.1", "another normalization"),
        ("transfer --init scratch --npz {two} --output {new}", "needs the name of a timm model"),
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
        if stage not in ("check-data", "compare", "verdict"):  # two are longer, and one needs no script
            assert f'main(["{stage}", *sys.argv[1:]])' in (EXAMPLES / f"{stage}.py").read_text()


def transfer_rank(rank, arguments, port):
    torch.set_num_threads(1)
    under_torchrun(rank, port)
    main(["transfer", *arguments])


def test_transfer_on_two_processes_writes_the_same_log(tmp_path, monkeypatch, files, heated):
    def arguments(name):
        return ["--init", f"a={heated}", "scratch", "--npz", files / "two.npz", "--output", tmp_path / name,
                "--set", "shots=[6, 12]", "trials=3", "image_size=16", "mode=full", "steps=2"]  # fmt: skip

    run_ranks(transfer_rank, [str(word) for word in arguments("two")], free_port())
    start(monkeypatch, "transfer", *arguments("one"))
    logs = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    assert len(logs[0]) == 12
    for one, two in zip(*logs, strict=True):
        assert one == pytest.approx(two)


def refused_rank(rank, words, port, folder):
    torch.set_num_threads(1)
    under_torchrun(rank, port)
    with (folder / f"errors-{rank}").open("w") as file, contextlib.redirect_stderr(file):
        try:
            main(["pretrain", *words])
        except SystemExit as stop:
            print(stop.code, file=file)


def test_bad_input_ends_all_processes_with_its_message(tmp_path, files, heated):
    words = ["--npz", str(files / "one.npz"), "--output", str(heated), "--set", *TINY]
    run_ranks(refused_rank, words, free_port(), tmp_path)
    for rank in range(2):
        errors = (tmp_path / f"errors-{rank}").read_text()
        assert errors.count("already holds a run: pass --resume") == 1
        assert "barrier" not in errors


def copy_of(heated, folder):
    shutil.copytree(heated, folder)
    return folder


def changed(files, path, **arrays):
    """The first set with other arrays, under its own name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **dict(np.load(files / "one.npz")) | arrays)
    return path


def complaint(monkeypatch, stage, *arguments):
    with pytest.raises(SystemExit) as stop:
        start(monkeypatch, stage, *arguments)
    assert str(stop.value).startswith("error: ")
    assert "\n" not in str(stop.value)
    return str(stop.value)


def test_resuming_on_other_images_or_labels_is_refused(tmp_path, monkeypatch, files, heated):
    run = copy_of(heated, tmp_path / "run")
    settings = ["--noise", "plain", "--output", run, "--resume", "--set", *TINY, "epochs=1"]
    before = (run / "scores.json").read_bytes()
    whole = dict(np.load(files / "one.npz"))
    for key, value in (("test_images", 255 - whole["test_images"]), ("train_labels", 1 - whole["train_labels"])):
        other = changed(files, tmp_path / key / "one.npz", **{key: value})
        assert "data.fingerprint was" in complaint(monkeypatch, "pretrain", "--npz", other, *settings)
    assert (run / "scores.json").read_bytes() == before
    start(monkeypatch, "pretrain", "--npz", files / "one.npz", *settings)
    assert (run / "scores.json").read_bytes() == before
    assert len(json.loads((run / "environment.json").read_text())["resumed"]) == 1


def test_transfer_on_other_images_or_from_other_weights_is_refused(tmp_path, monkeypatch, files, heated):
    run = copy_of(heated, tmp_path / "start")
    first = changed(files, tmp_path / "set" / "one.npz")

    def arguments(*more):
        return ["--init", f"a={run}", "--npz", first, "--output", tmp_path / "run", *more,
                "--set", "shots=[6]", "trials=1", "image_size=16"]  # fmt: skip

    start(monkeypatch, "transfer", *arguments())
    changed(files, first, test_images=np.zeros((24, 16, 16), np.uint8))
    assert "data.sets[0].fingerprint was" in complaint(monkeypatch, "transfer", *arguments("--resume"))
    changed(files, first)
    start(monkeypatch, "transfer", *arguments("--resume"))
    shutil.copy(run / "model.safetensors", tmp_path / "copy.safetensors")
    twice = ["--init", f"a={run}", f"a={tmp_path / 'copy.safetensors'}", *arguments()[2:]]
    assert "the weights of one label must differ" in complaint(monkeypatch, "transfer", *twice)
    save_heated(create_model(TrainRecipe(**read_heated_metadata(run / "model.safetensors")["recipe"]), 2),
                run / "model.safetensors", read_heated_metadata(run / "model.safetensors"))  # fmt: skip
    assert "data.init[0].sha256 was" in complaint(monkeypatch, "transfer", *arguments("--resume"))


def test_each_data_set_has_its_own_scores(tmp_path, monkeypatch, files, heated):
    run = copy_of(heated, tmp_path / "run")
    own = (run / "scores.json").read_bytes()
    other = changed(files, tmp_path / "one.npz", test_images=np.zeros((24, 16, 16), np.uint8))
    start(monkeypatch, "evaluate", "--model", run, "--npz", other)
    start(monkeypatch, "evaluate", "--model", run, "--npz", files / "one.npz")
    assert (run / "scores.json").read_bytes() == own
    found = sorted(path.name for path in run.glob("scores*.json"))
    assert len(found) == 2
    assert re.fullmatch(r"scores-one-[0-9a-f]{8}\.json", found[0])
    assert json.loads((run / found[0]).read_text())["scores"]["top1"] == 0.5
    page = (run / "report.html").read_text()
    assert page.count("Test split of one, model.safetensors: 24 images") == 2


def test_a_plain_folder_of_classes_is_scored_as_a_site(tmp_path, monkeypatch, capsys, files, heated):
    run, folder = copy_of(heated, tmp_path / "run"), tmp_path / "siteB"
    with np.load(files / "one.npz") as content:
        images, labels = content["test_images"], content["test_labels"].ravel()
    for name in ("class_0", "class_1", "zebra"):
        (folder / name).mkdir(parents=True)
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(folder / f"class_{label}" / f"{place:02}.png")
    Image.fromarray(images[0]).save(folder / "zebra" / "0.png")
    start(monkeypatch, "evaluate", "--model", run, "--image-folder", folder)
    printed = capsys.readouterr()
    assert "site siteB: 24 images of 2 shared classes, only tested on" in printed.err
    assert "1 images are left out, of classes not trained on: zebra" in printed.err
    (found,) = [json.loads(path.read_text()) for path in run.glob("scores-siteB-*.json")]
    own = json.loads((run / "scores.json").read_text())
    assert found["scores"] == pytest.approx(own["scores"])
    assert "test split of siteB, 24 images" in printed.out
    shutil.rmtree(folder / "class_1")
    message = complaint(monkeypatch, "evaluate", "--model", run, "--image-folder", folder)
    assert "site siteB must share at least two classes with model.safetensors, got 1" in message


@pytest.mark.parametrize("stage", ["pretrain --npz {one}", "finetune --init {heated} --npz {one}",
                                   "transfer --init a={heated} --npz {one} --set shots=[6]"])  # fmt: skip
def test_two_commands_do_not_write_into_one_run(tmp_path, monkeypatch, files, heated, stage):
    stage, *words = [word.format(one=files / "one.npz", heated=heated) for word in stage.split()]
    with only_one(tmp_path / "run"):
        message = complaint(monkeypatch, stage, *words, "--set", "image_size=16", *TINY[: 4 * (stage != "transfer")],
                            "--output", tmp_path / "run")  # fmt: skip
    assert "is in use by another process" in message
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def test_scores_elsewhere_leave_the_run_alone(tmp_path, monkeypatch, files, heated):
    run = copy_of(heated, tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))}
    start(monkeypatch, "evaluate", "--model", run, "--npz", files / "one.npz", "--output", tmp_path / "own.json")
    assert json.loads((tmp_path / "own.json").read_text())["images"] == 24
    assert {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))} == before

    def refuse(path, value):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("policy_noise.experiments.commands._stages.write_json", refuse)
    message = complaint(monkeypatch, "evaluate", "--model", run, "--npz", files / "one.npz")
    assert "cannot be written to" in message
    assert "--output FILE.json" in message


def test_the_page_tells_averaged_and_fine_tuned_models_apart(tmp_path, monkeypatch, files, heated):
    tuned = tmp_path / "tuned"
    start(monkeypatch, "finetune", "--init", heated, "--npz", files / "one.npz", "--output", tuned, "--set", *TINY)
    start(monkeypatch, "average", "--run", tuned, "--last", "2")
    start(monkeypatch, "evaluate", "--model", tuned / "averaged.safetensors", "--npz", files / "one.npz")
    page = (tuned / "report.html").read_text()
    headings = re.findall(r"<h2>(Test split[^<]*)</h2>", page)
    assert headings == [f"Test split of one, {name}.safetensors: 24 images" for name in ("model", "averaged")]
    assert "fine-tuned on clean images" in page
    assert "pretrain on one, plain → this run: fine-tuned on one, clean images, its head kept" in page
    assert "<b>plain</b>" not in page
    assert "95 % bootstrap intervals" in page
    assert page.count('<img alt="confusion-scores') == 2
    again = tmp_path / "again"
    labels = 1 - np.load(files / "one.npz")["train_labels"]  # equally many classes, whose names say nothing
    swapped = changed(files, tmp_path / "swapped.npz", train_labels=labels)
    start(monkeypatch, "finetune", "--init", tuned, "--npz", swapped, "--output", again, "--set", *TINY, "epochs=1")
    record = json.loads((again / "recipe.json").read_text())["data"]["init"]
    assert record["head"] == "fresh"
    assert [entry["stage"] for entry in record["ancestry"]] == ["pretrain", "finetune"]


def test_the_papers_figures_stand_beside_its_recipe(tmp_path, monkeypatch, files):
    settings = ["model=test_resnet", "image_size=16", "load_size=20", "batch_size=8", "epochs=1", "workers=0"]
    run = tmp_path / "run"
    start(monkeypatch, "pretrain", "--recipe", "paper", "--npz", files / "one.npz", "--noise", "plain",
          "--output", run, "--set", *settings)  # fmt: skip
    page = (run / "report.html").read_text()
    assert "<td>published, policy noise, then fine-tuned</td><td>0.6034</td>" in page
    assert "not RadImageNet, so the results cannot be compared" in page
    assert "model is test_resnet, the paper&#x27;s resnet50" in page


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (['noise_options={"grid": 3}'], "noise_options {'grid': 3} do not suit preset="),
        (['model_options={"no_such": 3}'], "model_options {'no_such': 3} do not suit test_resnet"),
        (["preset=loud"], "loud"),
        (["batch_size=1", "image_size=8", "load_size=8"], "test_resnet does not take batches of batch_size=1 images"),
        (["lr=NaN"], "lr must be a finite number"),
        (["seed=-1"], "seed must not be negative"),
    ],
)
def test_settings_are_checked_before_the_folder_exists(tmp_path, monkeypatch, files, settings, message):
    arguments = ["--npz", files / "one.npz", "--output", tmp_path / "run", "--set", *TINY, *settings]
    assert message in complaint(monkeypatch, "pretrain", *arguments)
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_scored_is_not_trained(tmp_path, monkeypatch, files):
    zeros = {f"{split}_labels": np.zeros((24, 1), int) for split in ("train", "val", "test")}
    always = {
        f"{split}_labels": np.stack([np.arange(24) % 2, np.ones(24, int)], 1) for split in ("train", "val", "test")
    }
    for name, arrays, message in (("zeros", zeros, "has one class"), ("always", always, "cannot be scored")):
        path = changed(files, tmp_path / f"{name}.npz", **arrays)
        assert message in complaint(monkeypatch, "pretrain", "--npz", path, "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_that_has_lost_all_its_images_is_found_before_training(tmp_path, monkeypatch):
    for split in ("train", "val", "test"):
        for label, name in enumerate(("da$k", "<light>")):
            folder = tmp_path / "tree" / split / name
            folder.mkdir(parents=True)
            for index in range(6):
                Image.fromarray(np.full((16, 16), 40 + 120 * label, np.uint8)).save(folder / f"{index}.png")
    bad = sorted((tmp_path / "tree" / "test" / "da$k").iterdir())
    bad[0].write_bytes(b"broken")
    run = tmp_path / "run"
    arguments = ["--image-folder", tmp_path / "tree", "--skip-bad-files", "--noise", "plain", "--output", run]
    with pytest.warns(UserWarning, match="is left out"):
        start(monkeypatch, "pretrain", *arguments, "--set", *TINY, "batch_size=4", "epochs=1")
    scores = json.loads((run / "scores.json").read_text())
    assert (scores["images"], scores["files_skipped"]) == (11, 1)
    page = (run / "report.html").read_text()
    assert "11 images, 1 unreadable left out" in page
    assert "&lt;light&gt;" in page
    shutil.rmtree(run)
    for path in bad:
        path.write_bytes(b"broken")
    message = complaint(monkeypatch, "pretrain", *arguments, "--set", *TINY, "batch_size=4")
    assert "the test split has no image of 'da$k' that can be read" in message
    assert not run.exists()


def test_damaged_and_foreign_files_are_named(tmp_path, monkeypatch, files, heated):
    one = files / "one.npz"
    by_hand = tmp_path / "hand.safetensors"
    save_heated(create_model(RECIPES["small"]["pretrain"], 2), by_hand)
    assert "hand.safetensors does not say how it was trained" in complaint(
        monkeypatch, "evaluate", "--model", by_hand, "--npz", one
    )
    run = copy_of(heated, tmp_path / "run")
    weights = run / "checkpoints" / "weights-0001.pt"
    weights.write_bytes(weights.read_bytes()[:-200])
    with pytest.raises(SystemExit, match=r"weights-0001\.pt cannot be read"):
        start(monkeypatch, "average", "--run", run, "--last", "1")
    (run / "scores.json").write_text("{")
    assert "scores.json is damaged" in complaint(monkeypatch, "report", run)
    (run / "scores.json").unlink()
    (run / "environment.json").unlink()
    start(monkeypatch, "report", run)


def test_a_missing_extra_is_named_at_the_start(tmp_path, monkeypatch, files):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find(name))
    message = complaint(monkeypatch, "pretrain", "--npz", files / "one.npz", "--output", tmp_path / "run")
    assert message == 'error: scikit-learn is not installed: pip install "policy_noise[examples]"'


def test_medmnist_is_not_needed_for_npz_files(tmp_path, monkeypatch, files, heated):
    monkeypatch.setitem(sys.modules, "medmnist", None)  # importing it fails
    output = tmp_path / "scores.json"
    start(monkeypatch, "evaluate", "--model", heated, "--npz", files / "one.npz", "--output", output)
    assert 0 < json.loads(output.read_text())["scores"]["medmnist_auc"] <= 1


def test_stopping_prints_the_line_that_resumes(tmp_path, monkeypatch, capsys, files):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("policy_noise.experiments.commands.train.train", stop)
    words = ["--npz", files / "one.npz", "--output", tmp_path / "a run", "--set", *TINY, "epochs=1"]
    with pytest.raises(SystemExit) as end:
        start(monkeypatch, "pretrain", *words)
    assert end.value.code == 130
    line = capsys.readouterr().err.strip().rpartition("resume with: ")[2]
    assert shlex.split(line) == ["policy-noise", "pretrain", *map(str, words), "--resume"]


def test_a_warning_is_one_line_without_source(monkeypatch, capsys):
    before = warnings.formatwarning
    monkeypatch.setattr(verdict, "_report", lambda _: warnings.warn("7 files are left out", stacklevel=1))
    monkeypatch.setattr(
        warnings,
        "showwarning",
        lambda message, category, file, line, *_: print(warnings.formatwarning(message, category, file, line), end=""),
    )
    main(["report", "runs/none"])
    assert capsys.readouterr().out == "warning: 7 files are left out\n"
    assert warnings.formatwarning is before


def test_the_command_is_installed_and_lists_its_subcommands(capsys):
    declared = configparser.ConfigParser()
    declared.read(EXAMPLES.parent / "setup.cfg")
    script = declared["options.entry_points"]["console_scripts"].strip()
    assert script == "policy-noise = policy_noise.experiments.commands:main"
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in COMMANDS)


def test_the_model_takes_as_many_channels_as_the_images_have(tmp_path, monkeypatch):
    content = {}
    for split in ("train", "val", "test"):
        content[f"{split}_images"] = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
        content[f"{split}_labels"] = np.arange(8) % 2
    np.savez(tmp_path / "colour.npz", **content)
    words = ["--npz", tmp_path / "colour.npz", "--noise", "plain", "--set", *TINY, "epochs=1"]
    start(monkeypatch, "pretrain", *words, "--output", tmp_path / "run")
    assert load_file(tmp_path / "run" / "model.safetensors")["conv1.0.weight"].shape[1] == 3
    with pytest.raises(SystemExit, match="has 3-channel images: pass --set in_chans=3"):
        start(monkeypatch, "pretrain", *words, "in_chans=1", "--output", tmp_path / "other")


def test_a_grey_model_is_tuned_on_coloured_images(tmp_path, monkeypatch, capsys, files):
    content = {}
    for split in ("train", "val", "test"):
        content[f"{split}_images"] = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
        content[f"{split}_labels"] = np.arange(8) % 2
    np.savez(tmp_path / "colour.npz", **content)
    tiny = ["--set", *TINY, "epochs=1"]
    start(monkeypatch, "pretrain", "--npz", files / "one.npz", "--noise", "plain", "--output",
          tmp_path / "grey", *tiny)  # fmt: skip
    words = ["--init", tmp_path / "grey", "--npz", tmp_path / "colour.npz", *tiny]
    with pytest.raises(SystemExit, match=r"in_chans must be 1, the number of channels of .*model\.safetensors, got 3"):
        start(monkeypatch, "finetune", *words, "in_chans=3", "--output", tmp_path / "other")
    capsys.readouterr()
    start(monkeypatch, "finetune", *words, "--output", tmp_path / "tuned")
    assert "colour: 3 channels are averaged into one" in capsys.readouterr().err
    assert load_file(tmp_path / "tuned" / "model.safetensors")["conv1.0.weight"].shape[1] == 1


def test_the_head_stays_for_the_same_images_and_not_for_the_same_name(tmp_path, monkeypatch, capsys, files, heated):
    tiny = ["--set", *TINY, "epochs=1"]
    whole = dict(np.load(files / "one.npz"))
    labels = {key: 1 - value for key, value in whole.items() if "labels" in key}
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(files / "one.npz", tmp_path / "elsewhere" / "renamed.npz")
    places = {"kept": tmp_path / "elsewhere" / "renamed.npz"}
    places["fresh"] = changed(files, tmp_path / "other" / "one.npz", **labels)
    for head, place in places.items():
        run = tmp_path / head
        start(monkeypatch, "finetune", "--init", heated, "--npz", place, "--output", run, *tiny)
        assert json.loads((run / "recipe.json").read_text())["data"]["init"]["head"] == head
        assert f"model.safetensors is {'kept' if head == 'kept' else 'new'}" in capsys.readouterr().err
    capsys.readouterr()
    for place, said in ((places["kept"], False), (places["fresh"], True)):
        output = tmp_path / f"{said}.json"
        start(monkeypatch, "evaluate", "--model", heated, "--npz", place, "--output", output)
        assert (
            "its classes have no names and are matched with the model's by number" in capsys.readouterr().err
        ) == said
    message = complaint(monkeypatch, "evaluate", "--model", heated, "--npz", places["kept"], "--output", output)
    assert message == f"error: {output} exists: pass another --output, or remove it first"
