"""README and documentation: the code runs, the links work, and every warning is explained."""

import ast
import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from torch import nn

import policy_noise
from policy_noise.presets import get_preset

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
]
NOT_RUN = "<!-- not run: "
OUTPUT = re.compile(r"^```python\n(?:(?!^```).)*^```\n\n```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""What the code before it prints."""
SHELL = re.compile(r"^```(?!python|\{|bibtex|$)(\w+)", re.MULTILINE)


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def without_numbers(text):
    return re.sub(r"[-+]?\d[\d.]*", "#", text)


def names(page):
    """What a page's code may use without defining it: a small model, its loop's parts and three batches of two."""
    architecture = "resnet50" if page == "README.md" else "test_resnet"
    loader = [(torch.rand(2, 3, 64, 64) * 2 - 1, torch.tensor([0, 1])) for _ in range(3)]
    model = timm.create_model(architecture, num_classes=5)
    return {
        "policy_noise": policy_noise,
        "torch": torch,
        "loader": loader,
        "images": loader[0][0],
        "targets": loader[0][1],
        "clean_batches": loader,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=1e-3),
        "criterion": nn.CrossEntropyLoss(),
        "train": lambda model, optimizer, criterion: None,
        "writer": SimpleNamespace(add_scalar=lambda name, value, step: None),
        "small_model": timm.create_model(architecture, num_classes=2),
    }


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in text_of(page)])
@pytest.mark.filterwarnings("ignore:the images' smallest values")
def test_python_on_a_page_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    document = Sybil([PythonCodeBlockParser(), SkipParser()]).parse(ROOT / page)
    document.namespace.update(names(page))
    for example in document.examples():
        example.evaluate()
    printed = capsys.readouterr().out
    for shown in OUTPUT.findall(text_of(page)):
        assert without_numbers(shown) in without_numbers(printed)


def test_the_pages_have_code():
    found = {page: len(re.findall("^```python", text_of(page), re.MULTILINE)) for page in PAGES}
    assert found["README.md"] >= 3
    assert found["docs/get-started.md"] >= 5
    assert found["docs/recipes.md"] >= 7


@pytest.mark.parametrize("page", PAGES)
def test_code_that_is_not_run_says_why(page):
    text = text_of(page)
    for match in SHELL.finditer(text):
        before = text[: match.start()].rstrip().splitlines()[-1]
        assert before.startswith((NOT_RUN, "<!-- test command -->")), match.group(1)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    targets = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text_of(page))
    lost = [target for target in targets if "://" not in target and not (ROOT / page).parent.joinpath(target).exists()]
    assert not lost


@pytest.mark.parametrize("preset", ["random", "learned", "paper"])
def test_the_settings_page_has_the_defaults(preset):
    defaults = {
        name: parameter.default
        for kind in (policy_noise.PolicyNoiseMask, policy_noise.learning.PolicyLearner, policy_noise.RandomShading)
        if preset == "random" or kind is not policy_noise.RandomShading
        for name, parameter in inspect.signature(kind).parameters.items()
    }
    defaults |= get_preset(preset).mask | get_preset(preset).hook
    table = [row.split(" | ") for row in re.findall(r"^\| (`\w+`.*) \|$", text_of("docs/settings.md"), re.MULTILINE)]
    compared = 0
    for row in table:
        cell = row[["random", "learned", "paper"].index(preset) + 1]
        if cell.startswith("`") and cell.count("`") == 2:
            names = [name.strip("` ") for name in row[0].split(",")]
            shown = ast.literal_eval(cell.strip("`"))
            found = defaults[names[0]] if len(names) == 1 else tuple(defaults[name] for name in names)
            assert shown == found, f"{row[0]} of {preset}"
            compared += 1
    assert compared >= 6


def test_the_readme_is_short():
    assert len(text_of("README.md").splitlines()) <= 130


def messages():
    """Texts of all warnings, and of the errors that need more explanation than the argument's name."""
    for path in sorted(Path(policy_noise.__file__).parent.rglob("*.py")):
        if "experiments" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            if called in ("warn", "RuntimeError", "PairingError"):
                yield node.args[0]
            elif called.endswith(".say") and isinstance(node.func.value, ast.Attribute | ast.Name):
                yield node.args[1]


def literal_parts(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        yield from literal_parts(child)


def test_every_warning_is_explained():
    page = re.sub(r"\s+", " ", text_of("docs/troubleshooting.md"))
    unexplained = []
    for node in messages():
        parts = [part.strip(" :") for part in literal_parts(node)]
        starts = [" ".join(part.split()[:5]) for part in parts if len(part.split()) > 3]
        if starts and not any(start in page for start in starts):
            unexplained.append(starts)
    assert not unexplained


def test_every_metric_is_explained(make_model):
    page = text_of("docs/troubleshooting.md")
    model = make_model()
    with policy_noise.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss()) as hook:
        assert all(f"`{name}`" in page for name in hook.metrics)
