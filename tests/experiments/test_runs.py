"""Run folders."""

import dataclasses
import json
import subprocess
from dataclasses import dataclass

import pytest

from policy_noise.experiments import runs
from policy_noise.experiments.recipes import RECIPES
from policy_noise.experiments.runs import Run, environment, read_lines, write_atomic
from policy_noise.presets import PRESETS, Preset


@dataclass(frozen=True)
class Recipe:
    epochs: int = 3
    model: str = "tiny"


def test_folder_says_what_was_asked_for(tmp_path):
    Run(tmp_path / "a", "pretrain", Recipe(), {"name": "set"}, resume=False)
    record = json.loads((tmp_path / "a" / "recipe.json").read_text())
    recipe = {"epochs": 3, "model": "tiny"}
    assert record == {"stage": "pretrain", "data": {"name": "set"}, "recipe": recipe, "presets": {}}
    place = json.loads((tmp_path / "a" / "environment.json").read_text())
    assert {"command", "date", "packages", "git_revision", "processor", "device"} <= place.keys()


def test_environment_names_packages():
    assert environment()["packages"]["torch"].count(".") >= 2


def test_existing_run_is_not_overwritten(tmp_path):
    Run(tmp_path, "pretrain", Recipe(), {"name": "set"}, resume=False)
    with pytest.raises(FileExistsError, match="--resume"):
        Run(tmp_path, "pretrain", Recipe(), {"name": "set"}, resume=False)
    Run(tmp_path, "pretrain", Recipe(), {"name": "set"}, resume=True)


@pytest.mark.parametrize(
    ("stage", "recipe", "name", "message"),
    [
        ("finetune", Recipe(), "set", 'stage was "pretrain" and is "finetune"'),
        ("pretrain", Recipe(epochs=4), "set", r"recipe\.epochs was 3 and is 4"),
        ("pretrain", Recipe(model="other"), "other", r'data\.name was "set" and is "other"; recipe\.model was'),
    ],
)
def test_resume_of_another_run_is_refused(tmp_path, stage, recipe, name, message):
    Run(tmp_path, "pretrain", Recipe(), {"name": "set"}, resume=False)
    before = (tmp_path / "recipe.json").read_bytes()
    with pytest.raises(ValueError, match=message):
        Run(tmp_path, stage, recipe, {"name": name}, resume=True)
    assert (tmp_path / "recipe.json").read_bytes() == before


@pytest.mark.parametrize(("stage", "noise"), [("pretrain", "learned"), ("compare", "plain")])
def test_a_run_is_not_continued_with_a_preset_that_has_changed(tmp_path, monkeypatch, stage, noise):
    recipe = RECIPES["small"]["pretrain"]
    recipe = dataclasses.replace(recipe, noise=noise)
    Run(tmp_path, stage, recipe, {"name": "set"}, resume=False)
    other = {**PRESETS, "learned": Preset(mask={}, hook={"reward": "cooperative"})}
    monkeypatch.setattr(runs, "PRESETS", other)
    with pytest.raises(ValueError, match=r"presets\.learned\.hook\.reward was \"adversarial\" and is \"cooperative\""):
        Run(tmp_path, stage, recipe, {"name": "set"}, resume=True)


def test_a_resumed_run_notes_its_second_machine(tmp_path):
    Run(tmp_path, "pretrain", Recipe(), {"name": "set"}, resume=False)
    first = json.loads((tmp_path / "environment.json").read_text())
    for times in (1, 2):
        Run(tmp_path, "pretrain", Recipe(), {"name": "set"}, resume=True)
        place = json.loads((tmp_path / "environment.json").read_text())
        assert [entry["packages"] for entry in place["resumed"]] == [first["packages"]] * times
    assert {name: place[name] for name in first} == first


def test_a_kill_before_the_second_record_leaves_a_run_that_resumes_or_none(tmp_path, monkeypatch):
    from policy_noise.experiments import runs

    written = []

    def write_once(path, value):
        if written:
            raise KeyboardInterrupt
        written.append(path.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))

    with monkeypatch.context() as patched:
        patched.setattr(runs, "write_json", write_once)
        with pytest.raises(KeyboardInterrupt):
            Run(tmp_path / "a", "pretrain", Recipe(), {"name": "set"}, resume=False)
    Run(tmp_path / "a", "pretrain", Recipe(), {"name": "set"}, resume=False)
    (tmp_path / "a" / "environment.json").unlink()  # as an older version could leave it
    Run(tmp_path / "a", "pretrain", Recipe(), {"name": "set"}, resume=True)
    assert "python" in json.loads((tmp_path / "a" / "environment.json").read_text())


def test_damaged_files_are_named(tmp_path):
    Run(tmp_path, "pretrain", Recipe(), {"name": "set"}, resume=False)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is damaged"):
        read_lines(tmp_path / "metrics.jsonl")
    (tmp_path / "recipe.json").write_text('{"stage"')
    with pytest.raises(ValueError, match=r"recipe\.json is damaged"):
        Run(tmp_path, "pretrain", Recipe(), {"name": "set"}, resume=True)


def test_the_revision_of_another_repository_is_not_this_codes(tmp_path, monkeypatch):
    """As installed into a virtual environment inside the user's own repository."""
    from policy_noise.experiments import runs

    installed = tmp_path / ".venv" / "policy_noise" / "experiments" / "runs.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    (tmp_path / "theirs.py").write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "theirs.py"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(runs, "__file__", str(installed))
    assert environment()["git_revision"] is None
    subprocess.run([*git, "add", "-f", str(installed)], check=True)
    assert len(environment()["git_revision"]) == 40


def test_others_may_read_what_they_may_read_of_other_files(tmp_path):
    (tmp_path / "plain").write_text("")
    write_atomic(tmp_path / "atomic", lambda temporary: temporary.write_text(""))
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_log_is_rewound_past_a_line_cut_short(tmp_path):
    run = Run(tmp_path, "pretrain", Recipe(), {"name": "set"}, resume=False)
    for step in range(1, 5):
        run.log({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert [entry["step"] for entry in run.history()] == [1, 2, 3, 4]
    run.rewind(2)
    run.log({"step": 3})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_log_of_no_file_is_empty(tmp_path):
    assert read_lines(tmp_path / "nothing.jsonl") == []


def test_only_the_writing_process_writes(tmp_path):
    run = Run(tmp_path / "a", "pretrain", Recipe(), {"name": "set"}, resume=False, writes=False)
    run.log({"step": 1})
    run.save("last.pt", {})
    assert not (tmp_path / "a").exists()
