"""The first command of the README, with as little training as it allows."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "quickstart.py"


def test_table_and_pictures(tmp_path, monkeypatch, capsys):
    arguments = ["--output", str(tmp_path / "out"), "--seeds", "1", "--epochs", "1"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr().out
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in printed
    body, _, origin = table.partition("\n\n")
    assert "--seeds 1 --epochs 1" in origin
    rows = [line.split("|") for line in body.splitlines()[2:]]
    assert [row[2].strip() for row in rows] == ["conventional", "frozen noise", "policy noise"] * 4
    assert all(0 < float(row[3]) < 1 for row in rows)
    for name in ("gallery.png", "training.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 900
            assert len(picture.convert("RGB").getcolors(10**6)) > 100


def test_refuses_no_seeds(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--seeds", "0"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "--seeds and --epochs must be at least 1, got 0" in capsys.readouterr().err
