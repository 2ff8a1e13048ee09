"""The callback for fastai's Learner, in real Learners."""

import copy
import warnings

import pytest
import torch
from tiny import SETTINGS, TinyNet, Watch, assert_clean, assert_masked, parameters_equal, policy_vector, tiny_data
from torch import nn
from torch.nn import functional as F

pytest.importorskip("fastai.learner", exc_type=ImportError)
from fastai.callback.core import Callback, CancelStepException
from fastai.callback.mixup import MixUp
from fastai.callback.schedule import LRFinder
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner, load_learner
from fastai.losses import BCEWithLogitsLossFlat, CrossEntropyLossFlat
from fastai.optimizer import Adam, OptimWrapper
from fastai.torch_core import TensorCategory, TensorImage

from policy_noise.hooks._registry import hooks_on, stepping_optimizer
from policy_noise.integrations.fastai import PolicyNoiseCallback

IMAGES, TARGETS = tiny_data().tensors


def wrapped(parameters, lr):
    return OptimWrapper(parameters, torch.optim.SGD, lr=lr)


def callback(**settings):
    return PolicyNoiseCallback(**{**SETTINGS, **settings})


class Rows(list):
    """A data set that can be exported."""

    def new_empty(self):
        return Rows()


def rows(targets=TARGETS):
    return Rows((TensorImage(image), TensorCategory(target)) for image, target in zip(IMAGES, targets, strict=True))


def learner_of(tmp_path, *callbacks, network=None, targets=TARGETS, **options):
    torch.manual_seed(0)
    network = TinyNet() if network is None else network
    data = DataLoaders(DataLoader(rows(targets), bs=8), DataLoader(rows(targets), bs=8), device="cpu")
    settings = {"loss_func": nn.CrossEntropyLoss(), "lr": 0.01, "path": tmp_path, **options}
    learner = Learner(data, network, cbs=list(callbacks), **settings)
    learner.logger, learner.create_mbar = print, False
    learner.remove_cbs([each for each in learner.cbs if type(each).__name__ == "ProgressCallback"])
    return learner


class Spy(Callback):
    """Remembers the policy before the first step, what each batch cost the policy, and the losses trained on."""

    order = 13

    def before_train(self):
        self.noise = self.learn.policy_noise
        self.before, self.losses, self.seen = policy_vector(self.noise.hook), [], []
        observe = self.noise.hook.learner.observe

        def remember(sample, losses, *args):
            self.seen.append(losses.detach())
            return observe(sample, losses, *args)

        self.noise.hook.learner.observe = remember

    def after_loss(self):
        if self.training:
            self.losses.append(self.learn.loss.detach().as_subclass(torch.Tensor))

    def costs(self):
        return torch.stack([seen.mean() for seen in self.seen]), torch.stack(self.losses)


@pytest.mark.parametrize("opt_func", [Adam, wrapped])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), CrossEntropyLossFlat(), F.cross_entropy])
def test_the_policy_learns_and_validation_is_clean(tmp_path, opt_func, loss):
    noise, spy, network = callback(), Spy(), TinyNet()
    watch = Watch(network.block1)
    learner_of(tmp_path, noise, spy, network=network, opt_func=opt_func, loss_func=loss).fit(1)
    assert noise.hook.metrics["samples_seen"] == len(IMAGES)
    assert policy_vector(noise.hook).isfinite().all()
    assert not torch.equal(policy_vector(noise.hook), spy.before)
    assert_masked(watch.training, IMAGES)
    assert_clean(watch.validation, IMAGES)
    assert not hooks_on(network)


class Pixels(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.conv = nn.Conv2d(3, classes, 3, padding=1)

    def forward(self, images):
        return self.conv(images)


@pytest.mark.parametrize(
    ("loss", "targets", "network"),
    [
        (nn.CrossEntropyLoss(), TARGETS, TinyNet),
        (CrossEntropyLossFlat(), TARGETS, TinyNet),
        (F.cross_entropy, TARGETS, TinyNet),
        (BCEWithLogitsLossFlat(), F.one_hot(TARGETS, 4), TinyNet),
        (CrossEntropyLossFlat(axis=1), IMAGES.argmax(1), lambda: Pixels(3)),
    ],
)
def test_each_image_has_its_own_loss(tmp_path, loss, targets, network):
    spy = Spy()
    learner_of(tmp_path, callback(p=1.0), spy, loss_func=loss, targets=targets, network=network()).fit(1)
    assert [seen.shape for seen in spy.seen] == [(8,)] * 4
    torch.testing.assert_close(*spy.costs())
    assert all(seen.std() > 0 for seen in spy.seen)
    assert getattr(loss, "reduction", "mean") == "mean"


def test_under_mixup_the_policy_is_told_the_mixed_loss(tmp_path):
    spy = Spy()
    learner_of(tmp_path, MixUp(), callback(), spy, loss_func=CrossEntropyLossFlat()).fit(1)
    torch.testing.assert_close(*spy.costs())


class NoSteps(Callback):
    def before_step(self):
        raise CancelStepException


@pytest.mark.parametrize(("skipping", "steps"), [(NoSteps, 0), (lambda: GradientAccumulation(16), 2)])
def test_the_policy_steps_only_after_the_optimizers_steps(tmp_path, skipping, steps):
    noise = callback()
    learner_of(tmp_path, noise, skipping()).fit(1)
    assert noise.state_dict()["steps"] == steps


def test_the_policys_rate_follows_the_last_group(tmp_path):
    noise = callback(policy_lr_ratio=0.5)
    learner = learner_of(
        tmp_path, noise, splitter=lambda net: [list(net.block1.parameters()), list(net.head.parameters())]
    )
    learner.fit(1, lr=slice(1e-4, 1e-2))
    assert noise.hook.policy_optimizer.param_groups[0]["lr"] == pytest.approx(0.005)


@pytest.mark.parametrize("lr", [0.02, slice(1e-4, 0.02)])
def test_one_cycle_warms_the_policy_up_too(tmp_path, lr):
    noise, rates = callback(policy_lr=0.5), []

    class Reader(Callback):
        order = 99

        def after_step(self):
            rates.append((self.learn.opt.hypers[-1]["lr"], noise.hook.policy_optimizer.param_groups[0]["lr"]))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner_of(tmp_path, noise, Reader()).fit_one_cycle(2, lr)
    assert [policy for _, policy in rates] == pytest.approx([0.5 * own / 0.02 for own, _ in rates])
    assert rates[0][0] == pytest.approx(0.02 / 25)


def test_a_second_fit_goes_on_with_the_policy(tmp_path):
    noise, spy = callback(), Spy()
    learner = learner_of(tmp_path, noise, spy)
    learner.fit(1)
    first = policy_vector(noise.hook)
    learner.fit(1)
    assert torch.equal(spy.before, first)
    assert noise.state_dict()["steps"] == 8


def test_another_learners_model_starts_fresh(tmp_path):
    noise = callback()
    learner_of(tmp_path, noise).fit(1)
    spy = Spy()
    learner_of(tmp_path, noise, spy).fit(1)
    fresh = Spy()
    learner_of(tmp_path, callback(), fresh).fit(1)
    assert torch.equal(spy.before, fresh.before)
    assert noise.state_dict()["steps"] == 4


@pytest.mark.parametrize("opt_func", [Adam, wrapped])
def test_finding_a_rate_changes_nothing(tmp_path, opt_func):
    noise, plain = callback(), callback()
    network = TinyNet()
    learner = learner_of(tmp_path, noise, network=network, opt_func=opt_func)
    same = learner_of(tmp_path, plain, network=copy.deepcopy(network), opt_func=opt_func)
    watch = Watch(network.block1)
    for epochs in (1, 2):
        with learner.no_logging():
            learner.fit(6, cbs=LRFinder(num_it=20, stop_div=False))
        assert_masked(watch.training, IMAGES)
        assert noise.state_dict().get("steps") == 4 * (epochs - 1)
        learner.fit(1)
        same.fit(1)
        assert torch.equal(policy_vector(noise.hook), policy_vector(plain.hook))
    assert noise.state_dict()["peak_user_lr"] == 0.01
    assert parameters_equal(network, same.model)


@pytest.mark.parametrize("opt_func", [Adam, wrapped])
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(tmp_path, opt_func):
    whole, first, second = callback(), callback(), callback()
    uninterrupted = learner_of(tmp_path, whole, opt_func=opt_func)
    uninterrupted.fit(2)
    begun = learner_of(tmp_path, first, opt_func=opt_func)
    begun.fit(1)
    begun.save("half")
    torch.save(first.state_dict(), tmp_path / "policy.pt")
    torch.manual_seed(7)
    resumed = learner_of(tmp_path, second, opt_func=opt_func)
    resumed.load("half")
    second.load_state_dict(torch.load(tmp_path / "policy.pt", weights_only=True))
    resumed.fit(1)
    assert torch.equal(policy_vector(second.hook), policy_vector(whole.hook))
    assert parameters_equal(resumed.model, uninterrupted.model)


def test_a_schedule_leaves_a_state_that_loads_safely(tmp_path):
    noise = callback()
    learner_of(tmp_path, noise).fit_one_cycle(1, 0.01)  # its rates are numpy's
    torch.save(noise.state_dict(), tmp_path / "policy.pt")
    assert torch.load(tmp_path / "policy.pt", weights_only=True)["steps"] == 4


def test_another_policys_state_is_refused_and_no_hook_is_left(tmp_path):
    saved = callback()
    learner_of(tmp_path, saved).fit(1)
    noise = callback(grid_size=2)
    noise.load_state_dict(saved.state_dict())
    learner = learner_of(tmp_path, noise)
    with pytest.raises(ValueError, match="another policy"):
        learner.fit(1)
    assert not hooks_on(learner.model)


def test_validation_alone_needs_no_policy(tmp_path):
    noise = callback()
    learner = learner_of(tmp_path, noise)
    watch = Watch(learner.model.block1)
    learner.validate()
    learner.get_preds()
    assert noise.hook is None
    assert noise.state_dict() == {}
    assert_clean(watch.validation, IMAGES)


class Validating(Callback):
    def before_fit(self):
        self.validated = getattr(self, "validated", False)

    def after_epoch(self):
        if not self.validated:
            self.validated = True
            self.learn.validate()


def test_validation_inside_a_fit_does_not_end_the_policy(tmp_path):
    noise = callback()
    learner_of(tmp_path, noise, Validating()).fit(2)
    assert noise.state_dict()["steps"] == 8


class Stopping(Callback):
    def after_step(self):
        raise KeyboardInterrupt


def test_an_interrupted_fit_is_gone_on_with(tmp_path):
    noise = callback()
    learner = learner_of(tmp_path, noise)
    with pytest.raises(KeyboardInterrupt):
        learner.fit(1, cbs=Stopping())
    learner.fit(1)
    assert noise.state_dict()["steps"] == 4  # the policy skipped its first step
    assert not hooks_on(learner.model)


def test_an_exported_learner_leaves_the_policy_out(tmp_path):
    noise = callback()
    learner = learner_of(tmp_path, noise)
    learner.fit(1)
    learner.export("learner.pkl")
    loaded = load_learner(tmp_path / "learner.pkl")
    assert parameters_equal(loaded.model, learner.model)
    assert loaded.policy_noise.state_dict() == {}
    learner.fit(1)
    assert noise.state_dict()["steps"] == 8


def test_the_papers_estimator_scales_the_loss_that_is_trained_on(tmp_path):
    spy = Spy()
    learner_of(tmp_path, callback(preset="paper"), spy).fit(1)
    assert not torch.isclose(*spy.costs()).any()


@pytest.mark.parametrize("mixing", [[], [MixUp]])
def test_the_papers_estimator_refuses_a_loss_that_it_cannot_scale(tmp_path, mixing):
    noise = callback(preset="paper")
    learner = learner_of(tmp_path, noise, *[each() for each in mixing], loss_func=CrossEntropyLossFlat())
    with pytest.raises(ValueError, match=r"must be a torch\.nn\.Module"):
        learner.fit(1)
    assert not hooks_on(learner.model)


def test_fastais_wrapper_is_looked_through():
    inner = torch.optim.SGD(TinyNet().parameters(), lr=0.1)
    assert stepping_optimizer(OptimWrapper(opt=inner)) is inner
