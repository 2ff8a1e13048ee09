"""fastai by the recipe: a callback for learned masks, one line for random ones."""

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny import TinyNet, Watch, assert_clean, assert_masked, assert_moved, policy_vector, tiny_data
from torch import nn

pytest.importorskip("fastai.learner", exc_type=ImportError)
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import Adam, OptimWrapper

import policy_noise
from policy_noise.hooks._registry import hooks_on, stepping_optimizer

EXAMPLE = Path(__file__).parents[2] / "examples/integrations/fastai_learner.py"
IMAGES = tiny_data().tensors[0]


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("fastai_learner", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wrapped(parameters, lr):
    return OptimWrapper(parameters, torch.optim.SGD, lr=lr)


def learner_of(*callbacks, **options):
    torch.manual_seed(0)
    data = DataLoaders(DataLoader(tiny_data(), bs=8), DataLoader(tiny_data(), bs=8), device="cpu")
    learner = Learner(data, TinyNet(), loss_func=nn.CrossEntropyLoss(), lr=0.01, cbs=list(callbacks), **options)
    learner.remove_cbs([each for each in learner.cbs if type(each).__name__ == "ProgressCallback"])
    learner.logger = print
    return learner


class Before(Callback):
    """Remembers the policy before the first step."""

    order = 13

    def before_train(self):
        self.policy = policy_vector(self.learn.learned_masks.hook)


@pytest.mark.parametrize("opt_func", [Adam, wrapped])
def test_the_policy_learns_and_validation_is_clean(example, opt_func):
    masks, before = example.LearnedMasks(), Before()
    learner = learner_of(masks, before, opt_func=opt_func)
    watch = Watch(learner.model.block1)
    learner.fit(1)
    assert_moved(before.policy, masks.hook)
    assert masks.hook.metrics["samples_seen"] == len(IMAGES)
    assert_masked(watch.training, IMAGES)
    assert_clean(watch.validation, IMAGES)
    assert not hooks_on(learner.model)


class Stopping(Callback):
    def after_step(self):
        raise KeyboardInterrupt


def test_a_fit_after_an_interrupted_one_takes_its_hook_off(example):
    masks = example.LearnedMasks()
    learner = learner_of(masks)
    with pytest.raises(KeyboardInterrupt):
        learner.fit(1, cbs=Stopping())
    learner.fit(1)
    assert not hooks_on(learner.model)


def test_random_masks_need_no_callback():
    learner = learner_of()
    watch = Watch(learner.model.block1)
    with policy_noise.attach(learner.model, None):
        learner.fit(1)
    assert_masked(watch.training, IMAGES)
    assert_clean(watch.validation, IMAGES)


def test_fastais_wrapper_is_looked_through():
    inner = torch.optim.SGD(TinyNet().parameters(), lr=0.1)
    assert stepping_optimizer(OptimWrapper(opt=inner)) is inner


def test_the_example_runs(example, capsys):
    example.main()
    assert "policy_grad_norm" in capsys.readouterr().out
