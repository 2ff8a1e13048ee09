"""The package as a whole: light to import, its examples run, its names are there."""

import doctest
import importlib
import json
import pkgutil
import subprocess
import sys

import pytest
import torch

import policy_noise

EXTRAS = {"lightning", "transformers", "monai", "ignite", "accelerate", "matplotlib", "medmnist", "sklearn", "tqdm"}
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
    code = f"import json, sys, torch; before = set(sys.modules); import policy_noise; heavy = {heavy!r}; "
    code += "print(json.dumps([name for name in heavy if name in sys.modules and name not in before]))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert json.loads(output) == []


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = import_or_skip(name)
    torch.manual_seed(0)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_the_main_modules_have_examples():
    finder = doctest.DocTestFinder()
    counted = {
        name: sum(len(test.examples) for test in finder.find(importlib.import_module(f"policy_noise.{name}")))
        for name in ("functional.rendering", "masks.policy_mask", "hooks.hook", "factory", "losses.splitter")
    }
    assert all(counted.values()), counted


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
