"""The callback for fastai's Learner, with fastai's own optimizers and with torch's."""

import pytest
import torch
from tiny import TinyNet, policy_vector, tiny_data
from torch import nn

pytest.importorskip("fastai.learner", exc_type=ImportError)
from fastai.callback.progress import ProgressCallback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.optimizer import Adam, OptimWrapper

from policy_noise.integrations.fastai import PolicyNoiseCallback


def wrapped(parameters, lr):
    return OptimWrapper(parameters, torch.optim.SGD, lr=lr)


@pytest.mark.parametrize("opt_func", [Adam, wrapped])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss, CrossEntropyLossFlat])
def test_the_policy_learns_and_is_kept_from_fit_to_fit(opt_func, loss):
    callback = PolicyNoiseCallback(grid_size=4)
    data = DataLoaders(DataLoader(tiny_data(), bs=8), DataLoader(tiny_data(), bs=8), device="cpu")
    learner = Learner(data, TinyNet(), loss_func=loss(), opt_func=opt_func, lr=0.01, cbs=[callback])
    learner.remove_cbs([each for each in learner.cbs if isinstance(each, ProgressCallback)])
    with learner.no_logging():
        learner.fit(1)
        first = policy_vector(callback.hook).clone()
        assert callback.hook.learner.optimizer.state
        learner.fit(1, lr=0.0)
    assert torch.equal(policy_vector(callback.hook), first)
