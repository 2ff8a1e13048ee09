"""The overhead benchmark: its authors' recipe, its suites, and a run from measuring to the table."""

import json
import sys
from pathlib import Path

import pytest
import torch
from kornia.filters import gaussian_blur2d

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import overhead
from overhead import AuthorsPolicy, Configuration

CPU = torch.device("cpu")


def test_dense_blur_is_the_papers():
    mask = torch.rand(2, 1, 32, 40)
    torch.testing.assert_close(overhead.dense_blur(mask), gaussian_blur2d(mask, (13, 13), (6.0, 6.0)))


def test_authors_policy_has_the_published_size_and_runs_its_heads_twice():
    policy = AuthorsPolicy(64)
    assert sum(p.numel() for p in policy.parameters()) == pytest.approx(10.18e6, rel=1e-3)
    before = policy.base_alpha.clone()
    distribution = policy(torch.randn(2, 3, 64, 64))
    assert distribution.concentration1.shape == (2, 64 * 64)
    assert policy.alpha[1].num_batches_tracked == 2
    assert not torch.equal(policy.base_alpha, before)


@pytest.mark.parametrize("name", ["quick", "cpu", "gpu", "scaling"])
def test_suites_hold_only_arms_that_exist_and_a_plain_one(name):
    known = {*overhead.OURS, *overhead.RIVALS, "default, compiled mask"}
    for configuration in overhead.suite(name):
        assert configuration.arms[0] == "plain"
        assert set(configuration.arms) <= known
        assert configuration.model in overhead.MODELS


def test_ratio_is_the_median_of_the_pairs():
    record = {"arms": {"plain": {"seconds": [1, 2, 1, 2, 1, 2, 1]}, "default": {"seconds": [2, 6, 2, 6, 2, 6, 2]}}}
    assert overhead.ratio(record, "default", "plain") == (2, 2, 3)
    assert overhead.ratio(record, "paper", "plain") is None


def test_a_run_writes_results_table_and_plot_and_survives_a_failure(tmp_path, monkeypatch, capsys):
    arms = ("plain", "default", "no such arm")
    monkeypatch.setattr(
        overhead,
        "suite",
        lambda name: [
            Configuration("resnet10t", 32, 2, arms=arms, seconds=0.0),
            Configuration("resnet10t", 4, 2, arms=("plain", "default"), seconds=0.0),
            Configuration("resnet10t", 32, 2, arms=("no such arm",)),
        ],
    )
    monkeypatch.setattr(overhead, "measure_pipeline", lambda device: {"without a mask": 10.0})
    overhead.main(["--suite", "quick", "--output", str(tmp_path), "--no-memory"])
    results = json.loads((tmp_path / "overhead-quick.json").read_text())
    good, small, bad = results["configurations"]
    assert len(good["arms"]["default"]["seconds"]) == 6
    assert "unknown arm" in good["failures"]["no such arm"]
    assert "grid_size" in small["failures"]["default"]
    assert "the plain step failed" in bad["error"]
    table = (tmp_path / "overhead-quick.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("| default |") == 1
    assert (tmp_path / "overhead-quick.png").stat().st_size > 0
