"""The package as a whole: it imports quickly, its examples run, its names exist."""

import ast
import doctest
import importlib
import json
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest
import torch

import policy_noise

ROOT = pathlib.Path(policy_noise.__path__[0])
EXTRAS = {
    "lightning",
    "transformers",
    "monai",
    "ignite",
    "accelerate",
    "matplotlib",
    "medmnist",
    "sklearn",
    "tqdm",
    "torchio",
    "albumentations",
    "batchgeneratorsv2",
}
MODULES = [policy_noise.__name__] + [
    module.name
    for module in pkgutil.walk_packages(policy_noise.__path__, "policy_noise.")
    if not module.name.endswith("__main__")
]


def import_or_skip(name):
    """A module of the package, unless it needs an extra that is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = error.name or getattr(error.__cause__, "name", "")  # integrations name their extra, from the cause
        if missing.split(".")[0] not in EXTRAS:
            raise
        pytest.skip(f"{name} needs {missing}, an extra that is not installed")


def test_importing_it_is_light():
    """Nothing heavier than torch itself, in a fresh interpreter."""
    heavy = ["timm", "kornia", "torchvision", "sklearn", "matplotlib", "scipy", "pandas", "torch._dynamo"]
    heavy += ["lightning", "transformers", "accelerate", "monai", "ignite", "torchio", "albumentations"]
    code = f"import json, sys, torch; before = set(sys.modules); import policy_noise; heavy = {heavy!r}; "
    code += "print(json.dumps([name for name in heavy if name in sys.modules and name not in before]))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert json.loads(output) == []


WITH_EXAMPLES = [
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted(ROOT.rglob("*.py"))
    if ">>>" in path.read_text()
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_in_docstrings(name):
    module = import_or_skip(name)
    torch.manual_seed(0)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


API = (ROOT.parent / "docs/api.md").read_text(encoding="utf-8")
LISTED = re.findall(r"^\.\. auto(?:class|function|exception):: (\S+)", API, re.MULTILINE)
for listed, members in re.findall(r"^\.\. automodule:: (\S+)\n   :members: (.+)$", API, re.MULTILINE):
    LISTED += [f"{listed}.{member}" for member in members.split(", ")]


@pytest.mark.parametrize("name", LISTED)
def test_what_the_api_page_lists_has_an_example(name):
    module, _, item = name.rpartition(".")
    assert ">>>" in getattr(import_or_skip(module), item).__doc__


@pytest.mark.parametrize("name", MODULES)
def test_all_names_exist(name):
    module = import_or_skip(name)
    missing = [item for item in getattr(module, "__all__", []) if not hasattr(module, item)]
    assert not missing


def test_the_fixed_names():
    assert set(policy_noise.__all__) >= {"attach", "PolicyNoiseMask", "ReinforceHook", "functional", "MaskSample"}
    for name in ("render_mask", "reinforce_loss", "paper_objective"):
        assert callable(getattr(policy_noise.functional, name))
    assert policy_noise.__version__


# -- rooms -------------------------------------------------------------------------------------------------------------

BELOW = {
    "utils": set(),
    "functional": {"utils"},
    "augmentation": set(),
    "policy": {"utils"},
    "presets": set(),
    "version": set(),
    "settings": {"functional"},
    "losses": {"utils"},
    "learning": {"functional", "augmentation", "utils"},
    "masks": {"functional", "augmentation", "policy", "presets", "utils"},
    "hooks": {"functional", "augmentation", "learning", "losses", "masks", "utils"},
    "heated": {"utils", "version"},
}
"""What each subpackage may import from the package. Those above it (such as factory) may import all."""
ABOVE = {"__main__", "adapters", "check", "factory", "integrations", "experiments", "plotting", "__init__"}


def rooms():
    return [(path, path.relative_to(ROOT).with_suffix("").parts) for path in sorted(ROOT.rglob("*.py"))]


def imported_by(path, parts):
    """Full names of the modules and objects of the package that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = ["policy_noise", *parts[: len(parts) - node.level]] if node.level else []
            module = [*start, *(node.module or "").split(".")] if node.module else start
            names = [[*module, alias.name] for alias in node.names]
        else:
            continue
        yield from (name[1:] for name in names if name[0] == "policy_noise" and len(name) > 1)


def test_imports_only_point_down():
    wrong = []
    for path, parts in rooms():
        room = parts[0]
        if room in ABOVE:
            continue
        wrong += [
            f"{'/'.join(parts)} imports {'.'.join(name)}"
            for name in imported_by(path, parts)
            if name[0] != room and name[0] not in BELOW[room]
        ]
    assert not wrong, wrong


def test_the_hook_is_imported_by_what_stands_above_it():
    wrong = [
        "/".join(parts)
        for path, parts in rooms()
        if parts[0] not in {"check", "factory", "integrations", "__init__"}
        and _imports_at_runtime(path, parts, ["hooks", "hook"])
    ]
    assert not wrong, wrong


def _imports_at_runtime(path, parts, module):
    """Whether a file imports a module other than for its annotations."""
    text = re.sub(r"if TYPE_CHECKING:\n(?:(?:    .*)?\n)+", "", path.read_text())
    source = type("Source", (), {"read_text": lambda self: text})()
    return any(name[: len(module)] == module for name in imported_by(source, parts))


def test_the_augmentation_needs_torch_alone():
    tree = ast.parse((ROOT / "augmentation.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in modules} - set(sys.stdlib_module_names) == {"torch"}
