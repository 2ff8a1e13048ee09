"""The study's analysis on made-up scores whose answers are known."""

import csv

import numpy as np
import pytest

from benchmarks.study.comparisons import _frozen_twin, compare, front_mixture, frozen_front, gains, meant_by
from benchmarks.study.conditions import CONDITIONS
from benchmarks.study.report import analyse
from benchmarks.study.results import Results
from policy_noise.presets import PRESETS

POINTS = {  # clean, shifted
    "plain": ("plain", 0.80, 0.40),
    "frozen-a": ("frozen", 0.78, 0.50),  # on the hull
    "frozen-b": ("frozen", 0.75, 0.51),  # below the line from a to c
    "frozen-c": ("frozen", 0.70, 0.60),  # on the hull
    "frozen-d": ("frozen", 0.60, 0.55),  # dominated
    "adv": ("learned", 0.74, 0.65),
    "adv-shuffled": ("learned", 0.74, 0.55),
}


def _records(seeds: int = 4) -> list[dict]:
    records = []
    for name, (family, clean, shifted) in POINTS.items():
        for seed in range(seeds):
            noise = (0.02, -0.02, 0.01, -0.01)[seed]  # of the seed: it cancels in pairs
            own = (0.001, -0.001, -0.002, 0.002)[(seed + len(name)) % 4]
            scores = {
                "clean": clean + noise,
                "bias_field:1": shifted + noise + own + 0.05,
                "bias_field:2": shifted + noise + own - 0.05,
                "blur:1": shifted + noise + own,
            }
            point = dict.fromkeys(
                ("alpha", "beta", "cell_mean", "cell_std", "mean_over_images_std", "mean_over_cells_std"), 1.0
            )
            records.append(
                {
                    "key": f"{name}{seed}",
                    "task": "toy",
                    "condition": name,
                    "family": family,
                    "seed": seed,
                    "scores": {"val": scores},
                    "curve": [{"step": 1, "loss": 1.0, "val_clean": clean}],
                    "policy": [{**point, "rendered_std": 0.5}] if family == "learned" else [],
                    "seconds": 1.0,
                }
            )
    return records


@pytest.fixture(scope="module")
def results() -> Results:
    return Results([*_records(), {"key": "x", "task": "toy", "condition": "adv", "error": "boom"}], "val")


def test_shifted_is_the_mean_over_shifts_of_the_mean_over_severities(results):
    score = results.by_seed("toy", "plain", "shifted")[0]
    assert score == pytest.approx(0.42, abs=0.003)
    assert results.by_seed("toy", "plain", "bias_field")[0] == pytest.approx(score)


def test_the_front_is_the_concave_hull_from_plain_to_the_best_shifted(results):
    assert frozen_front(results, "toy") == ["plain", "frozen-a", "frozen-c"]


@pytest.mark.parametrize(("clean", "expected"), [(0.9, 0.4), (0.74, 0.55), (0.78, 0.5), (0.5, 0.6)])
def test_mixture_at_a_clean_score(results, clean, expected):
    at = front_mixture(results, "toy", clean)
    values = [at(seed) for seed in range(4)]
    assert np.mean(values) == pytest.approx(expected)


def test_paired_comparisons(results):
    front = compare(results, "toy", "adv", "frozen front", "shifted")
    twin = compare(results, "toy", "adv", "adv-shuffled", "shifted")
    assert front is not None
    assert twin is not None
    assert front.mean == pytest.approx(0.1, abs=0.005)
    assert twin.mean == pytest.approx(0.1, abs=0.005)
    assert front.low < front.mean < front.high
    assert front.p_value < 0.001
    assert compare(results, "toy", "adv", "missing", "shifted") is None


@pytest.mark.parametrize(
    ("condition", "twin"),
    [
        ("coop-dose20", "frozen-dose20"),
        ("coop-dose20-shuffled", "frozen-dose20"),
        ("adv-dose20-class", "frozen-dose20"),
        ("robust-2x2-dose20", "frozen-2x2-dose20"),
        ("coop-dose20-recalibrated", "frozen-dose20-recalibrated"),
        ("coop-2x2-dose20-level", "frozen-2x2-dose20-level"),
        ("color-jitter-coop-2x2-dose10-level20", "color-jitter-2x2-dose10-level20"),
        ("frozen-2x2-dose20", "none"),
        ("paper", "frozen-paper"),
        ("adv", "frozen-s100-p50"),
        ("plain", "none"),
        ("frozen-dose20", "none"),
    ],
)
def test_the_frozen_twin_has_the_same_mask(condition, twin):
    assert _frozen_twin(condition) == twin
    if twin in CONDITIONS:
        own, frozen = (_rendering(CONDITIONS[name]) for name in (condition, twin))
        assert own == frozen


def test_masks_whose_mean_varies_have_controls_of_their_own():
    assert meant_by("coop-2x2-dose20-level", "mean of 1") == "coop-2x2-dose20"
    assert meant_by("frozen-2x2-dose30-level", "bias-field") == "bias-field"
    assert meant_by("frozen-2x2-dose20-level", "no pattern") == "frozen-1x1-dose20-level"
    assert meant_by("frozen-2x2-dose10-level30", "no pattern") == "frozen-1x1-dose30-level"
    assert meant_by("frozen-2x2-dose10-level30", "mean of 1") == "frozen-2x2-dose10"
    assert meant_by("frozen-1x1-dose20-level", "no pattern") == meant_by("frozen-2x2-dose20", "no pattern") == "none"
    assert meant_by("frozen-2x2-dose10-level30", "level of the dose") == "frozen-2x2-dose10-level"
    assert meant_by("frozen-2x2-dose10-level", "level of the dose") == "none"
    assert meant_by("color-jitter-2x2-dose10", "color-jitter") == "color-jitter"
    assert meant_by("color-jitter-2x2-dose10-level", "mean of 1") == "color-jitter-2x2-dose10"
    assert meant_by("color-jitter", "color-jitter") == meant_by("frozen-2x2-dose20", "color-jitter") == "none"
    assert meant_by("coop-2x2-dose20", "mean of 1") == meant_by("coop-2x2-dose20", "bias-field") == "none"


def _rendering(condition):
    settings = {
        "p": 0.5,
        "strength": 1.0,
        **(PRESETS["paper"].mask if condition.preset == "paper" else {}),
        **condition.mask,
    }
    return {name: value for name, value in settings.items() if name != "policy"}


def test_means_over_tasks_are_of_those_that_have_the_measure():
    records = _records()
    other = [{**record, "task": "other", "key": f"o{record['key']}"} for record in records]
    for record in other:
        record["scores"] = {"val": {**record["scores"]["val"], "few_shot:16": record["seed"] / 10}}
    both = Results([*records, *other], "val")
    found = compare(both, "all", "adv", "plain", "few_shot")
    assert found is not None
    assert (found.seeds, found.mean) == (4, 0)
    assert compare(Results(records, "val"), "all", "adv", "plain", "few_shot") is None


def test_a_front_for_each_measure(results):
    """Under bias fields the order is that of all shifts; on the clean score itself nothing beats the start."""
    assert frozen_front(results, "toy", "bias_field") == frozen_front(results, "toy")
    assert frozen_front(results, "toy", "clean") == ["plain"]


def test_over_tasks_is_the_mean_of_the_tasks_by_seed():
    other = [{**r, "task": "second", "key": f"second{r['key']}"} for r in _records()]
    for record in other:
        if record["condition"] == "adv":
            record["scores"] = {"val": {name: value - 0.04 for name, value in record["scores"]["val"].items()}}
    results = Results([*_records(), *other], "val")
    one, both = (compare(results, task, "adv", "plain", "clean") for task in ("toy", "all"))
    assert both is not None
    assert one is not None
    assert both.mean == pytest.approx(one.mean - 0.02)
    assert both.seeds == 4
    assert gains(results, "adv", "clean") == pytest.approx(both.mean)


def test_seeds_that_not_all_conditions_have_are_left_out():
    records = [r for r in _records() if not (r["condition"] == "adv" and r["seed"] == 3)]
    results = Results(records, "val")
    assert set(results.by_seed("toy", "plain", "clean")) == {0, 1, 2}
    assert results.incomplete == len(POINTS) - 1


def test_report_and_files(tmp_path):
    report = analyse(_records(), "val", tmp_path / "toy")
    rows = {line.split(" | ")[0][2:]: line for line in report.splitlines() if line.startswith("| ")}
    assert "| adv | -.060 ± .000* | +.250 ± .0" in report
    assert "| toy | adv | " in report
    assert rows["frozen-b"].split(" | ")[1] == ".750"
    assert {path.suffix for path in (tmp_path / "toy").iterdir()} == {".md", ".csv", ".png"}
    with (tmp_path / "toy" / "val-tests.csv").open() as file:
        tests = list(csv.DictReader(file))
    against = {(t["condition"], t["control"]) for t in tests if (t["task"], t["measure"]) == ("toy", "shifted")}
    assert {("adv", "plain"), ("adv", "frozen front"), ("adv", "adv-shuffled"), ("frozen-a", "plain")} <= against
    assert ("frozen-a", "frozen front") not in against
    assert {t["task"] for t in tests if t["measure"] == "blur"} == {"all"}
    with pytest.raises(ValueError, match="test"):
        analyse(_records(), "test", tmp_path / "toy")
    unlearned = [record for record in _records() if record["family"] != "learned"]
    assert "## Learned" in report
    assert "## Learned" not in analyse(unlearned, "val", tmp_path / "toy")  # no heads without a table


def test_all_are_compared_with_a_named_condition(tmp_path):
    report = analyse(_records(), "val", tmp_path / "toy", against="frozen-c")
    table = report.split("## Against frozen-c, mean over tasks\n\n")[1].split("\n\n")[0].splitlines()
    rows = {line.split(" | ")[0][2:]: line for line in table}
    assert table[0] == "| condition | clean | shifted | bias_field |"
    assert rows["adv"].startswith("| adv | +.040 ± .000* | +.050 ± .0")
    assert set(rows) >= set(POINTS) - {"plain", "frozen-c"}
    assert not rows.keys() & {"plain", "frozen-c"}
    with pytest.raises(ValueError, match=r"against must be one of .*'frozen-c'.*, got 'frozen-z'"):
        analyse(_records(), "val", tmp_path / "toy", against="frozen-z")


@pytest.mark.parametrize("seeds", [1, 2])
def test_one_or_two_seeds_give_no_intervals(tmp_path, seeds):
    report = analyse(_records(seeds), "val", tmp_path / "toy")
    assert "| adv | -.060 | +.2" in report  # and no bracket follows
    assert "against their" not in report
