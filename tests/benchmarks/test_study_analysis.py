"""The study's analysis on made-up scores whose answers are known."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from study_analysis import Results, analyse, compare, front_mixture, frozen_front

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
                "gamma:1": shifted + noise + own + 0.05,
                "gamma:2": shifted + noise + own - 0.05,
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
    assert results.by_seed("toy", "plain", "gamma")[0] == pytest.approx(score)


def test_the_front_is_the_concave_hull_from_plain_to_the_best_shifted(results):
    assert frozen_front(results, "toy") == ["plain", "frozen-a", "frozen-c"]


@pytest.mark.parametrize(("clean", "expected"), [(0.9, 0.4), (0.74, 0.55), (0.78, 0.5), (0.5, 0.6)])
def test_mixture_at_a_clean_score(results, clean, expected):
    at = front_mixture(results, "toy", clean)
    values = [at("shifted", seed) for seed in range(4)]
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


def test_report_and_files(tmp_path):
    report = analyse(_records(), "val", tmp_path, "toy")
    assert "| adv | 1 | -0.060 | +0.250 | +0.100 |" in report
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".csv", ".png"}
    assert len((tmp_path / "toy-val.csv").read_text().splitlines()) == 1 + 4 * len(_records())
    with pytest.raises(ValueError, match="test"):
        analyse(_records(), "test", tmp_path, "toy")
