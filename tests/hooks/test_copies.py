"""Copies of a hooked model are inert, and ``detach`` makes them the plain model again."""

import copy
import io
import subprocess
import sys

import pytest
import timm.utils
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from policy_noise import attach, detach
from policy_noise.hooks.registry import hooks_on


def hooked(make_model):
    model = make_model()
    return model, attach(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())


def loads_without_this_package(model, folder):
    """Whether a pickle loads in a process that cannot import this package. It reports the error, else nothing."""
    torch.save(model, folder / "model.pt")
    code = (
        f"import sys; sys.modules['policy_noise'] = None; import torch; "
        f"model = torch.load({str(folder / 'model.pt')!r}, weights_only=False); model(torch.zeros(1, 3, 32, 32))"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr


def deepcopied(model):
    return copy.deepcopy(model)


def loaded(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def ema_of_timm(model):
    return timm.utils.ModelEmaV3(model)


def ema_of_torch(model):
    return AveragedModel(model)


@pytest.mark.parametrize("make_copy", [deepcopied, loaded, ema_of_timm, ema_of_torch])
def test_a_detached_copy_is_the_plain_model(make_model, batch, make_copy):
    model, hook = hooked(make_model)
    twin = make_copy(model)
    assert detach(twin) == 1
    assert detach(twin) == 0
    inner = getattr(twin, "module", twin).eval()
    assert not inner._forward_hooks | inner._forward_pre_hooks
    assert not inner._forward_hooks_with_kwargs | inner._forward_pre_hooks_with_kwargs
    scripted = torch.jit.script(inner)
    torch.testing.assert_close(scripted(batch[0]), model.eval()(batch[0]))
    exported = torch.export.export(inner, (batch[0],)).module()
    torch.testing.assert_close(exported(batch[0]), model(batch[0]))
    assert hooks_on(model) == [hook]


def test_a_detached_copy_loads_without_this_package(make_model, tmp_path):
    model, _ = hooked(make_model)
    twin = copy.deepcopy(model)
    assert "policy_noise" in loads_without_this_package(twin, tmp_path)
    detach(twin)
    assert not loads_without_this_package(twin, tmp_path)


def test_a_model_whose_hook_was_removed_loads_without_this_package(make_model, tmp_path):
    model, hook = hooked(make_model)
    hook.remove()
    assert not loads_without_this_package(model, tmp_path)


def test_detach_leaves_the_users_own_hooks(make_model, batch):
    model, _ = hooked(make_model)
    calls = []
    model.register_forward_hook(Note(calls))
    twin = copy.deepcopy(model)
    assert detach(twin) == 1
    (note,) = twin._forward_hooks.values()
    twin(batch[0])
    assert len(note.calls) == 1


class Note:
    def __init__(self, calls):
        self.calls = calls

    def __call__(self, *args):
        self.calls.append(args)
