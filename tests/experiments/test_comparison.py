"""The parts of a comparison, tested without training: methods, sites, numbers and sentences."""

import argparse
import dataclasses
import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from policy_noise.experiments.comparison import plan as plan_module
from policy_noise.experiments.comparison.methods import METHODS, REFERENCE, choose_methods, recipe_for
from policy_noise.experiments.comparison.plan import PROBE_STEPS, Plan, estimate
from policy_noise.experiments.comparison.results import results_of
from policy_noise.experiments.comparison.sites import open_site
from policy_noise.experiments.comparison.verdict import verdict
from policy_noise.experiments.data import ImageSet, Split
from policy_noise.experiments.recipes import RECIPES, TransferRecipe
from policy_noise.experiments.runs import write_json
from policy_noise.experiments.shifts import SEVERITIES, SHIFTS
from policy_noise.experiments.world import World

BASE = RECIPES["small"]["pretrain"]
SPEED = [{"images_per_s": 100.0}]


# -- methods -----------------------------------------------------------------------------------------------------------


def test_the_reference_is_always_there_and_first():
    assert [method.name for method in choose_methods(["mixup", "augment"], [])] == [REFERENCE, "mixup", "augment"]
    own = 'mild={"noise": "frozen", "preset": "random", "noise_options": {"pattern_std": 0.05}}'
    chosen = choose_methods([], [own])
    assert [method.name for method in chosen] == [REFERENCE, "mild"]
    assert recipe_for(chosen[1], BASE, 3).noise_options == {"pattern_std": 0.05}


@pytest.mark.parametrize("name", METHODS)
def test_methods_differ_from_the_reference_in_their_own_settings_alone(name):
    recipe, reference = (dataclasses.asdict(recipe_for(METHODS[m], BASE, 3)) for m in (name, REFERENCE))
    differing = {key for key in recipe if recipe[key] != reference[key]}
    assert differing <= {"noise", "preset", "noise_options", "policy_lr", "extra_augmentation"}
    assert bool(differing) is (name != REFERENCE)


def test_the_papers_grid_follows_the_image():
    assert recipe_for(METHODS["paper"], BASE, 0).noise_options["grid_size"] == 8
    large = dataclasses.replace(BASE, image_size=224, load_size=224)
    assert recipe_for(METHODS["paper"], large, 0).noise_options == {}


@pytest.mark.parametrize(
    ("names", "own", "message"),
    [
        (["augmnt"], [], r"--methods must be among \['conventional', .*got \['augmnt'\]"),
        (["conventional"], [], "at least one method besides conventional"),
        ([], ["mild"], "--method must be NAME=JSON"),
        ([], ["a b={}"], "letters, digits, ., - and _ in NAME"),
        ([], ["mild={noise: 1}"], "is not JSON"),
        ([], ["mild=[1]"], "is not an object"),
        ([], ['mild={"epochs": 3}'], r"may only change .*, got \['epochs'\]"),
        ([], ['augment={"noise": "frozen"}'], "a built-in method"),
        ([], ["a={}", "a={}"], "must have different names"),
    ],
)
def test_bad_methods(names, own, message):
    with pytest.raises(ValueError, match=message):
        choose_methods(names, own)


def test_a_value_that_does_not_suit_names_the_method():
    (_, method) = choose_methods([], ['mine={"noise": "loud"}'])
    with pytest.raises(ValueError, match="method mine: noise must be one of"):
        recipe_for(method, BASE, 0)


# -- sites -------------------------------------------------------------------------------------------------------------


def training_set(names):
    split = Split(np.zeros((len(names), 8, 8), np.uint8), np.arange(len(names)))
    return ImageSet("mine", split, split, split, tuple(names), {})


def options(**changes):
    own = {"skip_bad_files": False, "window": None, "split_seed": 0, "multi_label": False}
    own |= {"fit": "stretch", "group": None, "labels": None}
    return argparse.Namespace(**own | changes)


def write_tree(root, classes, splits=(".",), images=2):
    grey = 0
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(images):
                grey += 1
                Image.fromarray(np.full((10, 10), grey, np.uint8)).save(root / split / name / f"{index}.png")
    return root


@pytest.mark.parametrize("splits", [(".",), ("test",), ("train", "val", "test")])
def test_classes_are_matched_by_name_and_the_rest_is_named(tmp_path, splits):
    root = write_tree(tmp_path / "b", ["Lung_Nodule", "liver", "zebra"], splits)
    site = open_site(f"siteB={root}", options(), training_set(["kidney", "liver", "lung nodule"]), 8)
    assert site.classes == (1, 2)
    assert (site.unknown, site.absent, site.left_out) == (("zebra",), ("kidney",), 2 * len(splits))
    assert len(site.images) == 4 * len(splits)
    images, kept = site.images.read(np.arange(len(site.images)))
    assert kept.tolist() == list(range(len(site.images)))
    greys = {int(grey): label for grey, label in zip(images[:, 0, 0], site.images.labels, strict=True)}
    assert (greys[1], greys[3]) == (1, 0)  # the first class written is the second that is shared
    assert site.describe(["kidney", "liver", "lung nodule"])["classes"] == ["liver", "lung nodule"]


def test_splits_of_a_file_are_one_site(tmp_path):
    content = {"names": np.array(["a", "b", "c"])}
    for number, split in enumerate(("train", "val", "test")):
        content[f"{split}_images"] = np.full((2, 6, 6), number, np.uint8)
        content[f"{split}_labels"] = np.array([[2], [0]])
    content["classes"] = np.array([0, 2])
    np.savez(tmp_path / "b.npz", **content)
    site = open_site(f"B={tmp_path / 'b.npz'}", options(), training_set(["c", "b", "a"]), 8)
    assert site.classes == (0, 2)  # c and a
    images, _ = site.images.read([1, 3, 5])
    assert images.shape == (3, 8, 8)
    assert images[:, 0, 0].tolist() == [0, 1, 2]
    assert site.images.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_unnamed_classes_are_matched_by_number_aloud(tmp_path):
    content = {f"{split}_{kind}": value for split in ("train", "val", "test")
               for kind, value in (("images", np.zeros((2, 6, 6), np.uint8)), ("labels", np.arange(2)))}  # fmt: skip
    np.savez(tmp_path / "b.npz", **content)
    site = open_site(f"B={tmp_path / 'b.npz'}", options(), training_set(["class 0", "class 1"]), 6)
    assert "matched by number" in site.notes[-1]


def test_a_site_changes_its_fingerprint_with_its_images(tmp_path):
    data = training_set(["a", "b"])
    root = write_tree(tmp_path / "b", ["a", "b"])
    before = open_site(f"B={root}", options(), data, 8).describe(data.class_names)
    (root / "a" / "0.png").unlink()
    assert open_site(f"B={root}", options(), data, 8).describe(data.class_names) != before


def test_bad_sites(tmp_path):
    data = training_set(["a", "b"])
    tree = write_tree(tmp_path / "tree", ["a", "c"])
    empty = tmp_path / "empty"
    empty.mkdir()
    twice = write_tree(tmp_path / "twice", ["a", "A", "b"])
    broken = write_tree(tmp_path / "broken", ["a", "b"], images=1)
    (broken / "a" / "0.png").write_bytes(b"no image")
    for text, changes, message in (
        ("B", {}, "--site must be NAME=SOURCE"),
        ("B=nowhere", {}, "nowhere does not exist: it must be an npz file"),
        (f"B={empty}", {}, "must hold a folder of images for each class"),
        (f"B={tree}", {}, r"site B must share at least two classes with mine, got 1.*\['a', 'c'\].*\['a', 'b'\]"),
        (f"B={twice}", {}, "differ only in case or separators"),
        (f"B={broken}", {}, r"0\.png cannot be read as an image"),
        (f"B={broken}", {"skip_bad_files": True}, "site B: none of its 1 images of 'a' can be read"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            open_site(text, options(**changes), data, 8)


# -- the time ahead ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("linear", (40 + 20) / 12 + 3),  # 40 images to test and all 20 to learn from, at 1 s for 12; 3 draws at 1 s
        ("full", 3 * 2 * (60 / PROBE_STEPS + 40 / 12)),  # 3 draws of 2 sizes, each 60 steps at 1 s for 6, then a test
    ],
)
def test_few_shot_transfer_is_in_the_estimate(monkeypatch, tmp_path, mode, expected):
    monkeypatch.setattr(plan_module, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    monkeypatch.setattr(plan_module, "train", lambda run, recipe, *_: write_json(run.folder / "speed.json", SPEED))
    monkeypatch.setattr(plan_module, "outputs", lambda *_, **__: None)
    rng = np.random.default_rng(0)
    train, test = (Split(rng.integers(0, 256, (n, 8, 8), np.uint8), np.arange(n) % 2) for n in (20, 40))
    data = ImageSet("mine", train, test, test, ("a", "b"), {})
    small = {"model": "test_vit", "image_size": 16, "load_size": 16, "batch_size": 4}
    recipe = dataclasses.replace(BASE, model_options={"img_size": 16, "patch_size": 8}, **small)
    transfer = TransferRecipe(mode=mode, image_size=16, shots=(4, 12), trials=3, steps=60)

    def seconds(*targets):
        plan = Plan(tmp_path, data, {}, (), targets, recipe, transfer, (METHODS[REFERENCE],), (0,))
        return estimate(plan, World(0, 1, torch.device("cpu")))[REFERENCE]

    assert seconds(data) - seconds() == pytest.approx(expected)
    assert seconds(data, data) - seconds() == pytest.approx(2 * expected)


# -- numbers and sentences ---------------------------------------------------------------------------------------------


@pytest.fixture
def comparison(tmp_path):
    """Writes a comparison's files: each method's gains over conventional training, on clean images and at the site."""

    def write(gains, seeds=8, spread=0.01):
        rng = np.random.default_rng(0)
        names = ["conventional", *gains]
        methods = [{"name": n, "label": METHODS[n].label, "about": "", "changes": {}} for n in names]
        data = {"classes": 5, "sites": [{"name": "B", "classes": ["a", "b"]}], "targets": []}
        for path, value in (
            ("plan.json", {"methods": methods, "seeds": list(range(seeds))}),
            ("recipe.json", {"data": data}),
            ("environment.json", {}),
        ):
            (tmp_path / path).write_text(json.dumps(value))
        for seed in range(seeds):
            start = 0.5 + 0.1 * rng.standard_normal()
            for name in names:
                clean, site = gains.get(name, (0.0, 0.0))
                own = {"clean": start + clean + spread * rng.standard_normal()}
                own["site:B"] = start - 0.2 + site + spread * rng.standard_normal()
                for shift in SHIFTS:
                    own |= {f"shift:{shift}:{s}": start + 0.01 * s + spread * rng.standard_normal() for s in SEVERITIES}
                folder = tmp_path / "runs" / f"{name}-{seed}"
                folder.mkdir(parents=True)
                scores = {key: {"f1": value, "roc_auc": value} for key, value in own.items()}
                run = {"method": name, "seed": seed, "seconds": 1.0, "scores": scores}
                (folder / "comparison.json").write_text(json.dumps(run))
        return tmp_path

    return write


def row_of(table, method, measure, versus="conventional"):
    return next(
        row
        for row in table["differences"]
        if (row["method"], row["measure"], row["versus"]) == (method, measure, versus)
    )


def test_a_difference_that_is_there_is_found_and_paired(comparison):
    results = results_of(comparison({"augment": (-0.05, 0.1), "policy": (0.0, 0.0)}))
    table = results["tables"]["f1"]
    assert table["tests"] == 9  # three measures of augment, of policy, and of policy minus augment
    found = row_of(table, "augment", "site:B")
    assert found["p_holm"] < 0.05
    assert found["mean"] == pytest.approx(0.1, abs=0.02)  # seeds alone spread by 0.1
    assert 0 < found["smallest"] < 0.05
    assert row_of(table, "policy", "clean")["p_holm"] > 0.05
    assert row_of(table, "policy", "site:B", "augment")["mean"] == pytest.approx(-0.1, abs=0.02)
    assert results["tables"]["shifts"]["tests"] == 8 * 3


def test_the_correction_is_over_all_tests_of_a_table(comparison):
    table = results_of(comparison({"augment": (0.0, 0.0)}))["tables"]["f1"]
    smallest = min(table["differences"], key=lambda row: row["p"])
    assert smallest["p_holm"] == pytest.approx(min(1.0, smallest["p"] * table["tests"]))


def test_the_mean_of_shifts_is_over_all_severities(comparison):
    folder = comparison({"augment": (0.0, 0.0)}, seeds=3, spread=0.0)
    means = results_of(folder)["tables"]["f1"]["means"]["augment"]
    assert means["shifts"][0] - means["clean"][0] == pytest.approx(0.02)


def test_the_verdict_says_what_helps_and_what_it_costs(comparison):
    gains = {"augment": (-0.05, 0.1), "policy": (-0.05, 0.1), "color-jitter": (0.0, 0.0), "mixup": (0.06, 0.0)}
    answer, *others = verdict(results_of(comparison(gains)))
    trade = "(better on site B; worse on clean test images)"
    assert answer.startswith(
        "Better than conventional training and nowhere shown to be worse: MixUp (on clean test images). "
        f"Better on some test sets and worse on others: random masks {trade}, learned masks {trade}. "
        "Not shown to differ from conventional training: ColorJitter. "
    )
    assert answer.endswith("On clean test images MixUp gained.")
    assert any(text.startswith("Random masks: better on site B (+0.") and "worse on clean" in text for text in others)
    learned = next(text for text in others if text.startswith("Learned masks against random masks"))
    assert learned.endswith("Learning is not shown to add anything here.")
    assert any("Power: with 8 seeds and 15 tests" in text for text in others)


def test_scores_near_guessing_are_called_so(comparison):
    texts = verdict(results_of(comparison({"augment": (0.0, 0.0)})))
    (near,) = (text for text in texts if "guessing" in text)
    assert near.startswith("No method does much better than guessing on site B (0.")  # 0.3 of two classes
    assert "guessing among 2 gives 0.500" in near
    assert "clean" not in near


def test_an_interval_beside_zero_without_a_significant_test_is_no_finding(comparison):
    gains = dict.fromkeys(["augment", "mixup", "randaugment"], (-0.05, 0.0))
    texts = verdict(results_of(comparison(gains, seeds=3)))
    assert any("lower, but not significant after correction, on clean test images (-0.0" in text for text in texts)


def test_differences_that_do_not_vary_tell_nothing_of_what_could_be_seen(comparison):
    results = results_of(comparison({"augment": (0.0, 0.0)}, seeds=3, spread=0.0))
    row = row_of(results["tables"]["f1"], "augment", "clean")
    assert (row["spread"], row["smallest"], row["seeds_for_a_point"]) == (0, None, None)
    (power,) = (text for text in verdict(results) if text.startswith("Power:"))
    assert "unknown on clean test images (the differences do not vary)" in power
    assert "one point of F1" not in power


def test_training_images_at_a_site_stand_right_after_the_answer(comparison):
    folder = comparison({"augment": (0.0, 0.0)})
    plan = json.loads((folder / "plan.json").read_text())
    shared = {"shared": 3, "images": 7, "example": "x.png", "original": "y.png"}
    (folder / "plan.json").write_text(json.dumps(plan | {"overlaps": {"site:B": shared, "val": shared}}))
    said = [number for number, text in enumerate(verdict(results_of(folder))) if "training images too" in text]
    assert said == [1]


def test_two_seeds_give_no_verdict(comparison):
    results = results_of(comparison({"augment": (0.3, 0.3)}, seeds=2))
    assert verdict(results)[0].startswith("No verdict from 2 seeds: a test needs at least three")
    row = row_of(results["tables"]["f1"], "augment", "clean")
    assert (row["p"], row["smallest"], row["seeds_for_a_point"]) == (None, None, None)
    json.dumps(results, allow_nan=False)


def test_seeds_without_all_methods_are_left_out_and_named(comparison):
    folder = comparison({"augment": (0.0, 0.0)}, seeds=4)
    (folder / "runs" / "augment-2" / "comparison.json").unlink()
    results = results_of(folder)
    assert (results["seeds"], results["missing"]) == ([0, 1, 3], ["augment-2"])


def test_folders_without_a_comparison(tmp_path, comparison):
    with pytest.raises(FileNotFoundError, match=r"holds no comparison: plan\.json is missing"):
        results_of(tmp_path)
    folder = comparison({"augment": (0.0, 0.0)}, seeds=1)
    (folder / "runs" / "augment-0" / "comparison.json").unlink()
    with pytest.raises(ValueError, match=r"no seed has the scores of all methods yet; missing: \['augment-0'\]"):
        results_of(folder)
