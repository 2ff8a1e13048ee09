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


def test_the_cost_of_a_memory_bank_is_said_once(monkeypatch, recwarn):
    monkeypatch.setattr("policy_noise.losses._splitter.LARGE", 2**10)
    criterion = Centred(True)
    criterion.register_buffer("bank", torch.zeros(2**10))
    run(criterion, LossSplitter(criterion))
    messages = [str(warning.message) for warning in recwarn if "million numbers" in str(warning.message)]
    assert len(messages) == 1
    assert "criterion Centred holds" in messages[0]


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
    assert splitter._before.snapshot._objects[0].proxies.data_ptr() == criterion.proxies.data_ptr()
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


class Trades(nn.Module):
    """A criterion that takes the model as an argument."""

    def forward(self, model, images, target):
        return F.cross_entropy(model(images), target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_among_the_arguments_is_copied(dtype):
    def batches(model, splitter):
        for images, target in zip(DATA[:4], LABELS[:4], strict=True):
            args = (model, images.clone().requires_grad_(), target)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                if splitter is not None:
                    splitter.before(args, {})
                value = Trades()(*args)
                if splitter is not None:
                    splitter(args, {}, value)

    first = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)).eval()
    first[1].train()
    plain, hooked = copy.deepcopy(first), copy.deepcopy(first)
    batches(plain, None)
    with pytest.raises(
        CriterionError, match=r"runs a model that it is given \(argument 0\)|no loss for a single sample"
    ):
        batches(hooked, LossSplitter(Trades()))
    splitter = LossSplitter(Trades(), "leave_one_out")
    hooked = copy.deepcopy(first)
    batches(hooked, splitter)
    assert hooked[1].num_batches_tracked == plain[1].num_batches_tracked == 4
    assert torch.equal(hooked[1].running_var, plain[1].running_var)


class Meter:
    def __init__(self):
        self.seen = 0


def test_a_meter_among_the_arguments_counts_once():
    def criterion(output, target, meter):
        meter.seen += len(output)
        return F.cross_entropy(output, target)

    splitter, meter = LossSplitter(criterion), Meter()
    for _ in range(3):
        args = (DATA[0], LABELS[0], meter)
        splitter.before(args, {})
        splitter(args, {}, criterion(*args))
    assert meter.seen == 24


class Smoothing(nn.Module):
    def forward(self, output, target):
        target.mul_(0.9).add_(0.025)
        return -(target * output.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize("with_before", [True, False])
def test_arguments_are_written_to_once(with_before):
    splitter = LossSplitter(Smoothing())
    for _ in range(5):
        output, target = DATA[0].clone().requires_grad_(), F.one_hot(LABELS[0], 4).float()
        expected = 0.9 * target + 0.025
        args = (output * 1, target)
        if with_before:
            splitter.before(args, {})
        value = Smoothing()(*args) if with_before else None
        losses = splitter(args, {}, value)
        if with_before:
            torch.testing.assert_close(target, expected)
            value.backward()
        torch.testing.assert_close(losses.values, -(expected * output.log_softmax(1)).sum(1).detach())


class Shared(nn.Module):
    calls = 0

    def forward(self, output, target):
        type(self).calls += 1
        return F.cross_entropy(output, target)


LOG = []


def logging(output, target):
    LOG.append(1)
    return F.cross_entropy(output, target)


def counting():
    count = [0]

    def criterion(output, target):
        count[0] += 1
        return F.cross_entropy(output, target)

    return criterion


@pytest.mark.parametrize(("criterion", "name"), [(Shared(), "Shared.calls"), (logging, "LOG"), (counting(), "count")])
def test_state_outside_of_the_criterion_is_said(criterion, name):
    with pytest.warns(UserWarning, match=rf"changes {name} outside of itself"):
        LossSplitter(criterion)((DATA[0], LABELS[0]), {}, criterion(DATA[0], LABELS[0]))


def test_reading_what_lies_outside_is_no_change(recwarn):
    def criterion(output, target):
        return F.cross_entropy(output, target) * (1 + 0 * len(STATEFUL)) * DATA.new_ones(())

    LossSplitter(criterion)((DATA[0], LABELS[0]), {}, criterion(DATA[0], LABELS[0]))
    assert not [w for w in recwarn if "outside of itself" in str(w.message)]


def test_a_loader_inside_a_criterion_is_shared_and_said(recwarn):
    criterion = Counting()
    criterion.batches = iter(torch.utils.data.DataLoader(DATA))
    criterion.kept = DATA[0].clone().requires_grad_() * 2  # hangs in a graph, as a loss kept for a log does
    splitter = LossSplitter(criterion)
    for _ in range(2):
        splitter.before((DATA[0], LABELS[0]), {})
        splitter((DATA[0], LABELS[0]), {}, criterion(DATA[0], LABELS[0]))
    messages = [str(w.message) for w in recwarn if "cannot be copied" in str(w.message)]
    assert len(messages) == 1
    assert "criterion Counting holds batches (_SingleProcessDataLoaderIter)" in messages[0]
    assert criterion.calls == 2


def test_a_criterion_that_communicates_is_refused(tmp_path, monkeypatch):
    """DETR divides by the number of boxes of all ranks. Called again on one rank alone, it would wait forever."""

    def criterion(output, target):
        number = torch.tensor(float(len(target)))
        torch.distributed.all_reduce(number)
        return F.cross_entropy(output, target, reduction="sum") / number

    monkeypatch.setattr("policy_noise.losses._splitter.is_distributed", lambda: True)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/world", rank=0, world_size=1)
    try:
        value = criterion(DATA[0], LABELS[0])
        with pytest.raises(CriterionError, match=r"communicates between processes \(.*allreduce.*hook\.observe"):
            LossSplitter(criterion)((DATA[0], LABELS[0]), {}, value)
    finally:
        torch.distributed.destroy_process_group()
