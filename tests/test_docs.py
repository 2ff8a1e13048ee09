"""README and documentation: the code runs, the links work, and every warning is explained."""

import ast
import re
from pathlib import Path

import pytest
import timm
import torch
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser
from torch import nn

import policy_noise

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
]
NOT_RUN = "<!-- not run: "
SHELL = re.compile(r"^```(?!python|\{|bibtex|$)(\w+)", re.MULTILINE)


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


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
        "small_model": timm.create_model(architecture, num_classes=2),
    }


@pytest.mark.parametrize("page", [page for page in PAGES if "```python" in text_of(page)])
@pytest.mark.filterwarnings("ignore:the images' smallest values")
def test_python_on_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    document = Sybil([PythonCodeBlockParser(), SkipParser()]).parse(ROOT / page)
    document.namespace.update(names(page))
    for example in document.examples():
        example.evaluate()


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


def figures(text):
    """Numbers with an interval, without their signs."""
    return {re.sub(r"\s", " ", found) for found in re.findall(r"\d?\.\d{2,3}\s±\s\d?\.\d{2,3}", text)}


@pytest.mark.parametrize("page", PAGES)
def test_figures_stand_in_a_table_that_a_command_wrote(page):
    tables = re.findall(r"<!-- [A-Z]+ -->(.*?)<!-- /[A-Z]+ -->", text_of("docs/evidence.md"), re.DOTALL)
    results = [
        path.read_text(encoding="utf-8") for name in ("benchmarks", "examples") for path in ROOT.glob(f"{name}/**/*.md")
    ]
    assert figures(text_of(page)) <= figures("\n".join(tables + results))


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
