"""Torch's private names are used in one module, and without them everything works with the documented fallbacks."""

import ast
import threading
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import policy_noise
from policy_noise import PolicyNoiseMask, attach
from policy_noise.utils import compat

NAMES = ["_sample_dirichlet", "_current_graph_task_id", "_are_functorch_transforms_active"]
NAMES += ["_top_saved_tensors_default_hooks", "_engine_run_backward"]


class Lacking:
    """A module without one name. Torch itself needs the name, so it is hidden from this package only."""

    def __init__(self, module, name):
        self._module, self._name = module, name

    def __getattr__(self, name):
        if name == self._name:
            raise AttributeError(name)
        value = getattr(self._module, name)
        return Lacking(value, self._name) if name in ("_C", "_autograd", "autograd", "graph") else value


def hide(monkeypatch, name):
    monkeypatch.setattr(compat, "torch", Lacking(torch, name))


def train(make_model, batch, call=lambda model, images: model(images), steps=3):
    """Losses, and the policy at the end."""
    torch.manual_seed(0)
    model, criterion = make_model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = attach(model, optimizer, criterion, p=1.0, grid_size=4)
    losses = []
    for _ in range(steps):
        loss = criterion(call(model, batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    assert hook.metrics["samples_seen"] == 8 * steps
    return torch.stack(losses), nn.utils.parameters_to_vector(hook.augmentation.parameters())


def recomputed(model, images):
    return checkpoint(model, images, use_reentrant=False, preserve_rng_state=False)


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("call", [lambda model, images: model(images), recomputed], ids=["plain", "checkpointed"])
def test_a_loop_is_the_same_without_a_private_name(make_model, batch, monkeypatch, name, call):
    expected = train(make_model, batch, call)
    hide(monkeypatch, name)
    for with_it, without in zip(expected, train(make_model, batch, call), strict=True):
        torch.testing.assert_close(with_it, without)


@pytest.mark.parametrize("call", [lambda model, images: model(images), recomputed], ids=["plain", "checkpointed"])
def test_a_loop_learns_without_the_samplers_private_name(make_model, batch, monkeypatch, call):
    """Other draws from the same distribution, reproducible, without changing the global generator."""
    hide(monkeypatch, "_sample_dirichlet")
    first, second = train(make_model, batch, call), train(make_model, batch, call)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(value.isfinite().all() for value in first)
    before = torch.get_rng_state()
    concentration = torch.full((4000, 2), 2.0)
    drawn = compat.sample_dirichlet(concentration, torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(drawn, compat.sample_dirichlet(concentration, torch.Generator().manual_seed(1)))
    assert drawn[:, 0].mean().item() == pytest.approx(0.5, abs=0.02)
    assert drawn[:, 0].var().item() == pytest.approx(0.05, abs=0.005)
    assert not torch.equal(compat.sample_dirichlet(concentration, None), drawn)


def test_transforms_are_seen_and_taken_to_be_at_work_where_nothing_tells(monkeypatch):
    seen = []

    def function(x):
        seen.append((compat.are_transforms_active(), compat.is_transformed()))
        return x * 2

    function(torch.ones(2))
    torch.func.vmap(function)(torch.ones(2))
    hide(monkeypatch, "_are_functorch_transforms_active")
    function(torch.ones(2))
    assert seen == [(False, False), (True, True), (True, False)]


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputation_is_known_from_a_forward(monkeypatch, hidden, reentrant):
    if hidden:
        hide(monkeypatch, "_current_graph_task_id")
    seen = []

    def function(x):
        seen.append(compat.is_in_backward())
        return x.sin().cos()

    images = torch.ones(2, requires_grad=True)
    checkpoint(function, images, use_reentrant=reentrant).sum().backward()
    assert seen == [False, True]


@pytest.mark.parametrize("hidden", [False, True])
def test_the_policys_graph_is_kept_from_what_surrounds_the_model(monkeypatch, hidden):
    if hidden:
        hide(monkeypatch, "_top_saved_tensors_default_hooks")
    told = hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks")  # not in the oldest torch
    assert compat.is_saved_elsewhere() == (hidden or not told)
    packed = []
    weight = torch.ones(3, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: packed.append(x) or x, lambda x: x):
        assert compat.is_saved_elsewhere()
        with compat.own_graph():
            (weight * weight).sum().backward()
        assert not packed
        (weight * weight).sum()
    assert packed


@pytest.mark.parametrize("hidden", [False, True])
def test_what_a_backward_pass_began_at_is_known_in_every_thread(monkeypatch, hidden):
    """A hook on a GPU's tensor runs in a thread of the engine."""
    if hidden:
        hide(monkeypatch, "_engine_run_backward")
    found = []

    def elsewhere(gradient):
        thread = threading.Thread(target=lambda: found.extend(compat.backward_roots()))
        thread.start()
        thread.join()

    tensor = torch.ones(2, requires_grad=True)
    output = tensor * 2
    output.register_hook(elsewhere)
    loss = output.sum()
    loss.backward()
    assert [root is loss for root in found] == ([] if hidden else [True])
    assert compat.backward_roots() == []


def test_nodes_tell_their_shapes_and_what_they_saved():
    tensor = torch.ones(2, 3, requires_grad=True)
    picked = tensor.exp()[:, torch.tensor([0, 1])]
    assert compat.node_shapes(picked.grad_fn) == [(2, 2)]
    assert compat.saved(picked.grad_fn, "indices")[1].tolist() == [0, 1]
    assert compat.saved(picked.grad_fn, "dim", None) is None
    with pytest.raises(AttributeError):
        compat.saved(picked.grad_fn, "dim")
    picked.sum().backward()
    assert compat.saved(picked.grad_fn, "indices") is None


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_draws_without_a_private_name(monkeypatch, name):
    hide(monkeypatch, name)
    mask = PolicyNoiseMask(in_chans=3, p=1.0)
    sample = mask.sample(torch.rand(4, 3, 16, 16), torch.Generator().manual_seed(0))
    sample.log_prob.sum().backward()
    assert all(p.grad.isfinite().all() for p in mask.parameters() if p.grad is not None)


PACKAGE = Path(policy_noise.__file__).parent
OF_PYTHON = {"_asdict", "_exit", "_fields", "_getframe", "_replace"}
"""Documented, though they begin with an underscore."""
OF_LIBRARIES = {
    "integrations/lightning.py": {"_generate_state_key", "_skip_backward"},
    "adapters/monai.py": {"_do_transform"},
    "experiments/commands/__init__.py": {"_instances"},
    "adapters/torchio.py": {"_get_base_args"},
}


def used_in(tree):
    """Names that a module imports, or reads from objects, or looks up by a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            yield from [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in alias.name.split("."))
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            yield from (str(part.value) for part in ast.walk(node) if isinstance(part, ast.Constant))


def defined_in(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.Assign) and "__slots__" in map(ast.unparse, node.targets):
            yield from (part.value for part in ast.walk(node.value) if isinstance(part, ast.Constant))


def test_private_names_of_torch_are_used_in_one_module():
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")}
    own = {name for tree in trees.values() for name in defined_in(tree)}
    found = {}
    for path, tree in trees.items():
        private = {name for name in used_in(tree) if name.startswith("_") and not name.endswith("__")}
        found[path.relative_to(PACKAGE).as_posix()] = private - own - OF_PYTHON
    in_compat = found.pop("utils/compat.py")
    assert {"_sample_dirichlet", "_input_metadata", "_saved_", "_pytree", "_version", "_orig_mod"} <= in_compat
    assert {name: private for name, private in found.items() if private} == OF_LIBRARIES
