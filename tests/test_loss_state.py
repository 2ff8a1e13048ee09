"""A second evaluation does not change the criterion or the random generators."""

import collections
import copy
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from policy_noise.losses import CriterionError, LossSplitter

DATA = torch.randn(20, 8, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.randint(4, (20, 8), generator=torch.Generator().manual_seed(1))


class EarlyLearning(nn.Module):
    """ELR: a history of predictions for each sample of the data set, written in place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("history", torch.zeros(8, 4))

    def forward(self, output, target, index):
        probability = output.softmax(1)
        self.history[index] = 0.7 * self.history[index] + 0.3 * probability.detach()
        term = (1 - (self.history[index] * probability).sum(1)).log().mean()
        return F.cross_entropy(output, target) + 3 * term


class Centred(nn.Module):
    """DINO: a running centre, in place or bound to a new tensor."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("centre", torch.zeros(1, 4))

    def forward(self, output, target):
        loss = F.cross_entropy(output - self.centre, target)
        mean = output.detach().mean(0, keepdim=True)
        if self.in_place:
            self.centre.mul_(0.9).add_(0.1 * mean)
        else:
            self.centre = self.centre * 0.9 + mean * 0.1
        return loss


class Queue(nn.Module):
    """A cross-batch memory: a queue with a position, used before it is filled."""

    def __init__(self):
        super().__init__()
        self.register_buffer("memory", torch.ones(64, 4))
        self.position = 0
        self.recent = collections.deque(maxlen=3)

    def forward(self, output, target):
        loss = (F.cross_entropy(output, target, reduction="none") + (output @ self.memory.T).logsumexp(1)).mean()
        rows = (self.position + torch.arange(len(output))) % 64
        self.memory[rows] = output.detach()
        self.position = (self.position + len(output)) % 64
        self.recent.append(output.detach().mean())
        return loss


class Counting(nn.Module):
    """A warm-up by a counter, and objects that cannot be copied."""

    def __init__(self):
        super().__init__()
        self.calls, self.lock = 0, threading.Lock()

    def forward(self, output, target):
        with self.lock:
            self.calls += 1
        return F.cross_entropy(output, target) / self.calls


class Balanced(nn.Module):
    """Running class frequencies that weight the next batch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("counts", torch.ones(4))

    def forward(self, output, target):
        weight = (self.counts.sum() / self.counts)[target]
        self.counts += F.one_hot(target, 4).sum(0)
        return (weight * F.cross_entropy(output, target, reduction="none")).mean()


STATEFUL = [EarlyLearning(), Centred(True), Centred(False), Queue(), Counting(), Balanced()]


def states():
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002


def run(criterion, splitter=None):
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    random.seed(0)
    values = []
    for output, target in zip(DATA, LABELS, strict=True):
        args = (output.clone().requires_grad_(), target)
        args += (torch.randperm(8),) if isinstance(criterion, EarlyLearning) else ()
        if splitter is not None:
            splitter.before(args, {})
        values.append(criterion(*args))
        if splitter is not None:
            losses = splitter(args, {}, values[-1])
            torch.testing.assert_close(losses.values.mean(), values[-1].detach())
    return torch.stack(values).detach(), states()


@pytest.mark.parametrize("criterion", STATEFUL, ids=lambda criterion: type(criterion).__name__)
def test_the_users_losses_and_state_are_the_plain_loops(criterion):
    plain, hooked = copy.copy(criterion), copy.copy(criterion)
    for own in (plain, hooked):
        own._buffers = {name: buffer.clone() for name, buffer in criterion._buffers.items()}
        if isinstance(own, Queue):
            own.recent = collections.deque(maxlen=3)
    expected, generators = run(plain)
    losses, hooked_generators = run(hooked, LossSplitter(hooked))
    assert torch.equal(losses, expected)
    assert generators == hooked_generators
    assert all(torch.equal(plain._buffers[name], hooked._buffers[name]) for name in plain._buffers)
    for name in ("position", "calls"):
        assert getattr(plain, name, None) == getattr(hooked, name, None)


class Dropping(nn.Module):
    """Draws from every global generator, and from its own."""

    reduction = "mean"

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.own = torch.Generator().manual_seed(0)

    def forward(self, output, target):
        scale = 1 + random.random() + np.random.rand() + torch.rand((), generator=self.own)  # noqa: NPY002
        return scale * F.cross_entropy(self.drop(output), target, reduction=self.reduction)


def test_random_numbers_inside_a_criterion_are_the_same_ones_and_drawn_once():
    expected, generators = run(Dropping())
    losses, hooked_generators = run(hooked := Dropping(), LossSplitter(hooked))
    assert torch.equal(losses, expected)
    assert generators == hooked_generators


def test_without_the_state_before_a_criterion_that_has_moved_on_is_refused():
    criterion = Counting()
    criterion(DATA[0], LABELS[0])
    value = criterion(DATA[0], LABELS[0])
    with pytest.raises(CriterionError, match=r"is not a mean or sum over samples"):
        LossSplitter(criterion)((DATA[0], LABELS[0]), {}, value)
    assert criterion.calls == 2


def test_a_large_bank_that_stands_still_is_copied_once(monkeypatch):
    criterion = Centred(True)
    criterion.register_buffer("bank", torch.zeros(2**22))
    splitter = LossSplitter(criterion)
    copied = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda self, **kw: copied.append(self.numel()) or clone(self, **kw))
    for output, target in zip(DATA[:4], LABELS[:4], strict=True):
        splitter.before((output, target), {})
        splitter((output, target), {}, criterion(output, target))
    monkeypatch.undo()
    assert copied.count(2**22) == 2  # one to keep, one to evaluate on
    criterion.bank += 1
    splitter.before((DATA[0], LABELS[0]), {})
    assert splitter._before._criterion.bank[0] == 1


def test_parameters_are_shared_and_not_trained():
    class Proxies(nn.Module):
        def __init__(self):
            super().__init__()
            self.proxies = nn.Parameter(torch.randn(4, 4))

        def forward(self, output, target):
            assert isinstance(self.proxies, nn.Parameter)
            return F.cross_entropy(output @ self.proxies, target)

    criterion = Proxies()
    splitter = LossSplitter(criterion)
    splitter.before((DATA[0], LABELS[0]), {})
    assert splitter._before._criterion.proxies.data_ptr() == criterion.proxies.data_ptr()
    losses = splitter((DATA[0], LABELS[0]), {}, criterion(DATA[0], LABELS[0]))
    assert criterion.proxies.grad is None
    assert criterion.proxies.requires_grad
    assert not losses.values.requires_grad


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1)])
def test_a_plain_loss_costs_six_operations_beside_itself_and_no_wait(criterion):
    splitter, args = LossSplitter(criterion), (DATA[0], LABELS[0])
    with Operations() as alone:
        value = criterion(*args)
    splitter(args, {}, value)
    with Operations() as operations:
        splitter.before(args, {})
        splitter(args, {}, value)
    own = [name for name in operations.names if "detach" not in name]
    assert len(own) <= len(alone.names) + 6, own
    assert not [name for name in own if "local_scalar" in name]
    assert str(splitter) == "reduction='none'"


def test_what_agrees_only_while_the_state_is_new_is_refused_at_the_next_look():
    class ByPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("history", torch.zeros(8))

        def forward(self, output, target):
            losses = F.cross_entropy(output, target, reduction="none") + self.history[: len(output)]
            self.history[: len(output)] += torch.arange(len(output))
            return losses.mean()

    criterion = ByPlace()
    splitter = LossSplitter(criterion)

    def step():
        splitter.before((DATA[0], LABELS[0]), {})
        return splitter((DATA[0], LABELS[0]), {}, criterion(DATA[0], LABELS[0]))

    step()
    with pytest.raises(CriterionError, match="is not a mean or sum"):
        step()


def test_what_the_criterions_hooks_hold_is_not_copied(monkeypatch):
    class Holder:
        def __init__(self):
            self.weights = torch.zeros(1000)

        def after(self, *args):
            self.weights += 1

    criterion, holder = Counting(), Holder()
    criterion.register_forward_hook(holder.after)
    copied = []
    clone = torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda self, **kw: copied.append(self.numel()) or clone(self, **kw))
    splitter = LossSplitter(criterion)
    splitter.before((DATA[0], LABELS[0]), {})
    splitter((DATA[0], LABELS[0]), {}, criterion(DATA[0], LABELS[0]))
    assert 1000 not in copied
    assert (holder.weights == 1).all()
