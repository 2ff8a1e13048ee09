"""The study: its declarations, runs on a tiny task, the rule and the pages."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks.study import __main__ as command_line
from benchmarks.study import report, tasks, training
from benchmarks.study.arms import LEARNT, MASKS, NORMALIZED, PLAIN, SMOOTH, SWAPPED, Arm, shading
from benchmarks.study.classifier import Classifier
from benchmarks.study.report import EARLIER, EARLIER_ROWS, EVIDENCE, RESULTS, TASKS
from benchmarks.study.results import Results, read_results
from benchmarks.study.rule import choose, judge, outcome, second_stage, taken
from benchmarks.study.suites import (
    LATER,
    PROTOCOL,
    RULE_SEEDS,
    SETTINGS,
    TEST_SEEDS,
    TODAY,
    Job,
    arms_on_test,
    of_both,
    protocol_jobs,
    rule_jobs,
)
from benchmarks.study.tasks import EvalSet, Task, TaskData, train_indices
from benchmarks.study.training import Batches, Masks, SwappedMask, train
from policy_noise.experiments import evaluation
from policy_noise.experiments.data import Split

README = Path(__file__).resolve().parents[3] / "README.md"
TINY = Task("tiny", 16, per_class=8, epochs=4, batch_size=8)


@pytest.fixture(scope="module")
def data() -> TaskData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(12)
    images = torch.randint(0, 80, (36, 1, 16, 16), generator=generator) + 80 * labels.view(-1, 1, 1, 1)
    images = images.to(torch.uint8)
    clean = EvalSet(images[:12], labels[:12].numpy())
    some = EvalSet(images[:12], labels[:12].numpy() % 2, (0, 1))
    return TaskData(TINY, images, labels, 3, 0.4, 0.25, {"clean": clean, "contrast:1": clean, "ct2": some})


def test_batches_are_those_of_the_seed(data):
    first, second, other = (Batches(data, seed, 4) for seed in (0, 0, 1))
    assert len(first) == 4 * 3
    assert torch.equal(first[5][0], second[5][0])
    assert not torch.equal(first.order, other.order)
    assert np.bincount(data.labels[train_indices(data, 0)]).tolist() == [8, 8, 8]


def test_a_batch_that_is_not_moved_is_the_images(data):
    batches = Batches(data, 0, 1)
    batches.moves.fill_(1)  # the middle of a reach of one pixel
    images, labels = batches[0]
    assert torch.equal(images, data.images[batches.order[0]].float() / 255)
    assert torch.equal(labels, data.labels[batches.order[0]])


def test_the_normalizing_layer_undoes_a_factor_and_an_offset_of_each_image():
    images = torch.rand(4, 1, 32, 32)
    changed = images * torch.tensor([0.5, 1, 2, 3]).view(4, 1, 1, 1) + torch.rand(4, 1, 1, 1)
    for normalize in (True, False):
        torch.manual_seed(0)
        model = Classifier(32, 5, normalize=normalize).eval()
        assert torch.allclose(model(images), model(changed), atol=1e-3) == normalize


def test_swapped_masks_go_to_the_next_image_and_are_rewarded_by_its_loss(data):
    settings = {"in_chans": 1, "mean": 0.0, "std": 1.0, "p": 0.5}
    own, swapped = training.PolicyNoiseMask(**settings), SwappedMask(**settings)
    images = torch.ones(6, 1, 8, 8)
    sample = own.sample(images, torch.Generator().manual_seed(0))
    assert torch.equal(swapped(images, sample), own(images, sample).roll(1, 0))

    for arm, expected in ((LEARNT, [0, 1, 2]), (SWAPPED, [1, 2, 0])):
        masks = Masks(arm, data, torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1), 0)
        seen = []
        masks.hook.observe = seen.append
        masks.observe(torch.arange(3.0))
        assert seen[0].tolist() == expected


ARMS = [*PROTOCOL, Arm("cubic", "cubic, clipped", masks=shading("cubic", 0.25, 0.3, clip=True))]


@pytest.mark.parametrize("arm", ARMS, ids=lambda arm: arm.name)
def test_every_arm_trains(data, arm):
    result = train(Job(data.task, arm, 0, "val"), data)
    assert set(result["scores"]) == {"clean", "contrast:1", "ct2"}
    assert all(0 <= value <= 1 for value in result["scores"].values())
    assert np.isfinite(result["loss"])
    json.dumps(result)


def test_a_run_repeats_and_masks_end_with_the_last_quarter(data, monkeypatch):
    def run(arm: Arm) -> dict[str, object]:
        return {name: v for name, v in train(Job(data.task, arm, 3, "val"), data).items() if name != "seconds"}

    assert run(LEARNT) == run(LEARNT) != run(PLAIN)
    weak = dataclasses.replace(MASKS, masks={**MASKS.masks, "strength": 0.0})
    assert run(weak)["loss"] == pytest.approx(run(PLAIN)["loss"], rel=1e-4)
    batches = []
    apply = Masks.apply
    monkeypatch.setattr(Masks, "apply", lambda self, images: batches.append(len(images)) or apply(self, images))
    run(MASKS)
    assert len(batches) == 3 * 3  # of four epochs of three steps


def test_corrupted_images_are_made_once_and_give_balanced_errors(data, tmp_path, monkeypatch):
    made = []

    class Shifted:
        def __init__(self, split, name, severity):
            self.images, self.severity = split.images, severity

        def read(self, places):
            made.append(self.severity)
            return self.images[list(places)] // self.severity, places

    monkeypatch.setattr(tasks, "CORRUPTED", tmp_path / "medmnistc.npz")
    monkeypatch.setattr(tasks, "medmnistc_shifts", lambda name: [f"{name}/dim"])
    monkeypatch.setattr(tasks, "ShiftedSplit", Shifted)
    split = Split(data.evals["clean"].images.squeeze(1).numpy(), data.evals["clean"].labels)
    images = SimpleNamespace(name="tiny", test=split)
    for _ in range(2):
        corrupted = tasks._corrupted(images, torch.device("cpu"))
    assert made == [1, 2, 3, 4, 5]
    assert torch.equal(corrupted["tiny/dim", 2].images, data.evals["clean"].images // 2)

    monkeypatch.setattr(evaluation, "medmnistc_shifts", lambda name: [f"{name}/dim"])
    monkeypatch.setattr(evaluation, "medmnistc_errors", lambda name, clean, errors: {"be": errors["dim"], "rbe": clean})
    model = Classifier(16, 3)
    told = dataclasses.replace(data, name="tiny", corrupted=corrupted)
    labels = data.evals["clean"].labels
    errors = []
    for evals in [data.evals["clean"], *corrupted.values()]:
        right = training.predict(model, told, evals)[0].argmax(1) == labels
        errors.append(1 - np.mean([right[labels == label].mean() for label in range(3)]))
    assert training.medmnistc(model, told) == pytest.approx({"be": np.mean(errors[1:]), "rbe": errors[0]})
    assert training.medmnistc(model, data) == {}


def test_runs_are_declared_once_with_seeds_of_their_own():
    jobs = [*rule_jobs(SETTINGS), *protocol_jobs()]
    assert len({job.key for job in jobs}) == len(jobs) == (2 + 2 * 12) * 3 * 4 + len(PROTOCOL) * 3 * 8
    spent = {record["seed"] for record in read_results(EARLIER)} | set(range(100, 1000))
    assert not spent & {*RULE_SEEDS, *TEST_SEEDS}
    assert not {*RULE_SEEDS} & {*TEST_SEEDS}
    assert {job.split for job in rule_jobs(SETTINGS)} == {"val"}  # the choice does not use the test split
    seeds = [job.seed for job in protocol_jobs()]
    assert seeds == sorted(seeds)
    assert SMOOTH.masks == next(s for s in SETTINGS if s.name == "linear 0-.4 .20").masks
    assert SETTINGS[0].masks == MASKS.masks


def test_committed_runs_are_declared_ones():
    records = read_results(RESULTS)
    later = [setting for settings in LATER.values() for setting in settings]
    chosen = taken(Results(records, "val"), {record["key"] for record in records})
    declared = {job.key for job in [*rule_jobs([*SETTINGS, *later]), *protocol_jobs(chosen)]}
    assert {record["key"] for record in records} <= declared


def _argument(tmp_path: Path) -> list[str]:
    return ["run", "--data", str(tmp_path), "--output", str(tmp_path / "runs.jsonl"), "--suites", "test"]


def test_runs_are_appended_skipped_and_failures_are_tried_again(tmp_path, monkeypatch, capsys):
    arguments = [*_argument(tmp_path), "--arms", "plain"]
    tried: list[str] = []

    def run(job: Job, data: None) -> dict[str, object]:
        tried.append(job.key)
        if job.seed == TEST_SEEDS[1] and len(tried) < 10:
            raise RuntimeError("no memory")
        return {"scores": {"clean": 0.5}, "seconds": 1.0}

    monkeypatch.setattr(command_line, "build_task", lambda *arguments: None)
    monkeypatch.setattr(command_line, "train", run)
    (tmp_path / "runs.jsonl").write_text('{"key": cut off\n')
    assert command_line.main(arguments) == 1
    assert len(tried) == len(set(tried)) == 8 * 3
    assert command_line.main(arguments) == 0
    assert len(tried) == 9 * 3
    assert sum("scores" in record for record in read_results(tmp_path / "runs.jsonl")) == 8 * 3
    assert "no memory" in capsys.readouterr().err


def test_parts_share_the_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(command_line, "build_task", lambda *arguments: None)
    tried: list[str] = []
    monkeypatch.setattr(command_line, "train", lambda job, data: tried.append(job.key) or {"scores": {"clean": 0.5}})
    arguments = [*_argument(tmp_path), "--arms", "plain", "normalized", "--part"]
    command_line.main([*arguments, "1/2"])
    first = set(tried)
    command_line.main([*arguments, "2/2"])
    assert len(tried) == len(set(tried)) == 2 * 3 * 8
    assert len(first) == len(tried) // 2


def test_differences_are_paired_by_seed_and_averaged_over_tasks():
    scores = {"a": {0: 0.5, 1: 0.7, 2: 0.6}, "b": {0: 0.3, 1: 0.5, 3: 0.9}}
    records = [
        {"task": task, "split": "val", "arm": arm, "seed": seed, "scores": {"clean": gain + value, "blur:1": value}}
        for task, values in scores.items()
        for arm, gain in (("plain", 0.0), ("mine", 0.1))
        for seed, value in values.items()
    ]
    results = Results(records, "val")
    both, one = (results.difference(tasks, "mine", "plain", "clean") for tasks in (["a", "b"], ["a"]))
    assert (both.seeds, one.seeds) == (2, 3)  # no interval with two
    assert str(both) == "+.100"
    assert both.mean == pytest.approx(0.1)
    assert results.by_seed(["a", "b"], "plain", "shifted") == pytest.approx({0: 0.4, 1: 0.6})
    assert results.difference(["a"], "mine", "nothing", "clean") is None
    records[3]["scores"]["clean"] += 0.02  # seeds differ by .12, .10, .10
    changed = Results(records, "val").difference(["a"], "mine", "plain", "clean")
    assert changed.mean == pytest.approx(0.32 / 3)
    assert changed.half == pytest.approx(4.302653 * (0.02 / 3**0.5) / 3**0.5, rel=1e-5)


def _validation(changes: dict[str, dict[str, float]], settings: list[Arm]) -> list[dict[str, object]]:
    """Records of a rule's stage: each setting's gains over today's default on normalized images and others."""
    records = []
    for job in rule_jobs(settings):
        gain = changes.get(job.arm.name.removeprefix("normalized+"), {})
        noise = 0.0001 * (job.seed % 3 - 1)
        scores = {m: 0.5 + gain.get(m, 0.0) + gain.get(f"{job.task.name} {m}", 0.0) for m in ("clean", "bias_field:1")}
        scores |= {f"{m}:1": 0.5 + gain.get(m, 0.0) for m in ("blur", "noise")}
        if TODAY not in job.arm.name:
            scores = {m: value + noise for m, value in scores.items()}
        records.append({"key": job.key, "split": "val", "task": job.task.name, "arm": job.arm.name, "seed": job.seed})
        records[-1]["scores"] = scores
    return records


GOOD = {"bias_field:1": 0.1, "clean": 0.0, "blur": -0.01, "noise": -0.02}


@pytest.mark.parametrize(
    ("change", "passes"),
    [
        ({}, True),
        ({"clean": -0.006}, False),
        ({"organs clean": -0.0149, "joined clean": 0.01}, True),
        ({"organs clean": -0.016, "joined clean": 0.01}, False),
        ({"bias_field:1": 0.0}, False),
        ({"blur": -0.03}, False),
        ({"blur": -0.03, "noise": 0.0}, True),
    ],
)
def test_a_setting_passes_if_all_conditions_hold(change, passes):
    records = _validation({"linear 0-.4 .20": {**GOOD, **change}}, SETTINGS)
    verdict = judge(Results(records, "val"), next(s for s in SETTINGS if s.name == "linear 0-.4 .20"))
    assert verdict.passes == passes


def test_the_rule_takes_the_best_of_those_that_pass_once_all_runs_exist():
    changes = {"linear 0-.4 .20": GOOD, "cubic 0-.4 .20": {**GOOD, "bias_field:1": 0.12}}
    changes["cubic .25 .20"] = {**GOOD, "bias_field:1": 0.5, "clean": -0.1}
    records = _validation(changes, SETTINGS)
    results, done = Results(records, "val"), {record["key"] for record in records}
    assert choose(results, SETTINGS).setting.name == "cubic 0-.4 .20"
    assert f"not decided: 7 of {len(done)} runs of the rule's first stage exist" in outcome(
        results, set(list(done)[:7])
    )
    later = second_stage(results, done)
    assert [arm.name for arm in later] == ["cubic 0-.4 .30", "cubic 0-.4 .20 clipped", "cubic 0-.4 .30 clipped"]
    assert f"not decided: {len(done)} of {len(done) + 72} runs of the rule's two stages exist" in outcome(results, done)
    more = _validation({"cubic 0-.4 .30": {**GOOD, "bias_field:1": 0.2}}, later)
    records = list({record["key"]: record for record in [*records, *more]}.values())
    decided = outcome(Results(records, "val"), {record["key"] for record in records})
    assert decided.startswith("Decided: `cubic 0-.4 .30`. Who pays: joined under blur")
    chosen = taken(Results(records, "val"), {record["key"] for record in records})
    names = [arm.name for arm in arms_on_test(chosen)[len(PROTOCOL) :]]
    assert names == ["cubic 0-.4 .30", "normalized+cubic 0-.4 .30", "color-jitter+cubic 0-.4 .30"]
    assert (
        arms_on_test(None) == arms_on_test(SETTINGS[0]) == arms_on_test(SETTINGS[1]) == PROTOCOL
    )  # arms of the protocol


def test_without_a_setting_that_passes_todays_default_stays():
    records = _validation({}, SETTINGS)
    later = second_stage(Results(records, "val"), {record["key"] for record in records})
    assert [arm.name for arm in later] == ["nearest .10 .30", "nearest .10 .20 clipped", "nearest .10 .30 clipped"]
    records += _validation({}, later)
    assert "stays" in outcome(Results(records, "val"), {record["key"] for record in records})


def test_the_pages_have_the_tables_of_the_committed_runs():
    records, earlier = read_results(RESULTS), read_results(EARLIER)
    page = EVIDENCE.read_text(encoding="utf-8")
    assert report.evidence_page(page, records) == page
    assert report.results_page(records) == report.PAGE.read_text(encoding="utf-8")
    page = report.EARLIER_PAGE.read_text(encoding="utf-8")
    assert report.earlier_page(page, earlier) == page


def test_tables_and_heat_map_of_complete_runs(tmp_path):
    generator = np.random.default_rng(0)
    records = [
        {"key": job.key, "split": "test", "task": job.task.name, "arm": job.arm.name, "seed": job.seed}
        | {"scores": {name: generator.random() for name in ("clean", "bias_field:1", "blur:1", "ct2")}}
        for job in protocol_jobs()
    ]
    page = report.results_page(records)
    assert page.count(f"| {MASKS.title} | 8 | ") == 1 + 3  # against plain, and of each task
    assert page.count("*No runs yet.*") == 1  # on validation
    assert page.count(f"| {MASKS.on(NORMALIZED).title} | 8 | ") == 2 + 3
    report.heat_map(Results(records, "test"), {arm.name: arm.title for arm in PROTOCOL}, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 10_000


def test_the_readme_quotes_the_table():
    """Its rows are rows of the evidence page's table, some of whose columns it leaves out."""
    tables = [
        [
            line.replace("\N{NO-BREAK SPACE}", " ").strip("| ").split(" | ")
            for line in text.splitlines()
            if line.startswith("| ")
        ]
        for text in (
            README.read_text(encoding="utf-8").partition("## What to expect\n")[2].partition("\n\n## ")[0],
            EVIDENCE.read_text(encoding="utf-8").partition("<!-- PROTOCOL -->\n")[2].partition("\n<!--")[0],
        )
    ]
    (header, *lines), (measures, *rows) = tables
    found = {cells[0].removeprefix("each image "): dict(zip(measures, cells, strict=True)) for cells in rows}
    assert len(lines) == 5
    for line in lines:
        name = line[0].removeprefix("each image ")
        assert line[1:] == [found[name][measure] for measure in header[1:]]


def test_settings_of_masks_run_on_both_kinds_of_images():
    assert [arm.normalize for arm in of_both(SETTINGS[1])] == [False, True]
    assert len({arm.name for arm in SETTINGS}) == 12
    assert {name for _, tasks in EARLIER_ROWS.values() for name in tasks} >= set(TASKS)
