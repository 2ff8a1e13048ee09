"""The tutorial notebook: it runs, and its outputs are those of a whole run."""

from pathlib import Path

import nbformat
import pytest
from matplotlib import pyplot

TUTORIAL = Path(__file__).resolve().parents[1] / "examples" / "tutorial.ipynb"


@pytest.fixture
def notebook():
    return nbformat.read(TUTORIAL, as_version=4)


def test_the_tutorial_runs(notebook, monkeypatch, capsys):
    """One epoch per stage on few of the images, without a kernel. The workflow runs the whole notebook in one."""
    shorter = {"EPOCHS, BATCH = 5, 32": "EPOCHS, BATCH = 1, 32", 'split("train")': 'split("train", 18)'}
    shorter |= {f'split("{name}")': f'split("{name}", 6)' for name in ("test", "ct2_test")}
    shorter["def split(name):"] = "def split(name, step=1):"
    shorter['file[f"{name}_images"])'] = 'file[f"{name}_images"][::step])'
    shorter['file[f"{name}_labels"])'] = 'file[f"{name}_labels"][::step])'
    shorter["names.index(name))[5]"] = "names.index(name))[0]"
    found = dict.fromkeys(shorter, 0)
    for cell in notebook.cells:
        for old, new in shorter.items():
            found[old] += cell.source.count(old)
            cell.source = cell.source.replace(old, new)
    assert all(found.values()), found
    monkeypatch.chdir(TUTORIAL.parent)
    names = {}
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            exec(compile(cell.source.replace("%matplotlib inline", ""), f"cell {number}", "exec"), names)
    pyplot.close("all")
    assert "learned masks" in capsys.readouterr().out


def test_the_committed_outputs_are_complete(notebook):
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [kind for cell in cells for output in cell.outputs for kind in output.get("data", {})]
    assert kinds.count("image/png") == 3
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)
