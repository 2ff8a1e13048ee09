"""Copies of a hooked model are inert, and ``detach`` makes them the plain model again."""

import copy
import io
import pickle
import sys

import pytest
import timm.utils
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from policy_noise import attach, detach
from policy_noise.hooks._registry import hooks_on


def hooked(make_model):
    model = make_model()
    return model, attach(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss())


def error_of(pickled):
    """What loading a model and a forward raise; "" if they work."""
    try:
        pickle.loads(pickled)(torch.zeros(1, 3, 32, 32))
    except ImportError as error:
        return str(error)
    return ""


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


def test_a_model_loads_without_this_package_once_detached_or_its_hook_removed(make_model, monkeypatch):
    (model, _), (unhooked, hook) = hooked(make_model), hooked(make_model)
    twin = copy.deepcopy(model)
    detach(twin)
    hook.remove()
    pickles = [pickle.dumps(each) for each in (model, twin, unhooked)]
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] == "policy_noise"]:
            patch.setitem(sys.modules, name, None)  # importing it fails
        as_it_is, *others = [error_of(pickled) for pickled in pickles]
    assert "policy_noise" in as_it_is
    assert others == ["", ""]


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
