"""The parts of a comparison, tested without training: methods, sites, numbers and sentences."""

import argparse
import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from policy_noise.experiments.comparison.methods import METHODS, REFERENCE, choose_methods, controls, recipe_for
from policy_noise.experiments.comparison.results import results_of
from policy_noise.experiments.comparison.sentences import verdict
from policy_noise.experiments.comparison.sites import open_site
from policy_noise.experiments.data import ImageSet, Split
from policy_noise.experiments.recipes import RECIPES
from policy_noise.experiments.shifts import SEVERITIES, SHIFTS

BASE = RECIPES["small"]["pretrain"]


# -- methods -----------------------------------------------------------------------------------------------------------


def test_the_reference_is_always_there_and_first():
    assert [method.name for method in choose_methods(["mixup", "random"], [])] == [REFERENCE, "mixup", "random"]
    own = 'mild={"noise": "random", "preset": "random", "noise_options": {"pattern_std": 0.05}}'
    chosen = choose_methods([], [own])
    assert [method.name for method in chosen] == [REFERENCE, "mild"]
    assert recipe_for(chosen[1], BASE, 3).noise_options == {"pattern_std": 0.05}


@pytest.mark.parametrize("name", METHODS)
def test_methods_differ_from_the_reference_in_their_own_settings_alone(name):
    recipe, reference = (dataclasses.asdict(recipe_for(METHODS[m], BASE, 3)) for m in (name, REFERENCE))
    differing = {key for key in recipe if recipe[key] != reference[key]}
    assert differing <= {"noise", "preset", "noise_options", "policy_lr", "extra_augmentation", "normalize_images"}
    assert bool(differing) is (name != REFERENCE)


def test_the_papers_grid_follows_the_image():
    assert recipe_for(METHODS["paper"], BASE, 0).noise_options["grid_size"] == 8
    large = dataclasses.replace(BASE, image_size=224, load_size=224)
    assert recipe_for(METHODS["paper"], large, 0).noise_options == {}


@pytest.mark.parametrize(
    ("names", "own", "message"),
    [
        (["augmnt"], [], r"--methods must be among \['plain', .*got 'augmnt'"),
        (["plain"], [], "at least one besides plain"),
        ([], ["mild"], "--method must be NAME=JSON"),
        ([], ["a b={}"], "letters, digits, ., - and _ in NAME"),
        ([], ["mild={noise: 1}"], "is not JSON"),
        ([], ["mild=[1]"], "is not an object"),
        ([], ['mild={"epochs": 3}'], r"may only change .*, got \['epochs'\]"),
        ([], ['random={"noise": "learned"}'], "a built-in method"),
        ([], ["a={}", "a={}"], "names must differ from one another"),
        ([], ['mine={"transform": "nothing"}'], 'transform must be "package.module:name"'),
        (["mixup+color-jitter"], [], "color-jitter cannot be joined with the others"),
        (["random+plain"], [], "plain cannot be joined"),
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
        (
            f"B={broken}",
            {"skip_bad_files": True},
            r"site B has no image of 'a' that can be read: all 1 files are bad, such as .*0\.png",
        ),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            open_site(text, options(**changes), data, 8)


# -- numbers and sentences ---------------------------------------------------------------------------------------------


@pytest.fixture
def comparison(tmp_path):
    """Writes a comparison's files: each arm's gains over plain, on clean images and at the site."""

    def write(gains, seeds=8, spread=0.01, site=-0.1, **plan):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        rng = np.random.default_rng(0)
        names = ["plain", *gains]
        methods = [{"name": name, "about": "", "changes": {}} for name in names]
        data = {"classes": 5, "sites": [{"name": "B", "classes": list("abcd")}], "targets": [], "weights": 11e6}
        unlooked = {"reference": "plain", "looks": 1, "looked": [], "overlaps": {}}
        recipe = {"data": data, "recipe": {"image_size": 64, "model": "resnet18"}}
        for path, value in (
            ("plan.json", {"methods": methods, "seeds": list(range(seeds)), **unlooked, **plan}),
            ("recipe.json", recipe),
            ("environment.json", {}),
        ):
            (tmp_path / path).write_text(json.dumps(value))
        for seed in range(seeds):
            start = 0.6 + 0.1 * rng.standard_normal()
            for name in names:
                clean, there = gains.get(name, (0.0, 0.0))
                own = {"clean": start + clean + spread * rng.standard_normal()}
                own["site:B"] = start + site + there + spread * rng.standard_normal()
                for shift in SHIFTS:
                    own |= {f"shift:{shift}:{s}": start + 0.01 * s + spread * rng.standard_normal() for s in SEVERITIES}
                folder = tmp_path / "runs" / f"{name}-{seed}"
                folder.mkdir(parents=True)
                scores = {key: {"f1": value, "roc_auc": value} for key, value in own.items()}
                run = {"method": name, "seed": seed, "seconds": 1.0, "scores": scores}
                (folder / "comparison.json").write_text(json.dumps(run))
        return tmp_path

    return write


def row_of(table, method, measure, versus="plain"):
    wanted = (method, measure, versus)
    return next(row for row in table["differences"] if (row["method"], row["measure"], row["versus"]) == wanted)


def test_a_difference_that_is_there_is_found_and_paired(comparison):
    results = results_of(comparison({"random": (-0.05, 0.1), "learned": (0.0, 0.0)}))
    table = results["tables"]["f1"]
    assert table["tests"] == 9  # three measures of random, of learned, and of learned minus random
    found = row_of(table, "random", "site:B")
    assert found["finding"] == "better"
    assert found["mean"] == pytest.approx(0.1, abs=0.02)  # seeds alone spread by 0.1
    assert 0 < found["smallest"] < 0.05
    assert row_of(table, "learned", "clean")["finding"] == "not shown"
    assert row_of(table, "learned", "site:B", "random")["mean"] == pytest.approx(-0.1, abs=0.02)
    assert results["tables"]["shifts"]["tests"] == 8 * 3


def test_the_mean_of_shifts_is_over_all_severities(comparison):
    folder = comparison({"random": (0.0, 0.0)}, seeds=3, spread=0.0)
    means = results_of(folder)["tables"]["f1"]["means"]["random"]
    assert means["shifts"][0] - means["clean"][0] == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (["plain", "learned", "random"], [("learned", "random")]),
        (["plain", "learned", "learned-random"], [("learned", "learned-random")]),
        (["plain", "normalize", "random"], [("random", "normalize")]),
        (["plain", "normalize", "normalize+random"], [("normalize+random", "normalize")]),
        (["plain", "normalize+learned", "normalize+random"], [("normalize+learned", "normalize+random")]),
        (["plain", "paper", "paper-random", "mixup"], [("paper", "paper-random")]),
    ],
)
def test_what_is_compared_besides_the_reference(names, pairs):
    assert controls(names) == [*((name, "plain") for name in names[1:]), *pairs]


def test_the_verdict_says_what_helps_and_what_it_costs(comparison):
    gains = {"random": (-0.05, 0.1), "learned": (-0.05, 0.1), "color-jitter": (0.0, 0.0), "mixup": (0.06, 0.0)}
    answer, *others = verdict(results_of(comparison(gains)))
    assert answer == (
        "Against plain, better somewhere and nowhere shown to be worse: mixup; better somewhere, worse elsewhere: "
        "random and learned; no difference shown: color-jitter."
    )
    assert any(text.startswith("random: better on site B (+0.") and "worse on clean" in text for text in others)
    learned = next(text for text in others if text.startswith("learned against random"))
    assert learned.endswith("Their masks differ too: what learning adds shows against learned-random.")
    assert others[-1] == "Next: stop here, and use mixup."
    assert all(len(text) < 300 for text in others)


@pytest.mark.parametrize("learned", ["learned", "paper", "normalize+learned"])
def test_only_the_same_masks_unlearned_tell_what_learning_adds(comparison, learned):
    arms = dict.fromkeys(["normalize", "random", "normalize+random", "mixup"], (0.0, 0.1))
    for gain, said in ((0.1, True), (0.2, False)):
        texts = verdict(results_of(comparison(arms | {f"{learned}-random": (0.0, 0.1), learned: (0.0, gain)})))
        told = [
            text.partition(":")[0] for text in texts if text.endswith("Learning is not shown to add anything here.")
        ]
        assert told == ([f"{learned} against {learned}-random"] if said else [])
        differ = [text.partition(":")[0] for text in texts if "Their masks differ too" in text]
        assert differ == ([] if learned == "paper" else [f"{learned} against {learned.replace('learned', 'random')}"])


def test_the_verdict_says_when_normalization_alone_does_as_much(comparison):
    texts = verdict(results_of(comparison({"normalize": (0.0, 0.1), "random": (0.0, 0.1)})))
    assert any(text.endswith("Normalizing each image alone does as much as random.") for text in texts)
    texts = verdict(results_of(comparison({"normalize": (0.0, 0.05), "random": (0.0, 0.15)})))
    assert not any("as much" in text for text in texts)


@pytest.mark.parametrize(("both", "advised"), [(0.1, "normalize"), (0.2, "normalize+random")])
def test_the_advice_is_the_simplest_arm_that_does_as_much(comparison, both, advised):
    arms = {"normalize": (0.0, 0.1), "random": (0.0, 0.05), "normalize+random": (0.0, both)}
    assert verdict(results_of(comparison(arms)))[-1] == f"Next: stop here, and use {advised}."


def test_a_finding_near_chance_does_not_count_and_the_page_says_so(comparison):
    results = results_of(comparison({"random": (0.0, 0.03), "mixup": (0.0, 0.0)}, spread=0.001, site=-0.4))
    answer, near, *_ = verdict(results)
    assert "better" not in answer
    assert near.startswith("Near chance, so no difference there counts: site B (0.")
    assert near.endswith("guessing gives 0.250).")
    assert row_of(results["tables"]["f1"], "random", "site:B")["finding"] == "near chance"


def test_folded_tables_name_what_they_star(comparison):
    folder = comparison({"random": (0.0, 0.0)})
    for path in folder.glob("runs/random-*/comparison.json"):
        run = json.loads(path.read_text())
        for name, score in run["scores"].items():
            score["roc_auc"] += 0.1 * name.startswith("shift:")
        path.write_text(json.dumps(run))
    texts = verdict(results_of(folder))
    assert "no difference shown: random" in texts[0]
    assert "ROC-AUC: random better on the eight shifts." in texts


def test_differences_that_do_not_vary_are_not_tested(comparison):
    results = results_of(comparison({"random": (0.025, 0.0)}, seeds=6, spread=0.0))
    row = row_of(results["tables"]["f1"], "random", "clean")
    assert row["mean"] == pytest.approx(0.025)
    assert (row["p"], row["smallest"], row["seeds_needed"], row["finding"]) == (None, None, None, "not tested")
    assert verdict(results)[0].startswith("No verdict: the differences are the same for every seed")


def test_a_level_spent_over_looks_is_printed_and_stricter(comparison):
    one = results_of(comparison({"random": (0.01, 0.0)}))
    two = results_of(comparison({"random": (0.01, 0.0)}, looks=2))
    assert two["tables"]["f1"]["level"] == one["tables"]["f1"]["level"] / 2
    assert any(text.startswith("Level 0.05, one planned look.") for text in verdict(one))
    assert any(text.startswith("Level 0.05 spent over 2 planned looks, 0.025 each.") for text in verdict(two))
    assert (
        row_of(two["tables"]["f1"], "random", "clean")["smallest"]
        > row_of(one["tables"]["f1"], "random", "clean")["smallest"]
    )


@pytest.mark.parametrize(
    ("changes", "gains", "expected"),
    [
        ({}, (0.0, 0.0), "Next: stop here, and keep plain."),
        ({"seeds": 4}, (0.0, 0.0), "Next: more seeds, at least 5 (--resume --seeds 5)."),
        ({"spread": 0.022}, (0.03, 0.0), "Next: more seeds; "),
        (
            {"weights": 4e5},
            (0.1, 0.0),
            "Next: the same with the model that you will use, such as --set model=resnet18.",
        ),
        ({"original_size": 1024}, (0.1, 0.0), "Next: the same with larger images and the model that you will use"),
        ({"sites": []}, (0.1, 0.0), "Next: another scanner or hospital, as --site NAME=SOURCE."),
    ],
)
def test_the_last_sentence_says_what_to_do_next(comparison, changes, gains, expected):
    data = {name: changes[name] for name in ("weights", "original_size", "sites") if name in changes}
    own = {name: value for name, value in changes.items() if name in ("seeds", "spread")}
    results = results_of(comparison({"random": gains}, **own))
    results["record"]["data"] |= data
    assert verdict(results)[-1].startswith(expected)


def test_training_images_at_a_site_stand_right_after_the_answer(comparison):
    shared = {"shared": 3, "images": 7, "example": "x.png", "original": "y.png"}
    folder = comparison({"random": (0.0, 0.0)}, overlaps={"site:B": shared, "val": shared})
    said = [number for number, text in enumerate(verdict(results_of(folder))) if "training images too" in text]
    assert said == [1]


def test_few_seeds_give_no_verdict(comparison):
    results = results_of(comparison({"random": (0.3, 0.3)}, seeds=4))
    assert verdict(results)[0] == "No verdict from 4 seeds: a test needs at least 5."
    row = row_of(results["tables"]["f1"], "random", "clean")
    assert (row["p"], row["smallest"], row["seeds_needed"]) == (None, None, None)
    json.dumps(results, allow_nan=False)


def test_seeds_without_all_methods_are_left_out_and_give_no_verdict_yet(comparison):
    folder = comparison({"random": (0.3, 0.3)}, seeds=7)
    (folder / "runs" / "random-2" / "comparison.json").unlink()
    results = results_of(folder)
    assert (results["seeds"], results["missing"]) == ([0, 1, 3, 4, 5, 6], ["random-2"])
    first, *_, last = verdict(results)
    assert first.startswith("No verdict yet: 1 of the planned runs")
    assert last == "Next: finish the planned runs with --resume."


def test_intervals_over_patients_are_wider_where_few_patients_decide(comparison):
    folder = comparison({"random": (0.0, 0.0)}, seeds=5)
    rng = np.random.default_rng(0)
    for path in folder.glob("runs/*/comparison.json"):
        labels = np.tile([0, 1], 60)
        right = np.full(120, True)
        if path.parent.name.startswith("plain"):
            right[:12] = False  # all errors are of the first two patients
        lines = ["set,image,patient,label,predicted"]
        lines += [
            f"clean,{i},p{i // 6},{y},{y if ok else 1 - y}" for i, (y, ok) in enumerate(zip(labels, right, strict=True))
        ]
        path.with_name("predictions.csv").write_text("\n".join(lines))
    results = results_of(folder)
    (row,) = results["patients"]
    assert (row["method"], row["measure"], row["patients"]) == ("random", "clean", 20)
    assert row["low"] == 0  # without these two there is no difference
    draws = rng.multinomial(20, np.full(20, 1 / 20), 4000)[:, :2].sum(1) / 20
    assert row["high"] == pytest.approx(np.quantile(draws, 0.975), abs=0.011)  # F1 of balanced classes is accuracy
    assert any(text.startswith("Over the 20 patients of clean test images") for text in verdict(results))


def test_few_patients_give_no_interval(comparison):
    folder = comparison({"random": (0.0, 0.0)}, seeds=5)
    for path in folder.glob("runs/*/comparison.json"):
        lines = ["set,image,patient,label,predicted", *(f"clean,{i},p{i % 2},{i % 2},{i % 2}" for i in range(8))]
        path.with_name("predictions.csv").write_text("\n".join(lines))
    results = results_of(folder)
    (row,) = results["patients"]
    assert (row["low"], row["high"], row["patients"]) == (None, None, 2)
    assert "clean test images: too few patients for an interval over them, 2 where 8 are needed." in verdict(results)


def test_runs_that_left_out_different_files_are_not_compared(comparison):
    folder = comparison({"random": (0.0, 0.0)}, seeds=5)
    path = folder / "runs" / "random-3" / "comparison.json"
    run = json.loads(path.read_text())
    run["scores"]["site:B"]["files_skipped"] = 2
    path.write_text(json.dumps(run))
    with pytest.raises(ValueError, match=r"site:B\): random-3 left out 2 bad files, plain-0 0"):
        results_of(folder)


def test_folders_without_a_comparison(tmp_path, comparison):
    with pytest.raises(FileNotFoundError, match=r"holds no comparison: plan\.json is missing"):
        results_of(tmp_path)
    folder = comparison({"random": (0.0, 0.0)}, seeds=1)
    (folder / "runs" / "random-0" / "comparison.json").unlink()
    with pytest.raises(ValueError, match=r"no seed has the scores of all methods yet; missing: \['random-0'\]"):
        results_of(folder)
