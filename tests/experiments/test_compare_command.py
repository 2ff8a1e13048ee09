"""``policy-noise compare``, from files to its page."""

import contextlib
import csv
import dataclasses
import json
import multiprocessing
import re
import shutil

import medmnistc_stub
import numpy as np
import pytest
import torch
from PIL import Image
from ranks import START, free_port, run_ranks, under_torchrun
from safetensors.torch import load_file
from sklearn.metrics import f1_score

from policy_noise.experiments import training
from policy_noise.experiments.commands import compare as command
from policy_noise.experiments.commands import main
from policy_noise.experiments.comparison import scoring
from policy_noise.experiments.npz import load_npz
from policy_noise.experiments.recipes import RECIPES
from policy_noise.experiments.runs import only_one

pytestmark = pytest.mark.usefixtures("undrawn")  # but the finished comparison is drawn
TINY = ["model=test_vit", "epochs=2", "clean_epochs=1", "batch_size=8", "image_size=16", "load_size=16",
        'model_options={"img_size": 16, "patch_size": 8}']  # fmt: skip


def compare(*arguments, tiny=TINY):
    main(["compare", *map(str, arguments), "--set", *tiny])


def write_npz(path, classes=2, images=24, **more):
    rng = np.random.default_rng(0)
    content = dict(more)
    for split in ("train", "val", "test"):
        labels = np.arange(images) % classes
        grey = (labels * 160 // classes)[:, None, None]
        content[f"{split}_images"] = (rng.integers(0, 60, (images, 16, 16)) + grey).astype(np.uint8)
        content[f"{split}_labels"] = labels[:, None]
    np.savez(path, **content)
    return path


@pytest.fixture(scope="module", autouse=True)
def _quick():
    """Few trials of a target, and one severity of each shift."""
    recipes = {name: dict(stages) for name, stages in RECIPES.items()}
    recipes["small"]["transfer"] = dataclasses.replace(RECIPES["small"]["transfer"], trials=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "RECIPES", recipes)
        patch.setattr(scoring, "SEVERITIES", (2,))
        yield


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A set of three named classes, and a site that has two of them and another."""
    folder = tmp_path_factory.mktemp("sets")
    write_npz(folder / "mine.npz", 3, names=np.array(["liver", "lung", "knee"]))
    write_npz(folder / "other.npz", 3, names=np.array(["lung", "zebra", "liver"]))
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, files):
    """Two seeds of two methods, with a site and a target."""
    folder = tmp_path_factory.mktemp("compare") / "out"
    compare(*arguments(files), "--seeds", 2, "--output", folder)
    return folder


def arguments(files, *methods):
    own = 'mild={"noise": "random", "preset": "random", "noise_options": {"pattern_std": 0.05}}'
    return ["--npz", files / "mine.npz", "--site", f"B={files / 'other.npz'}", "--target", files / "other.npz",
            "--methods", *(methods or ["plain"]), "--method", own]  # fmt: skip


def copied(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "out")
    return tmp_path / "out"


def test_scores_under_medmnistcs_corruptions(tmp_path, monkeypatch, capsys):
    medmnistc_stub.install(monkeypatch)
    data, out = write_npz(tmp_path / "breastmnist.npz", images=8), tmp_path / "out"
    own = ["--npz", data, "--shifts", "medmnistc"]
    compare(*own, "--methods", "normalize", "--seeds", 1, "--output", out)
    results = json.loads((out / "results.json").read_text())
    (run, _) = results["runs"]
    found = run["scores"]["medmnistc"]
    assert list(found["errors"]) == ["impulse_noise", "brightness_up", "stain_deposit"]
    errors = np.array(list(found["errors"].values()))
    assert found["be"] == pytest.approx(np.mean(errors / [0.4, 0.2, 0.3]))
    assert found["rbe"] == pytest.approx(
        np.mean((errors - 1 + run["scores"]["clean"]["balanced_accuracy"]) / [0.3, 0.1, 0.2])
    )
    assert results["tables"]["medmnistc"]["means"]["plain"]["be"][0] == found["be"]
    assert not results["tables"]["medmnistc"]["higher"]
    assert results["tables"]["f1"]["means"]["plain"]["medmnistc"][0] == found["f1"]
    capsys.readouterr()
    main(["evaluate", "--model", str(out / "runs/plain-0"), *map(str, own)])
    assert f"MedMNIST-C: BE {found['be']:.4f}, rBE {found['rbe']:.4f}" in capsys.readouterr().out
    assert "stain deposit" in (out / "runs/plain-0/report.html").read_text()
    with pytest.raises(SystemExit, match=r"data\.shifts was"):
        compare("--npz", data, "--methods", "normalize", "--seeds", 1, "--output", out, "--resume")


def test_corruptions_of_medmnistc_are_tried_before_anything_is_trained(tmp_path, monkeypatch):
    medmnistc_stub.install(monkeypatch)
    broken = dict(medmnistc_stub.CORRUPTIONS_DS["breastmnist"], motion_blur=None)
    monkeypatch.setitem(medmnistc_stub.CORRUPTIONS_DS, "breastmnist", broken)
    data, out = write_npz(tmp_path / "breastmnist.npz"), tmp_path / "out"
    with pytest.raises(SystemExit, match=r"breastmnist/motion_blur fails with .*numpy<2\.3"):
        compare("--npz", data, "--shifts", "medmnistc", "--output", out)
    assert not out.exists()


def test_the_page_and_its_numbers(finished):
    results = json.loads((finished / "results.json").read_text())
    assert [method["name"] for method in results["methods"]] == ["plain", "mild"]
    assert len(results["runs"]) == 4
    table = results["tables"]["f1"]
    assert [m["key"] for m in table["measures"]] == ["clean", "site:B", "shifts", "few-shot:other"]
    assert results["verdict"][0] == "No verdict from 2 seeds: a test needs at least 5."
    site = results["record"]["data"]["sites"][0]
    assert (site["classes"], site["unknown"], site["absent"]) == (["liver", "lung"], ["zebra"], ["knee"])
    assert site["images"] == 48
    page = (finished / "report.html").read_text()
    assert results["verdict"][0] in page.replace("&#x27;", "'")
    assert page.count("data:image/png;base64,") == 4  # forest, gallery, curves, few-shot
    assert "http" not in page
    assert "zebra" in page
    assert not list(finished.glob("runs/*/checkpoints"))


def test_a_site_is_scored_among_the_classes_that_it_has(finished, files):
    """A model of the page's scores, asked again: its images of the shared classes, and no third answer."""
    site = load_npz(files / "other.npz")
    images = np.concatenate([getattr(site, split).images for split in ("train", "val", "test")])
    labels = np.concatenate([getattr(site, split).labels for split in ("train", "val", "test")])
    recipe = json.loads((finished / "runs" / "mild-1" / "recipe.json").read_text())["recipe"]
    model = training.create_model(
        training.TrainRecipe(**recipe), 3, init=finished / "runs" / "mild-1" / "model.safetensors"
    )
    x = (torch.from_numpy(images[labels != 1]).unsqueeze(1).float() / 255 - 0.5) / 0.25
    with torch.no_grad():
        predicted = model.eval()(x)[:, :2].argmax(1).numpy()  # liver, lung
    truth = np.where(labels[labels != 1] == 2, 0, 1)
    scores = json.loads((finished / "runs" / "mild-1" / "comparison.json").read_text())["scores"]
    assert scores["site:B"]["f1"] == pytest.approx(f1_score(truth, predicted, average="macro"))


def test_runs_of_a_seed_share_weights_order_and_geometry(tmp_path, monkeypatch, files):
    seen, started = {}, {}
    augment, create = training.augment, training.create_model
    name = None

    def look(images, recipe, step, *rest, **options):
        x = augment(images, recipe, step, *rest, **options)
        if options.get("train", True):
            seen.setdefault(name, []).append(x.clone())
        return x

    def begin(recipe, *rest, **options):
        nonlocal name
        name = (recipe.noise, recipe.preset, recipe.extra_augmentation, recipe.seed)
        model = create(recipe, *rest, **options)
        started[name] = {key: value.clone() for key, value in model.state_dict().items()}
        return model

    monkeypatch.setattr(training, "augment", look)
    monkeypatch.setattr(training, "create_model", begin)
    compare("--npz", files / "mine.npz", "--methods", "random", "learned", "mixup", "--seeds", 1,
            "--output", tmp_path / "out")  # fmt: skip
    first, *others = seen
    assert len(others) == 3
    for key in others:
        assert len(seen[key]) == len(seen[first]) == 6
        assert all(map(torch.equal, seen[key], seen[first]))
        assert all(torch.equal(value, started[first][part]) for part, value in started[key].items())


def test_resuming_adds_methods_and_leaves_finished_runs(tmp_path, capsys, finished, files):
    folder = copied(finished, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/model.safetensors")}
    scores = json.loads((folder / "runs" / "mild-1" / "comparison.json").read_text())["scores"]
    (folder / "runs" / "mild-1" / "comparison.json").unlink()
    compare(*arguments(files, "bias-field"), "--seeds", 2, "--output", folder, "--resume")
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path.parent.name for path in before if after[path] != before[path]} == {"mild-1"}
    again = json.loads((folder / "runs" / "mild-1" / "comparison.json").read_text())["scores"]
    assert again.keys() == scores.keys()
    assert all(again[name] == pytest.approx(scores[name], abs=1e-12) for name in scores)  # rounding may differ
    assert "3 of 6 runs to go" in capsys.readouterr().err
    assert len(json.loads((folder / "results.json").read_text())["runs"]) == 6


def test_a_plan_may_grow_but_not_shrink(tmp_path, finished, files):
    folder = copied(finished, tmp_path)
    again = ["--seeds", 2, "--output", folder, "--resume"]
    compare("--npz", files / "mine.npz", "--site", f"B={files / 'other.npz'}", "--target", files / "other.npz",
            "--methods", "plain", "normalize", *again)  # fmt: skip
    plan = json.loads((folder / "plan.json").read_text())
    assert [method["name"] for method in plan["methods"]] == ["plain", "mild", "normalize"]
    for changed, message in (
        (["--seeds", 1], "--seeds must be at least the 2 that were planned, got 1"),
        (["--looks", 2], "--looks was 1 when this comparison was planned, got 2"),
        (["--reference", "mild"], "--reference was plain when this comparison was planned, got mild"),
        (["--method", 'mild={"noise": "random"}'], "--method mild differs from the one that was planned"),
    ):
        with pytest.raises(SystemExit, match=message):
            compare(*arguments(files)[:-2], *again, *changed)
    (folder / "plan.json").write_text(json.dumps(plan | {"looked": [2]}))
    with pytest.raises(SystemExit, match="the verdict of 2 seeds was the last planned look"):
        compare(*arguments(files), *again, "--seeds", 6)


def test_two_commands_do_not_write_into_one_folder(tmp_path, finished, files):
    folder = copied(finished, tmp_path)
    with only_one(folder), pytest.raises(SystemExit, match="is in use by another process"):
        compare(*arguments(files), "--seeds", 2, "--output", folder, "--resume")


def test_every_image_has_its_prediction(finished):
    rows = list(csv.DictReader((finished / "runs" / "mild-1" / "predictions.csv").open()))
    scores = json.loads((finished / "runs" / "mild-1" / "comparison.json").read_text())["scores"]
    for name, count in (("clean", 24), ("site:B", 48)):
        mine = [row for row in rows if row["set"] == name]
        assert len({row["image"] for row in mine}) == len(mine) == count
        truth, predicted = ([row[column] for row in mine] for column in ("label", "predicted"))
        assert f1_score(truth, predicted, average="macro", zero_division=0) == pytest.approx(scores[name]["f1"])
    assert float(rows[0]["liver"]) + float(rows[0]["lung"]) + float(rows[0]["knee"]) == pytest.approx(1, abs=1e-4)


OWN = """
import torch

def half(image):
    assert image.ndim == 3 and image.dtype == torch.float32
    return image / 2

def build():
    return half

def wrong():
    return lambda image: image[:, :-1]

def empty():
    return lambda image: image / 0 * 0
"""


def test_a_transform_of_ones_own_is_an_arm_and_can_be_the_reference(tmp_path, monkeypatch, capsys, files):
    (tmp_path / "mytransforms.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    line = ["--npz", files / "mine.npz", "--seeds", 1, "--methods", "random", "--output", tmp_path / "out"]
    with pytest.raises(SystemExit, match=r"method bad: mytransforms:wrong fails on images: .*must return a tensor of"):
        compare(*line, "--method", 'bad={"transform": "mytransforms:wrong"}')
    with pytest.raises(SystemExit, match=r"method bad: .*'mytransforms:empty' gave values that are NaN or infinite"):
        compare(*line, "--method", 'bad={"transform": "mytransforms:empty"}')
    with pytest.raises(SystemExit, match=r"'mytransforms:none' cannot be imported as package\.module:name"):
        compare(*line, "--method", 'bad={"transform": "mytransforms:none"}')
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    compare(*line, "--method", 'mine={"transform": "mytransforms:build"}', "--reference", "mine")
    assert "pretrain, mine:" in capsys.readouterr().err
    main(["report", str(tmp_path / "out" / "runs" / "mine-0")])
    assert "<b>mine</b><span>training" in (tmp_path / "out" / "runs" / "mine-0" / "report.html").read_text()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [method["name"] for method in results["methods"]] == ["mine", "random"]
    assert {row["versus"] for row in results["tables"]["f1"]["differences"]} == {"mine"}
    with Image.open(tmp_path / "out" / "runs" / "mine-0" / "figures" / "seen.png") as picture:
        seen = np.asarray(picture)
    first = load_npz(files / "mine.npz").val.images[0]
    assert np.abs(seen[:, :16].astype(int) - first / 2).max() <= 1


def test_a_model_that_does_not_fit_the_size_is_found_before_the_folder_exists(tmp_path, files):
    with pytest.raises(SystemExit, match=r"test_vit does not take batches of .* images of image_size=20 pixels"):
        compare("--npz", files / "mine.npz", "--output", tmp_path / "out",
                tiny=[*TINY, "image_size=20", "load_size=20"])  # fmt: skip
    (tmp_path / "out").write_text("a file")
    with pytest.raises(SystemExit, match=r"--output must be a folder, and .*out is a file"):
        compare("--npz", files / "mine.npz", "--output", tmp_path / "out")
    (tmp_path / "out").unlink()


def test_two_runs_at_a_time_are_those_of_one(tmp_path, monkeypatch, capfd, finished, files):
    get_context = multiprocessing.get_context
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: get_context(START))  # which starts faster
    folder = copied(finished, tmp_path)
    shutil.rmtree(folder / "runs")
    compare(*arguments(files), "--seeds", 2, "--jobs", 2, "--resume", "--output", folder)
    for name in ("plain-0", "mild-1"):
        one, other = (load_file(place / "runs" / name / "model.safetensors") for place in (finished, folder))
        assert all(torch.allclose(one[part], other[part], atol=1e-5) for part in one)
    scores = json.loads((folder / "runs" / "plain-0" / "comparison.json").read_text())["scores"]
    assert sum(key.startswith("shift:") for key in scores) == 24  # three severities of eight shifts
    errors = capfd.readouterr().err
    assert "[4/4]" in errors
    assert "step/s" not in errors  # their bars would overwrite one another


def compare_rank(rank, words, port, folder):
    torch.set_num_threads(1)
    under_torchrun(rank, port)
    with (folder / f"printed-{rank}").open("w") as file, contextlib.redirect_stdout(file):
        main(["compare", *words])


def test_of_two_processes_one_writes(tmp_path, files):
    words = ["--npz", files / "mine.npz", "--methods", "random", "--site", f"B={files / 'other.npz'}", "--seeds", 1,
             "--output", tmp_path / "out", "--set", *TINY]  # fmt: skip
    run_ranks(compare_rank, [str(word) for word in words], free_port(), tmp_path)
    printed = "".join(path.read_text() for path in tmp_path.glob("printed-*"))
    assert printed.count("No verdict from 1 seed:") == 1
    log = (tmp_path / "out" / "runs" / "random-0" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in log if "val_f1" in line] == [1, 2]


def test_a_dry_run_says_what_would_run_and_writes_nothing(tmp_path, capsys, files):
    compare(*arguments(files, "random", "paper"), "--seeds", 4, "--output", tmp_path / "out", "--dry-run")
    printed = capsys.readouterr().out
    assert "site B: 48 images of 2 shared classes, only tested on" in printed
    assert "24 images are left out, of classes not trained on: zebra" in printed
    assert 'paper (masks learned as published, preset="paper"): seeds 0, 1, 2, 3 to run' in printed
    assert "16 of 16 runs to go" in printed
    assert not (tmp_path / "out").exists()


def test_the_report_can_be_written_again(tmp_path, monkeypatch, finished):
    monkeypatch.undo()  # it is drawn
    folder = copied(finished, tmp_path)
    page = (folder / "report.html").read_text()
    (folder / "report.html").unlink()
    main(["report", str(folder)])
    assert len((folder / "report.html").read_text()) == pytest.approx(len(page), rel=0.01)


# -- other sources -----------------------------------------------------------------------------------------------------


def write_images(root, folders, splits, images=4, seed=0):
    rng = np.random.default_rng(seed)
    for split in splits:
        for label, folder in enumerate(folders):
            (root / split / folder).mkdir(parents=True)
            for index in range(images):
                grey = rng.integers(0, 60, (18, 16)) + 60 * label
                Image.fromarray(grey.astype(np.uint8)).save(root / split / folder / f"{index}.png")
    return root


def measures(folder):
    table = json.loads((folder / "results.json").read_text())["tables"]["f1"]
    return [measure["key"] for measure in table["measures"]]


def test_a_folder_of_images_with_a_second_site(tmp_path):
    mine = write_images(tmp_path / "mine", ["a", "b", "c"], ("train", "val", "test"))
    site = write_images(tmp_path / "site", ["B", "c"], (".",))
    (site / "c" / "0.png").write_bytes(b"broken")
    compare("--image-folder", mine, "--site", f"siteB={site}", "--skip-bad-files", "--methods", "color-jitter",
            "--seeds", 1, "--output", tmp_path / "out")  # fmt: skip
    assert measures(tmp_path / "out") == ["clean", "site:siteB", "shifts"]
    scores = json.loads((tmp_path / "out" / "runs" / "color-jitter-0" / "comparison.json").read_text())["scores"]
    assert scores["site:siteB"]["files_skipped"] == 1


def test_radimagenet_with_a_tree_as_its_site(tmp_path):
    folders = ("CT/lung/nodule", "MR/knee/acl", "US/liver")
    root = tmp_path / "rin"
    write_images(root / "radiology_ai", folders, (".",), images=12)
    for number, split in enumerate(("train", "val", "test")):
        with (root / f"RadiologyAI_{split}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(["filename", "label"])
            for folder in folders:
                for index in range(4 * number, 4 * number + 4):
                    table.writerow([f"radiology_ai/{folder}/{index}.png", folder.rpartition("/")[2]])
    site = write_images(tmp_path / "site", ["CT__lung__nodule", "MR__knee__acl"], ("test",))
    compare("--radimagenet", root, "--site", f"clinic={site}", "--methods", "random", "--seeds", 1,
            "--output", tmp_path / "out")  # fmt: skip
    record = json.loads((tmp_path / "out" / "recipe.json").read_text())["data"]
    assert record["sites"][0]["classes"] == ["CT/lung/nodule", "MR/knee/acl"]


def test_training_images_among_the_tested_are_said_everywhere(tmp_path, capsys):
    mine = write_images(tmp_path / "mine", ["a", "b"], ("train", "val", "test"))
    site = write_images(tmp_path / "site", ["a", "b"], (".",), images=3, seed=1)
    shutil.copy(mine / "train" / "a" / "0.png", site / "b" / "copy.png")
    line = ["--image-folder", mine, "--site", f"B={site}", "--methods", "random", "--seeds", 1]
    compare(*line, "--output", tmp_path / "out", "--dry-run")
    found, meaning = "1 of the 7 images of site B is a training image too", "scores there say less about new images."
    said = f"{found}: {meaning}"
    where = f"such as {site / 'b' / 'copy.png'}, equal to {mine / 'train' / 'a' / '0.png'}"
    warning = f"  warning: {found} ({where}): {meaning}"
    assert warning in capsys.readouterr().out
    compare(*line, "--output", tmp_path / "out")
    printed = capsys.readouterr()
    assert warning in printed.err
    assert said in printed.out
    page = (tmp_path / "out" / "report.html").read_text()
    assert said in page
    assert f"1 of 7 images are training images too, {where}" in page
    assert json.loads((tmp_path / "out" / "results.json").read_text())["overlaps"].keys() == {"site:B"}


def test_medmnist_with_another_of_its_sets_as_site_and_target(tmp_path):
    for flag in ("organamnist", "organsmnist"):
        write_npz(tmp_path / f"{flag}.npz", 11, images=22)
    compare("--medmnist", "organamnist", "--root", tmp_path, "--site", "sagittal=organsmnist", "--target",
            "organsmnist", "--methods", "random", "--seeds", 1, "--output", tmp_path / "out")  # fmt: skip
    assert measures(tmp_path / "out") == ["clean", "site:sagittal", "shifts", "few-shot:organsmnist"]
    record = json.loads((tmp_path / "out" / "recipe.json").read_text())["data"]
    assert len(record["sites"][0]["classes"]) == 11
    assert record["transfer"]["shots"] == [8, 16]  # of 22 images


def test_several_labels_an_image(tmp_path):
    rng = np.random.default_rng(0)
    content = {}
    for split in ("train", "val", "test"):
        labels = rng.integers(0, 2, (24, 3))
        content[f"{split}_images"] = (rng.integers(0, 60, (24, 16, 16)) + 60 * labels.sum(1)[:, None, None]).astype(
            np.uint8
        )
        content[f"{split}_labels"] = labels
    np.savez(tmp_path / "several.npz", **content)
    line = ["--npz", tmp_path / "several.npz", "--multi-label", "--site", f"B={tmp_path / 'several.npz'}",
            "--seeds", 1, "--output", tmp_path / "out", "--methods"]  # fmt: skip
    compare(*line, "random")
    assert measures(tmp_path / "out") == ["clean", "site:B", "shifts"]
    with pytest.raises(SystemExit, match=r"method mixup: mixup fails on images: .*mixup needs one label per image"):
        compare(*line, "mixup", "--resume")


# -- complaints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--methods", "augmnt"], "--methods must be among"),
        (["--site", "B=nowhere.npz"], r"nowhere\.npz does not exist"),
        (["--site", "B=nowhere"], "site B: nowhere does not exist: it must be an npz file"),
        (["--site", "A=OTHER", "A=OTHER"], r"--site: names must differ from one another, got \['A', 'A'\]"),
        (["--target", "OTHER", "OTHER"], "--target: names must differ"),
        (["--set", "noise=learned"], "--set noise: methods may differ in this setting; set it with --method NAME=JSON"),
        (["--set", "seed=3"], "--set seed: the runs use the seeds"),
        (["--set", "clean_epochs=10"], "clean_epochs must be fewer than epochs, got 10 of 10"),
        (["--set", "batch_size=25"], "needs 25 training images, got 24"),
        (
            ["--method", 'm={"preset": "loud", "noise": "learned"}'],
            "method m: noise_options .* do not suit preset='loud'",
        ),
    ],
)
def test_bad_input_before_any_training(tmp_path, files, changed, message):
    changed = [text.replace("OTHER", str(files / "other.npz")) for text in changed]
    words = ["compare", "--npz", str(files / "mine.npz"), "--output", str(tmp_path / "out")]
    words += ["--set", "batch_size=8", *changed]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert re.search(message, str(stop.value))
    assert not (tmp_path / "out").exists()


def test_other_images_or_sites_are_not_resumed(tmp_path, finished, files):
    folder = copied(finished, tmp_path)
    with pytest.raises(SystemExit, match="already holds a run: pass --resume"):
        compare("--npz", "nowhere.npz", "--output", folder)  # said before any data are read
    line = arguments(files)
    line[line.index("--site") + 1] = f"C={files / 'other.npz'}"
    with pytest.raises(SystemExit, match=r"belongs to another run: data\.sites\[0\]\.name was \"B\" and is \"C\""):
        compare(*line, "--seeds", 2, "--output", folder, "--resume")


def test_a_run_that_diverges_is_named(tmp_path, files):
    with pytest.raises(SystemExit, match=r"plain, seed 0: training diverged"):
        compare("--npz", files / "mine.npz", "--methods", "random", "--seeds", 1, "--output", tmp_path / "out",
                tiny=[*TINY, "lr=1e30"])  # fmt: skip
