"""``policy-noise verdict``, on scores of other programs, and ``policy-noise quickstart``."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from policy_noise.experiments.commands import compare, main
from policy_noise.experiments.comparison.external import judge, read_nnunet, read_runs

ROOT = Path(__file__).resolve().parents[2]


def write_scores(path, methods=("plain", "mine"), seeds=6, patients=8, gain=0.05):
    """Dice of each patient; the second method gains."""
    rng = np.random.default_rng(0)
    ease = rng.uniform(0.6, 0.8, patients)
    rows = [
        (method, seed, "test", f"p{who}", ease[who] + gain * number + rng.normal(0, 0.01))
        for number, method in enumerate(methods)
        for seed in range(seeds)
        for who in range(patients)
    ]
    table = pd.DataFrame(rows, columns=["method", "seed", "set", "patient", "dice"])
    table.to_csv(path, index=False)
    return table


def test_a_verdict_from_a_file(tmp_path, capsys):
    scores = write_scores(tmp_path / "runs.csv")
    main(["verdict", str(tmp_path / "runs.csv"), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert printed.startswith("Against plain, better somewhere and nowhere shown to be worse: mine.")
    assert "Over the 8 patients of test" in printed
    assert "Next: stop here, and use mine." in printed
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (row,) = results["tables"]["dice"]["differences"]
    means = scores.groupby(["method", "seed"])["dice"].mean().unstack("method")
    assert row["mean"] == pytest.approx((means["mine"] - means["plain"]).mean())
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("data:image/png") < page.index("<table")  # the picture stands first
    assert "http" not in page


def test_the_pages_show_what_it_prints(tmp_path, capsys):
    folder = ROOT / "examples/results/compare"
    main(["verdict", str(folder / "runs.csv"), "--output", str(tmp_path)])
    printed = capsys.readouterr().out.splitlines()
    results = re.findall(r"^- (.*(?:\n  .*)*)", (folder / "README.md").read_text(), re.MULTILINE)
    assert {re.sub(r"\s+", " ", line) for line in results} <= set(printed)
    (shown,) = re.findall(r"^(By macro F1.*?)^```", (ROOT / "docs/compare.md").read_text(), re.MULTILINE | re.DOTALL)
    assert set(shown.splitlines()) - {"..."} <= set(printed)


def test_names_and_values_may_stand_in_columns_of_their_own(tmp_path):
    wide = write_scores(tmp_path / "wide.csv").assign(error=0.3)
    wide.to_csv(tmp_path / "wide.csv", index=False)
    long = wide.melt(["method", "seed", "set", "patient"], var_name="measure")
    long.to_csv(tmp_path / "long.csv", index=False)
    one, other = (judge(read_runs(tmp_path / name), lower=["error"]) for name in ("wide.csv", "long.csv"))
    assert one["tables"] == other["tables"]
    assert list(one["tables"]) == ["dice", "error"]
    assert not one["tables"]["error"]["higher"]


def test_a_measure_may_be_of_some_sets_only(tmp_path):
    rows = [
        (method, seed, name, measure, number + 0.01 * seed)
        for number, method in enumerate(("plain", "mine"))
        for seed in range(3)
        for name, measure in (("a", "dice"), ("b", "dice"), ("a", "distance"))
    ]
    columns = ["method", "seed", "set", "measure", "value"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "runs.csv", index=False)
    main(["verdict", str(tmp_path / "runs.csv"), "--output", str(tmp_path / "out")])
    tables = json.loads((tmp_path / "out" / "results.json").read_text())["tables"]
    found = {name: [measure["key"] for measure in table["measures"]] for name, table in tables.items()}
    assert found == {"dice": ["a", "b"], "distance": ["a"]}


def test_a_german_excels_file_and_a_long_form_with_another_name(tmp_path):
    table = write_scores(tmp_path / "runs.csv")
    table.to_csv(tmp_path / "semicolon.csv", index=False, sep=";", decimal=",", encoding="utf-8-sig")
    table.to_csv(tmp_path / "tabs.csv", index=False, sep="\t")
    table.to_csv(tmp_path / "points.csv", index=False, sep=";")
    table.rename(columns={"dice": "score"}).assign(measure="dice").to_csv(tmp_path / "long.csv", index=False)
    wanted = judge(read_runs(tmp_path / "runs.csv"))["tables"]
    for name in ("semicolon", "tabs", "points", "long"):
        assert judge(read_runs(tmp_path / f"{name}.csv"))["tables"] == wanted


def test_less_is_better_where_it_is_said(tmp_path):
    write_scores(tmp_path / "runs.csv")
    results = judge(read_runs(tmp_path / "runs.csv"), lower=["dice"], reference="mine")
    (row,) = results["tables"]["dice"]["differences"]
    assert (row["method"], row["versus"], row["mean"] < 0, row["finding"]) == ("plain", "mine", True, "better")


def test_one_seed_of_many_patients_gives_intervals_over_them_but_no_verdict(tmp_path):
    write_scores(tmp_path / "runs.csv", seeds=1)
    results = judge(read_runs(tmp_path / "runs.csv"))
    (row,) = results["patients"]
    scores = read_runs(tmp_path / "runs.csv").pivot(index="patient", columns="method", values="value")
    gain = (scores["mine"] - scores["plain"]).to_numpy()
    assert gain.min() < row["low"] < gain.mean() < row["high"] < gain.max()
    assert results["tables"]["dice"]["differences"][0]["finding"] == "not tested"


def test_of_few_patients_there_is_no_interval(tmp_path, capsys):
    write_scores(tmp_path / "runs.csv", patients=2)
    main(["verdict", str(tmp_path / "runs.csv"), "--output", str(tmp_path / "out")])
    printed = capsys.readouterr().out
    assert "test: too few patients for an interval over them, 2 where 8 are needed." in printed
    assert "what other patients or sites would show" in printed
    assert "<td>too few</td>" in (tmp_path / "out" / "report.html").read_text()


def test_nnunets_folders(tmp_path):
    for seed, scores in enumerate(([0.5, 0.7], [0.6, 0.8])):
        for fold, dice in enumerate(scores):
            folder = tmp_path / f"plain-{seed}" / f"fold_{fold}" / "validation"
            folder.mkdir(parents=True)
            metrics = {"1": {"Dice": dice}, "2": {"Dice": dice + 0.1}, "3": {"Dice": float("nan")}}
            case = {"reference_file": f"/data/case_{fold}.nii.gz", "metrics": metrics}
            (folder / "summary.json").write_text(json.dumps({"metric_per_case": [case]}))
    runs = read_nnunet([f"plain={tmp_path / 'plain-0'}", f"plain={tmp_path / 'plain-1'}"])
    assert runs["seed"].tolist() == [0, 0, 1, 1]
    assert runs["patient"].tolist() == ["case_0", "case_1"] * 2
    assert runs["value"].tolist() == pytest.approx([0.55, 0.75, 0.65, 0.85])
    with pytest.raises(FileNotFoundError, match=r"holds no summary\.json"):
        read_nnunet([f"plain={tmp_path / 'nothing'}"])
    with pytest.raises(ValueError, match="--nnunet must be METHOD=FOLDER, got 'plain'"):
        read_nnunet(["plain"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as CSV"),
        ("method,dice\nplain,0.5\n", "must have the columns method, seed and one for each measure"),
        ("method,seed,measure,a,b\nplain,0,dice,1,1\n", r"must have one column of values .*got \['a', 'b'\]"),
        ("method,seed\nplain,0\n", "must have the columns method, seed and one for each measure"),
        ("method,seed,dice\nplain,0,0.5\nmine,0,high\n", "line 3: dice must be a number, got high"),
        ("method,seed,dice\nplain,0,0.5\nmine,,0.5\n", "line 3: seed must be a name, got nan"),
        ("method,seed,dice\nplain,0,0.5\nplain,0,0.6\nmine,0,0.5\n", "a score is given twice: .*'plain'"),
        ("method,seed,dice\nplain,0,0.5\nplain,1,0.6\n", r"at least two methods must be compared, got \['plain'\]"),
        (
            "method,seed,dice\nplain,0,0.5\nmine,1,0.6\n",
            "all methods must have the same seeds on each set, but plain has no dice of seed 1",
        ),
        (
            "method,seed,patient,dice\nplain,0,a,0.5\nplain,0,b,0.5\nmine,0,a,0.6\n",
            "set test: all 2 runs must have scores of the same patients, and of 'b' some have none",
        ),
    ],
)
def test_bad_files(tmp_path, text, message):
    (tmp_path / "runs.csv").write_text(text)
    with pytest.raises(SystemExit, match=message):
        main(["verdict", str(tmp_path / "runs.csv"), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give a CSV file of scores, or --nnunet"),
        (["FILE", "--reference", "none"], r"--reference must be among \['plain', 'mine'\], got 'none'"),
        (["FILE", "--lower-is-better", "error"], r"--lower-is-better must be among \['dice'\], got 'error'"),
        (["FILE", "--looks", "0"], "--looks must be at least 1, got 0"),
    ],
)
def test_bad_options(tmp_path, options, message):
    write_scores(tmp_path / "runs.csv")
    words = [str(tmp_path / "runs.csv") if word == "FILE" else word for word in options]
    with pytest.raises(SystemExit, match=message):
        main(["verdict", *words, "--output", str(tmp_path / "out")])


def test_the_quickstart_is_a_comparison_on_the_data_that_come_with_the_package(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(compare, "_compare", lambda arguments: seen.update(vars(arguments)))
    main(["quickstart", "--output", str(tmp_path), "--jobs", "2"])
    assert seen["methods"] == ["normalize", "random", "normalize+random"]
    assert (seen["seeds"], seen["jobs"], seen["set"]) == (5, 2, ["epochs=5"])
    (data,), (site,) = seen["npz"], seen["site"]
    assert site == f"patient2={data}:ct2"
    with np.load(data) as file:
        assert len(file["train_images"]) == 1680
