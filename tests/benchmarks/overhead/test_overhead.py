"""The overhead benchmark: its suites, and a run from measuring to the table."""

import copy
import dataclasses
import itertools
import json
import time

import pytest
import torch

from benchmarks.overhead import __main__ as main
from benchmarks.overhead import clock, launches, measure, peers, ratios, report, suites, variants
from benchmarks.overhead.suites import Configuration
from policy_noise.hooks._registry import Functor

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", suites.SUITES)
def test_suites_hold_only_arms_that_exist_and_a_plain_one(name):
    for configuration in suites.suite(name):
        assert configuration.arms[0] == "plain"
        assert set(configuration.arms) <= set(suites.ARMS)
        assert configuration.model in suites.MODELS


def test_an_arm_that_learns_now_and_then_is_timed_over_whole_periods(monkeypatch):
    runs = []
    monkeypatch.setattr(measure, "elapsed", lambda step, times, device: runs.append(times) or 0.005)
    configuration = Configuration("tiny", 64, 2, arms=("plain", suites.SPARSE), repetitions=1)
    assert variants.make_variant(suites.SPARSE, configuration, CPU).hook.learner.update_every == suites.EVERY
    measure.measure(configuration, CPU)
    assert sorted(runs[2:]) == [4, 4]  # 20 ms of steps of 5 ms
    runs.clear()
    monkeypatch.setattr(measure, "elapsed", lambda step, times, device: runs.append(times) or 1.0)
    measure.measure(configuration, CPU)
    assert sorted(runs[2:]) == [1, suites.EVERY]


def test_ratio_is_the_median_of_the_pairs():
    record = {"arms": {"plain": {"seconds": [1, 2, 1, 2, 1, 2, 1]}, "learned": {"seconds": [2, 6, 2, 6, 2, 6, 2]}}}
    assert ratios.ratio(record, "learned", "plain") == (2, 2, 3)
    assert ratios.ratio(record, "paper", "plain") is None


def test_a_run_writes_results_table_and_plot_and_survives_a_failure(tmp_path, monkeypatch, capsys):
    arms = ("plain", "learned", "no such arm")
    monkeypatch.setattr(
        main,
        "suite",
        lambda name: [
            Configuration("resnet10t", 32, 2, arms=arms, seconds=0.0),
            Configuration("resnet10t", 1, 2, arms=("plain", "learned"), seconds=0.0),
            Configuration("resnet10t", 64, 2, arms=("no such arm",)),
        ],
    )
    main.main(["--suite", "quick", "--output", str(tmp_path)])
    results = json.loads((tmp_path / "quick.json").read_text())
    good, small, bad = results["configurations"]
    assert len(good["arms"]["learned"]["seconds"]) == 6
    assert good["arms"]["learned"]["peak_memory_bytes"] > good["arms"]["plain"]["peak_memory_bytes"] > 0
    assert "unknown training step" in good["failures"]["no such arm"]
    assert "grid_size" in small["failures"]["learned"]
    assert "the plain step failed" in bad["error"]
    table = (tmp_path / "quick.md").read_text()
    assert table in capsys.readouterr().out
    assert table.count("| learned |") == 1
    assert (tmp_path / "quick.png").stat().st_size > 0


def test_what_the_command_line_makes_alike_is_measured_once():
    def labels(*arguments):
        return [one.label() for one in main.chosen(main.parse(["--suite", *arguments]))]

    assert labels("cpu", "--models", "vit_small") == ["vit_small, 224 px, batch 16, fp32"]
    both = labels("cpu", "--models", "resnet18", "resnet50", "--sizes", "64")
    assert both == ["resnet18, 64 px, batch 16, fp32", "resnet50, 64 px, batch 16, fp32"]
    (first,) = main.chosen(main.parse(["--suite", "cpu", "--models", "vit_small"]))
    assert first.arms == suites.suite("cpu")[0].arms
    for name in suites.SUITES:
        assert labels(name) == [one.label() for one in suites.suite(name)]


def test_a_deadline_leaves_a_whole_table(tmp_path, monkeypatch):
    configurations = [Configuration("tiny", size, 2, arms=("plain", "learned")) for size in (64, 96)]
    monkeypatch.setattr(main, "suite", lambda name: configurations)
    main.main(["--suite", "scaling", "--output", str(tmp_path), "--deadline", "0.001"])
    cut, left_out = json.loads((tmp_path / "scaling.json").read_text())["configurations"]
    assert len(cut["arms"]["plain"]["seconds"]) == 1
    assert "left out" in left_out["error"]
    table = (tmp_path / "scaling.md").read_text()
    assert "too few |" in table
    assert "tiny, 96 px, batch 2, fp32: left out" in table
    assert "too few configurations for a law" in table
    assert (tmp_path / "scaling.png").stat().st_size > 0


def test_peak_memory_on_a_cpu_is_what_is_held_at_once(monkeypatch):
    before = torch.empty(2**20, dtype=torch.uint8)  # not the variant's

    def make_variant(name, configuration, device):
        weights = torch.empty(3 * 2**20, dtype=torch.uint8)

        def step():
            first = torch.empty(5 * 2**20, dtype=torch.uint8)
            del first
            assert torch.empty(7 * 2**20, dtype=torch.uint8).numel() > weights.numel()

        return variants.Variant(step)

    monkeypatch.setattr(measure, "make_variant", make_variant)
    assert measure.peak_memory_on_cpu("plain", Configuration("tiny")) == 10 * 2**20
    assert before.numel() == 2**20


def test_measuring_takes_the_hooks_off_again(monkeypatch):
    made = []
    make_variant = measure.make_variant
    monkeypatch.setattr(measure, "make_variant", lambda *args: made.append(make_variant(*args)) or made[-1])
    measure.measure(Configuration("tiny", 64, 2, arms=("plain", "learned"), seconds=0.0), CPU)
    hooked = [variant for variant in made if variant.hook is not None]
    assert len(hooked) == 2  # the one timed, and the one whose memory was counted
    for variant in hooked:
        seen = variant.hook.metrics["samples_seen"]
        variant.step()
        assert variant.hook.metrics["samples_seen"] == seen > 0


def test_goals_are_told_of():
    arms = {
        name: {"seconds": [1.0] * 6, "peak_memory_bytes": size} for name, size in (("plain", 100), ("learned", 101))
    }
    record = {"label": "resnet18", "configuration": {"model": "resnet18", "size": 224}, "arms": arms}
    assert report.goals(record) == [
        "- resnet18, learned, time: 1.000 of at most 1.05: met",
        "- resnet18, learned, memory: 1.010 of at most 1.03: met",
    ]
    record["arms"]["learned"] = {"seconds": [1.0] * 2, "peak_memory_bytes": 104}
    record["arms"]["plain"]["seconds"] = [1.0] * 2
    # Two repetitions are too few for a conclusion.
    assert report.goals(record) == ["- resnet18, learned, memory: 1.040 of at most 1.03: missed"]


def test_the_law_finds_what_it_was_made_of():
    configurations = []
    for batch, size, grid in itertools.product((8, 32, 128), (32, 96, 224), (None, 16, 64)):
        cost = 2 + 0.5 * batch * size**2 / 1e6 + 0.25 * batch * (grid or 3) ** 2 / 1e3
        times = {"plain": {"seconds": [1.0] * 6}, "learned": {"seconds": [1.0 + 1e-3 * cost] * 6}}
        configurations.append({"configuration": {"batch": batch, "size": size, "grid": grid}, "arms": times})
    law = ratios.law({"default_grid": 3, "configurations": configurations})
    assert "add 2.00 ms, 0.50 ms for a million pixels and 0.25 ms for a thousand cells" in law


def test_launches_of_the_hooks_are_counted():
    counts = {
        name: launches.count_launches(variants.make_variant(name, Configuration("tiny", 64, 2), CPU))
        for name in ("random", "learned")
    }
    assert counts["random"]["policy network, forward"] == 0
    assert 10 < counts["random"]["all"] < 40
    assert counts["learned"]["policy network, forward"] >= 4 + 3 + 4  # convolutions, norms, activations
    assert counts["learned"]["all"] > 2 * counts["learned"]["policy network, forward"] + counts["random"]["all"]


def test_the_gpu_suite_runs_from_measuring_to_its_page(tmp_path, monkeypatch, capsys):
    """On the CPU, at tiny sizes: every kind of configuration, the volumes and the other libraries' augmentations."""
    tiny = {}
    for one in suites.suite("gpu"):
        model = one.model if one.model in suites.VOLUMES else "tiny"
        small = dataclasses.replace(one, model=model, size=16, batch=2, compile=False, seconds=0.0, repetitions=1)
        tiny.setdefault(small.label(), small)  # models and sizes aside, some are alike
    network = torch.nn.Sequential(torch.nn.Conv3d(3, 4, 3), torch.nn.Flatten(), torch.nn.LazyLinear(suites.CLASSES))
    monkeypatch.setattr("torchvision.models.get_model", lambda name, num_classes: copy.deepcopy(network))
    monkeypatch.setattr(measure, "peak_memory_on_cpu", lambda name, configuration: 1)
    shapes = {"batch": (2, 3, 16, 16), "volume": (1, 16, 16, 16)}
    monkeypatch.setattr(main, "suite", lambda name: list(tiny.values()))
    monkeypatch.setattr(peers, "SHAPES", shapes)
    monkeypatch.setattr(peers, "ROUNDS", 4)
    monkeypatch.setattr(main, "measure_peers", lambda kind, device: peers.measure_peers(kind, device, seconds=0.0))
    made = peers.peers
    kept = ("one multiply", peers.OURS, "Kornia RandomBrightness")
    monkeypatch.setattr(peers, "peers", lambda kind, device: {k: v for k, v in made(kind, device).items() if k in kept})
    main.main(["--suite", "gpu", "--device", "cpu", "--output", str(tmp_path)])
    page = (tmp_path / "gpu.md").read_text()
    assert page in capsys.readouterr().out
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert not [record["label"] for record in results["configurations"] if "error" in record or record["failures"]]
    for name in ("random", "learned", "paper", suites.SPARSE):
        assert f"| {name} |" in page
    assert "r3d_18, 16 px" in page
    assert "operations of the hooks on the device: all" in page
    assert peers.TITLES["volume"] in page


def test_hooks_are_clocked_and_nothing_else():
    in_hooks = []
    for name in ("plain", "learned"):
        variant = variants.make_variant(name, Configuration("tiny", 64, 2), CPU)
        variant.step()
        with clock.clocked_hooks() as spent:
            whole = clock.elapsed(variant.step, 3, CPU) * 3
        in_hooks.append(spent[0])
    # Hooks that other tests left on see every optimizer's step.
    assert 10 * in_hooks[0] < in_hooks[1] < whole
    variant.step()
    assert spent[0] == in_hooks[1]  # only while it lasts
    variant.close()


def test_a_hook_within_a_hook_is_clocked_once():
    def work():
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    inner = Functor(work)
    outer = Functor(inner)
    with clock.clocked_hooks() as spent:
        whole = clock.elapsed(outer, 1, CPU)
    assert 0.02 <= spent[0] <= whole


def test_a_step_is_compared_with_the_rest_of_itself():
    seconds = [1.0, 2.0, 4.0, 1.0, 2.0, 4.0, 1.0]
    plain = {"seconds": seconds, "peak_memory_bytes": None}
    clocked = {**plain, "seconds_in_hooks": [0.2 * value for value in seconds]}
    record = {"label": "resnet18", "arms": {"plain": plain, "learned": clocked}, "failures": {}}
    record["configuration"] = {"model": "resnet18", "size": 224}
    assert ratios.ratio_by_hooks(record, "learned") == pytest.approx((1.25, 1.25, 1.25))
    assert ratios.ratio_by_hooks(record, "plain") is None
    assert ratios.added(record) == pytest.approx(0.4)
    assert report.goals(record)[0].endswith("time: 1.250 of at most 1.05: missed")  # not the 1.0 of the pairs
    machine = dict.fromkeys(("device", "threads", "torch", "timm", "kornia", "cudnn"), "") | {"load_at_start": 0.0}
    results = {"suite": "cpu", "command": "", "date": "", "machine": machine, "configurations": [record]}
    table = report.to_markdown(results)
    assert "| resnet18 | learned | 2000.00 | 1.000 | 1.000 to 1.000 | 7 |  |  | 400.00 | 1.2500 |" in table
    assert "divided by the plain step, learned: 0.800 (0.800 to 0.800; geometric mean of 7 pairs)" in table
    del clocked["seconds_in_hooks"]
    assert "in hooks" not in report.to_markdown(results)
