"""The study's declarations, the keys of its runs, and its command line."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.study import __main__ as command_line
from benchmarks.study.jobs import Job, jobs, key_of
from benchmarks.study.results import read_results
from benchmarks.study.runner import _run
from benchmarks.study.suites import SUITES

ROOT = Path(__file__).resolve().parents[3]


def test_suites_name_declared_conditions_and_seeds_come_first():
    for suite in SUITES:
        declared = jobs(suite)
        assert len({key_of(job) for job in declared}) == len(declared)
        seeds = [job.seed for job in declared]
        assert seeds == sorted(seeds)
    assert {job.splits for job in jobs("free-strength-screen")} == {("val",)}  # the choice does not use the test split


def test_key_follows_the_configuration():
    job = jobs("free-strength-screen")[0]
    other = dataclasses.replace(job, condition=dataclasses.replace(job.condition, signal="band"))
    assert key_of(job) == key_of(dataclasses.replace(job))
    assert len({key_of(job), key_of(other), key_of(dataclasses.replace(job, seed=9))}) == 3


def test_committed_results_are_those_of_their_suite():
    results = ROOT / "benchmarks" / "study" / "results"
    for name, suites, first_seed, whole in (
        ("free-strength", ("free-strength",), 0, True),
        ("free-strength-screen", ("free-strength-screen",), 0, False),
        ("fixed-std", ("fixed-std", "fixed-std-shape"), 0, False),
        ("broad-cells-screen", ("broad-cells-screen",), 100, True),
        ("default-cells-screen", ("default-cells-screen",), 200, True),
        ("transfer", ("transfer",), 0, True),
        ("paper-unlearned", ("paper-unlearned",), 0, False),
        ("broad-cells", ("broad-cells", "broad-cells-coop"), 0, False),
        ("large", ("large", "large-broad-cells", "large-brightness", "large-learned-brightness"), 0, True),
        ("bias-field-gap", ("default-cells", "bias-field-gap"), 0, True),
        ("varying-brightness", ("varying-brightness",), 0, True),
        ("default-brightness-screen", ("default-brightness-screen",), 300, True),
        ("milder-noise", ("learned-brightness", "milder-noise"), 0, True),
        ("brightness-alone", ("brightness-alone",), 0, True),
        ("augment-screen", ("augment-screen",), 400, True),
        ("augment", ("augment", "large-augment"), 0, True),
        ("default-rule-screen", ("default-rule-screen",), 500, True),
        ("learned-augment", ("learned-augment", "large-learned-augment", "learned-augment-shuffled"), 0, True),
        ("jitter", ("jitter", "jitter-learned"), 0, True),
        ("pathwise-screen", ("pathwise-screen",), 600, False),
        ("entropy-screen", ("entropy-screen",), 700, True),
        ("entropy", ("entropy", "entropy-pneumonia"), 0, True),
        ("long", ("long", "long-learned"), 0, True),
        ("long-ct", ("long-ct",), 0, False),
    ):
        found = {record["key"] for record in read_results(results / name / "runs.jsonl.gz")}
        declared = {key_of(job) for suite in suites for job in jobs(suite, first_seed=first_seed)}
        assert found == declared if whole else found < declared


def test_workers_end_with_a_killed_parent():
    script = """
import multiprocessing, time
from concurrent.futures import ProcessPoolExecutor
from benchmarks.study.runner import _start_worker
pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _start_worker, ("cpu",))
print(pool.submit(abs, -1).result(), flush=True)
pool.submit(time.sleep, 600).result()
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "1\n"
        process.kill()
        process.communicate(timeout=60)  # the output is closed when the last of them has gone


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown"):
        jobs("free-strength-screen", conditions=("nothing",))


def test_runs_are_appended_kept_and_failures_are_tried_again(tmp_path, monkeypatch, capsys):
    output = tmp_path / "results.jsonl"
    arguments = ["run", "--suite", "smoke", "--conditions", "plain", "--epochs", "1", "--device", "cpu"]
    arguments += ["--data", str(tmp_path), "--output", str(output)]
    job = jobs("smoke", conditions=("plain",), epochs=1)[0]
    output.write_text(json.dumps({"key": key_of(job), "error": "x"}) + "\n" + '{"key": cut off')
    todo: list[list[Job]] = []
    monkeypatch.setattr(command_line, "run_jobs", lambda jobs, *rest: todo.append(jobs) or 0)
    assert command_line.main(arguments) == 0
    output.write_text(json.dumps({"key": key_of(job)}) + "\n")
    command_line.main(arguments)
    assert [len(jobs) for jobs in todo] == [1, 0]
    assert "1 runs, 0 to do" in capsys.readouterr().out


def test_packed_results_are_read_as_they_were_but_for_digits(tmp_path):
    policy = [{"step": 1, "alpha": 1.0}, {"step": 2, "alpha": 1.23456789}]
    records = [{"key": "a", "scores": {"val": {"clean": 0.123456789}}, "policy": policy}, {"key": "b", "error": "x"}]
    source, packed = tmp_path / "results.jsonl", tmp_path / "results.jsonl.gz"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    command_line.main(["pack", str(source), "--output", str(packed)])
    first, second = read_results(packed)
    assert first == {"key": "a", "scores": {"val": {"clean": 0.12346}}, "policy": [{"step": 2, "alpha": 1.2346}]}
    assert second == records[1]


@pytest.mark.parametrize("option", ["task", "condition"])
def test_the_analysis_takes_what_is_chosen_alone(tmp_path, monkeypatch, option):
    source = tmp_path / "results.jsonl"
    records = [{"key": key, "task": "one", "condition": "plain", option: key} for key in "abc"]
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    taken = []
    monkeypatch.setattr(
        "benchmarks.study.report.analyse",
        lambda records, *rest, against: taken.append(("".join(record["key"] for record in records), against)),
    )
    for chosen in ([], [f"--{option}s", "a,c"], ["--against", "b"]):
        command_line.main(["analyse", str(source), *chosen, "--output", str(tmp_path)])
    assert taken == [("abc", None), ("ac", None), ("abc", "b")]
    with pytest.raises(ValueError, match=rf"--{option}s must be of the results' {option}s, got \['d'\]"):
        command_line.main(["analyse", str(source), f"--{option}s", "a,d", "--output", str(tmp_path)])


def test_a_failed_run_is_a_record(tmp_path):
    record = _run(jobs("smoke")[0], str(tmp_path), "no-such-device", False, float("inf"))
    assert record is not None
    assert "no-such-device" in record["error"]
    assert _run(jobs("smoke")[0], str(tmp_path), "cpu", False, 0.0) is None
