"""The reward is the loss that is trained on, whatever the loop makes of the criterion's calls."""

import copy
import warnings
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from policy_noise import PairingError, attach
from policy_noise.losses import CriterionError

LAM = 0.3
GENERATOR = torch.Generator().manual_seed(0)
WEIGHTS = torch.rand(8, generator=GENERATOR) + 0.1


class Net(nn.Module):
    """A network with a second head."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.main, self.other = nn.Linear(16, 5), nn.Linear(16, 5)

    def forward(self, images):
        features = self.body(images)
        return self.main(features), self.other(features)


class Loop:
    """A hooked network, and the losses that its policy learns from."""

    def __init__(self, criterion=None, **settings):
        torch.manual_seed(0)
        self.model, self.criterion = Net(), nn.CrossEntropyLoss() if criterion is None else criterion
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        settings = {"mean": None, "std": None, "p": 1.0, "grid_size": 4, **settings}
        self.hook = attach(self.model, self.optimizer, self.criterion, **settings)
        self.rewards, self.valid = [], []
        observe = self.hook.learner.observe

        def record(sample, loss, valid=None):
            self.rewards.append(loss)
            self.valid.append(valid)
            return observe(sample, loss, valid)

        self.hook.learner.observe = record

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()


def each(output, target, **settings):
    return F.cross_entropy(output.detach(), target, reduction="none", **settings)


def auxiliary(criterion, outputs, target):
    main, other = outputs
    return criterion(main, target) + 0.4 * criterion(other, target), each(main, target) + 0.4 * each(other, target)


def mixup(criterion, outputs, target):
    first, second = target, target.flip(0)
    loss = LAM * criterion(outputs[0], first) + (1 - LAM) * criterion(outputs[0], second)
    return loss, LAM * each(outputs[0], first) + (1 - LAM) * each(outputs[0], second)


def depths(criterion, outputs, target):
    return sum(criterion(output, target) for output in outputs) / 2, sum(each(o, target) for o in outputs) / 2


def negated(criterion, outputs, target):
    return -criterion(outputs[0], target), -each(outputs[0], target)


def domain(criterion, outputs, target):
    """DANN: a second head is trained to fail."""
    main, other = outputs
    return criterion(main, target) - 0.1 * criterion(other, target), each(main, target) - 0.1 * each(other, target)


def used_alone(criterion, outputs, target):
    criterion(outputs[1], target)  # only logged
    return criterion(outputs[0], target), each(outputs[0], target)


@pytest.mark.parametrize("scale", [1.0, 65536.0 / 3])
@pytest.mark.parametrize("loss_of", [auxiliary, mixup, depths, negated, domain, used_alone])
def test_sums_of_calls_are_rewarded_as_they_are_trained_on(batch, loss_of, scale):
    """Up to the sum of the coefficients, in which GradScaler's and accumulation's factors cancel out."""
    images, target = batch
    loop = Loop()
    loss, expected = loss_of(loop.criterion, loop.model(images), target)
    (loss * scale).backward()
    loop.step()
    (reward,) = loop.rewards
    size = {auxiliary: 1.4, domain: 1.1}.get(loss_of, 1.0)
    torch.testing.assert_close(reward * size, expected)


def weighted(losses):
    return (losses * WEIGHTS).mean(), losses.detach() * WEIGHTS / WEIGHTS.mean()


def hardest(losses):
    kept = losses >= losses.topk(3).values.min()
    return losses.topk(3).values.mean(), torch.where(kept, losses, 0).detach() * 8 / 3


def summed(losses):
    return losses.sum() / 100, losses.detach()


@pytest.mark.parametrize("reduce", [weighted, hardest, summed])
def test_unreduced_losses_are_rewarded_as_they_are_reduced(batch, reduce):
    images, target = batch
    loop = Loop(nn.CrossEntropyLoss(reduction="none"))
    loss, expected = reduce(loop.criterion(loop.model(images)[0], target))
    loss.backward()
    loop.step()
    torch.testing.assert_close(loop.rewards[0], expected)


def test_unreduced_pixels_are_rewarded_as_they_are_weighed(batch):
    loop = Loop(nn.MSELoss(reduction="none"))
    output, weights = loop.model(batch[0])[0], torch.rand(8, 5)
    losses = loop.criterion(output, torch.ones(8, 5))
    (losses * weights).mean().backward()
    loop.step()
    torch.testing.assert_close(loop.rewards[0], (losses.detach() * weights).mean(1) / weights.mean())


def test_losses_that_are_changed_in_place(batch):
    images, target = batch
    for reduction in ("mean", "none"):
        loop = Loop(nn.CrossEntropyLoss(reduction=reduction))
        output = loop.model(images)[0]
        loss = loop.criterion(output, target)
        loss *= 0.5 if reduction == "mean" else WEIGHTS
        loss.mean().backward()
        loop.step()
        expected = each(output, target) * (1.0 if reduction == "mean" else WEIGHTS / WEIGHTS.mean())
        torch.testing.assert_close(loop.rewards[0], expected)


def test_similarities_that_are_negated(batch):
    """SimSiam's official loop."""
    images, _ = batch
    loop = Loop(nn.CosineSimilarity(dim=1))
    (p1, z1), (p2, z2) = loop.model(images), loop.model(images + 0.1)
    loss = -(loop.criterion(p1, z2.detach()).mean() + loop.criterion(p2, z1.detach()).mean()) * 0.5
    loss.backward()
    loop.step()
    expected = [-F.cosine_similarity(p.detach(), z.detach()) for p, z in ((p1, z2), (p2, z1))]
    torch.testing.assert_close(loop.rewards, expected)


def test_an_ordinary_loss_is_rewarded_bit_for_bit_as_it_is(batch):
    images, target = batch
    loop = Loop()
    for scale in (1.0, 1024.0, 1 / 3):
        output = loop.model(images)[0]
        (loop.criterion(output, target) * scale).backward()
        loop.step()
        assert torch.equal(loop.rewards[-1], each(output, target))


def test_accumulated_batches_keep_their_sizes_relative_to_each_other(batch):
    """A labelled batch and one of weight 0.5, accumulated under a scaler."""
    images, target = batch
    loop = Loop()
    outputs = []
    for rows, weight in ((slice(0, 6), 1.0), (slice(6, 8), 0.5)):
        outputs.append((loop.model(images[rows])[0], target[rows], weight))
        (loop.criterion(*outputs[-1][:2]) * weight * 512).backward()
    loop.step()
    for reward, (output, labels, weight) in zip(loop.rewards, outputs, strict=True):
        torch.testing.assert_close(reward, each(output, labels) * weight / 0.75)


@pytest.mark.parametrize("clear_first", [True, False])
def test_batches_of_a_skipped_step_have_the_scale_of_their_own_gradient(batch, clear_first):
    images, target = batch
    loop = Loop()
    outputs = []
    for scale in (65536.0, 32768.0):  # GradScaler skips the first step and halves its scale
        if clear_first:
            loop.optimizer.zero_grad()
        outputs.append(loop.model(images)[0])
        loss = loop.criterion(outputs[-1], target) * scale
        if not clear_first:
            loop.optimizer.zero_grad()
        loss.backward()
    loop.step()
    for reward, output in zip(loop.rewards, outputs, strict=True):
        assert torch.equal(reward, each(output, target))


def test_several_backward_passes_add_up(batch):
    images, target = batch
    loop = Loop()
    main, other = loop.model(images)
    loop.criterion(main, target).backward(retain_graph=True)
    (2 * loop.criterion(other, target)).backward()
    loop.step()
    torch.testing.assert_close(loop.rewards[0] * 3, each(main, target) + 2 * each(other, target))


def test_a_gradient_penaltys_own_pass_does_not_count(batch):
    images, target = batch
    loop = Loop()
    seen = images.clone().requires_grad_()
    main, other = loop.model(seen)
    first = loop.criterion(main, target)
    (slope,) = torch.autograd.grad(first, seen, create_graph=True)
    (first + slope.square().sum() + 0.4 * loop.criterion(other, target)).backward()
    loop.step()
    torch.testing.assert_close(loop.rewards[0] * 1.4, each(main, target) + 0.4 * each(other, target))


def test_a_second_order_optimizers_pass_counts(batch, recwarn):
    images, target = batch
    loop = Loop()
    output = loop.model(images)[0]
    loop.criterion(output, target).backward(create_graph=True)
    parameters = [p for p in loop.model.parameters() if p.grad is not None]
    slopes = [p.grad for p in parameters]  # AdaHessian's product with the Hessian
    torch.autograd.grad(slopes, parameters, [torch.ones_like(p) for p in parameters], allow_unused=True)
    loop.optimizer.step()
    assert not [w for w in recwarn if "something besides" in str(w.message)]
    assert torch.equal(loop.rewards[0], each(output, target))
    loop.optimizer.zero_grad()


def test_a_loss_that_a_schedule_has_switched_off_gives_no_reward(batch):
    images, target = batch
    loop = Loop()
    (0.0 * loop.criterion(loop.model(images)[0], target)).backward()
    loop.step()
    assert (loop.rewards[0] == 0).all()


def test_a_coefficient_that_overflows_spoils_no_other_batch(batch):
    images, target = batch
    loop = Loop()
    output = loop.model(images)[0]
    loop.criterion(output, target).backward()
    (loop.criterion(loop.model(images)[0], target) * torch.inf).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loop.step()
    assert torch.equal(loop.rewards[0], each(output, target))
    assert loop.hook.metrics["samples_dropped"] == 8


def test_ignored_labels_of_one_call_count_in_another(batch):
    images, target = batch
    loop = Loop()
    partly = target.clone()
    partly[:4] = -100
    main, other = loop.model(images)
    (loop.criterion(main, partly) + loop.criterion(other, target)).backward()
    loop.step()
    torch.testing.assert_close(loop.rewards[0] * 2, each(main, partly) + each(other, target))
    assert loop.valid[0] is None or bool(loop.valid[0].all())


def test_the_papers_factor_is_no_part_of_the_reward(batch):
    images, target = batch
    loop = Loop(preset="paper", grid_size=8)
    main, other = loop.model(images)
    first, second = loop.criterion(main, target), loop.criterion(other, target)
    sample = loop.hook._queue.scored[0].sample
    factor = loop.hook.learner.loss_scale(sample)
    torch.testing.assert_close(first, factor * F.cross_entropy(main, target))
    torch.testing.assert_close(second, factor * F.cross_entropy(other, target))
    (first + 0.4 * second).backward()
    loop.step()
    torch.testing.assert_close(loop.rewards[0] * 1.4, each(main, target) + 0.4 * each(other, target))


class Terms(NamedTuple):
    cross_entropy: torch.Tensor
    logs: dict


class WithLogs(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, output, target):
        loss = F.cross_entropy(output, target)
        return self.wrap(loss)


@pytest.mark.parametrize("preset", ["learned", "paper"])
@pytest.mark.parametrize(
    ("wrap", "take"),
    [
        (lambda loss: (loss, {"ce": loss.detach()}), lambda returned: returned[0]),
        (lambda loss: Terms(loss, {"ce": loss.detach()}), lambda returned: returned.cross_entropy),
        (lambda loss: {"total_loss": loss, "ce": float(loss)}, lambda returned: returned["total_loss"]),
    ],
)
def test_losses_that_come_with_logs_are_taken(batch, wrap, take, preset):
    images, target = batch
    loop = Loop(WithLogs(wrap), preset=preset)
    output = loop.model(images)[0]
    take(loop.criterion(output, target)).backward()
    loop.step()
    torch.testing.assert_close(loop.rewards[0], each(output, target))


def test_a_loss_observed_by_hand_takes_the_place_of_the_criterions(batch):
    images, target = batch
    loop = Loop()
    output = loop.model(images)[0]
    loss = loop.criterion(output, target)
    other = F.cross_entropy(output, target.flip(0), reduction="none")
    loop.hook.observe(other)
    (loss + other.mean()).backward()
    loop.step()
    assert len(loop.rewards) == 1
    assert torch.equal(loop.rewards[0], other.detach())


def test_losses_without_a_backward_pass_are_said_once_and_not_rewarded(batch, recwarn):
    images, target = batch
    loop = Loop()
    for _ in range(2):
        loop.criterion(loop.model(images)[0], target)
        F.cross_entropy(loop.model(images)[0], target).backward()
        loop.step()
    assert loop.rewards == []
    assert len([w for w in recwarn if "none of them is part of a backward pass" in str(w.message)]) == 1


class Trades(nn.Module):
    def forward(self, model, images, target):
        return F.cross_entropy(model(images)[0], target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_criterion_that_runs_the_hooked_model_is_refused_before_anything_changes(batch, dtype):
    loop = Loop(Trades())
    loop.model.add_module("norm", nn.BatchNorm2d(3))
    loop.model.body.insert(0, loop.model.norm)
    before = copy.deepcopy(loop.hook.augmentation.state_dict())
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16),
        pytest.raises(CriterionError, match=r"runs the hooked model.*hook\.observe"),
    ):
        loop.criterion(loop.model, *batch)
    assert loop.model.norm.num_batches_tracked == 1
    assert all(torch.equal(value, before[name]) for name, value in loop.hook.augmentation.state_dict().items())


def dice(output, target):
    probability = output.softmax(1).gather(1, target[:, None])[:, 0]
    return 5 - 10 * probability.sum() / (probability.sum() + len(target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", ["learned", "paper"])
@pytest.mark.parametrize(
    "besides", [dice, lambda output, target: 20 * output.square().mean(), lambda output, target: 0.0]
)
def test_what_is_trained_on_besides_the_criterion_is_said_at_the_first_step(batch, recwarn, besides, preset, dtype):
    images, target = batch
    loop = Loop(preset=preset)
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            output = loop.model(images)[0]
            loss = loop.criterion(output, target) + 0.5 * loop.criterion(output, target.flip(0))
        (64 * (loss + besides(output.float(), target))).backward()
        loop.step()
    said = [w for w in recwarn if "something besides the hooked criterion" in str(w.message)]
    assert len(said) == (besides(LOGITS, TARGET) != 0)


LOGITS, TARGET = torch.randn(4, 5, generator=GENERATOR), torch.arange(4)


def contrast(criterion, outputs, target, *, transposed=True):
    """CLIP's two sides: the second call's logits are the first's, transposed."""
    texts, pairs = torch.eye(8, 5) + 0.1, torch.arange(8)
    logits = 2 * outputs[0] @ texts.T
    sides = [(logits, pairs), (logits.T if transposed else 2 * texts @ outputs[0].T, pairs)]
    return sum(criterion(*side) for side in sides) / 2, sum(each(*side) for side in sides) / 2


@pytest.mark.parametrize("transposed", [True, False])
def test_both_sides_of_a_contrast_count(batch, transposed):
    images, target = batch
    loop = Loop()
    loss, expected = contrast(loop.criterion, loop.model(images), target, transposed=transposed)
    loss.backward()
    loop.step()
    torch.testing.assert_close(loop.rewards[0], expected)


def test_a_further_call_whose_rows_are_unknown_is_refused(batch):
    images, target = batch
    loop = Loop()
    output = loop.model(images)[0]
    loop.criterion(output, target)
    with pytest.raises(PairingError, match="rows can't be followed"):
        loop.criterion(output.flip(0), target.flip(0))


def test_ordinary_loops_are_told_nothing(batch, recwarn):
    images, target = batch
    for loss_of in (auxiliary, mixup, depths, negated, domain, contrast, used_alone):
        loop = Loop()
        for _ in range(2):
            loss_of(loop.criterion, loop.model(images), target)[0].backward()
            loop.step()
    assert not [str(w.message) for w in recwarn if "policy_noise" in str(w.message)]


LINEAR = {
    "mean": lambda losses, outputs: losses.mean(),
    "scaled": lambda losses, outputs: 65536.0 * losses.sum() / 3,
    "weighted": lambda losses, outputs: (losses * WEIGHTS).sum() / WEIGHTS.sum(),
    "hardest": lambda losses, outputs: losses.topk(3).values.mean(),
    "masked": lambda losses, outputs: losses[losses > losses.mean()].mean(),
    "where": lambda losses, outputs: torch.where(WEIGHTS > 0.5, losses, 0.0).sum(),
    "largest": lambda losses, outputs: losses.max(),
    "joined": lambda losses, outputs: torch.cat([losses[:4], 2 * losses[4:]]).mean(),
    "matrix": lambda losses, outputs: (losses.view(2, 4) @ torch.ones(4, 1)).squeeze().mean(),
    "normalized": lambda losses, outputs: (losses / losses.detach().sum()).sum(),
    "focal": lambda losses, outputs: ((1 - (-losses.detach()).exp()) ** 2 * losses).mean(),
    "weighted by the model": lambda losses, outputs: (losses * outputs[0].softmax(1).amax(1)).mean(),
    "uncertainty": lambda losses, outputs: (losses * (-LEARNED).exp() + LEARNED).mean(),
    "safe": lambda losses, outputs: losses.clamp(min=1e-8).mean(),
    "rms": lambda losses, outputs: (losses + 1e-8).sqrt().mean(),
    "log of the mean": lambda losses, outputs: losses.mean().log(),
    "flooded": lambda losses, outputs: (losses.mean() - 0.1).abs() + 0.1,
    "switched off": lambda losses, outputs: losses.mean() + 0.0 * outputs[1].sum(),
    "detached": lambda losses, outputs: losses.mean() + outputs[1].detach().square().mean(),
}
NONLINEAR = {
    "generalized": lambda losses: ((1 - (-0.7 * losses).exp()) / 0.7).mean(),
    "focal": lambda losses: ((1 - (-losses).exp()) ** 2 * losses).mean(),
    "power": lambda losses: ((1 - (-losses).exp()) ** 0.5).mean(),
    "log": lambda losses: losses.log().mean(),
    "log1p": lambda losses: losses.log1p().sum(),
    "clamped": lambda losses: losses.clamp(max=1.5).mean(),
    "clamped on both sides": lambda losses: losses.clamp(0.0, 1.5).mean(),
    "tilted": lambda losses: losses.logsumexp(0),
    "soft": lambda losses: (losses.softmax(0) * losses).sum(),
    "ratio": lambda losses: (losses / losses.sum() * WEIGHTS).sum(),
    "squashed": lambda losses: losses.tanh().mean(),
}
LEARNED = torch.zeros((), requires_grad=True)


def messages(recwarn):
    return [str(w.message) for w in recwarn if "policy_noise" in str(w.message)]


@pytest.mark.parametrize("function", LINEAR.values(), ids=LINEAR.keys())
def test_nothing_is_said_of_a_linear_function_of_unreduced_losses(batch, recwarn, function):
    images, target = batch
    loop = Loop(nn.CrossEntropyLoss(reduction="none"))
    for _ in range(2):
        outputs = loop.model(images)
        function(loop.criterion(outputs[0], target), outputs).backward()
        loop.step()
    assert not messages(recwarn)


@pytest.mark.parametrize("function", NONLINEAR.values(), ids=NONLINEAR.keys())
def test_a_function_of_unreduced_losses_that_is_not_linear_is_said_once(batch, recwarn, function):
    images, target = batch
    loop = Loop(nn.CrossEntropyLoss(reduction="none"))
    for _ in range(2):
        function(loop.criterion(loop.model(images)[0], target)).backward()
        loop.step()
    (message,) = messages(recwarn)
    assert "not linear" in message
    assert "hook.observe(losses)" in message


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("start", [0, 3])
def test_a_functional_loss_on_another_output_is_said(batch, recwarn, start, reduction):
    """Also if it begins later."""
    images, target = batch
    loop = Loop(nn.CrossEntropyLoss(reduction=reduction))
    for step in range(start + 2):
        main, other = loop.model(images)
        loss = loop.criterion(main, target).mean()
        if step >= start:
            loss = loss + F.mse_loss(other, torch.ones(8, 5))
        assert bool(messages(recwarn)) == (step > start)
        loss.backward()
        loop.step()
    (message,) = messages(recwarn)
    assert "something besides the hooked criterion" in message
    assert "MseLoss" in message


def test_a_loss_inside_the_module_besides_its_criterion_is_said(batch, recwarn):
    images, target = batch

    class Penalized(Task):
        def forward(self, images, target):
            returned = super().forward(images, target)
            return returned | {"loss": returned["loss"] + self.outputs[0].square().mean()}

    task = Penalized(Net(), nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(task.parameters(), lr=0.01)
    attach(task, optimizer, task.criterion, in_chans=3, mean=None, std=None)
    task(images, target)["loss"].backward()
    optimizer.step()
    assert "something besides the hooked criterion" in messages(recwarn)[0]


class InPlace(nn.Module):
    """Divides the logits by a temperature, in place."""

    def forward(self, output, target):
        return F.cross_entropy(output.div_(2.0), target)


def test_a_criterion_that_writes_to_its_argument_is_no_other_loss(batch, recwarn):
    images, target = batch
    loop = Loop(InPlace())
    for _ in range(2):
        output = loop.model(images)[0]
        expected = each(output / 2, target)
        loop.criterion(output, target).backward()
        loop.step()
        torch.testing.assert_close(loop.rewards[-1], expected)
    assert not messages(recwarn)


def test_a_model_that_is_trained_without_an_observed_loss_is_said_at_the_first_step(batch, recwarn):
    images, target = batch
    loop = Loop()
    F.cross_entropy(loop.model(images)[0], target).backward()
    loop.step()
    assert len([w for w in recwarn if "a loss that the hook did not see" in str(w.message)]) == 1


class Task(nn.Module):
    """A module that computes its loss inside, from two heads."""

    def __init__(self, network, criterion):
        super().__init__()
        self.network, self.criterion = network, criterion

    def forward(self, images, target):
        main, other = self.outputs = self.network(images)
        return {"loss": self.criterion(main, target) + 0.4 * self.criterion(other, target), "output": main}


def test_several_calls_inside_the_hooked_module(batch, recwarn):
    images, target = batch
    task = Task(Net(), nn.CrossEntropyLoss())
    optimizer = torch.optim.SGD(task.parameters(), lr=0.01)
    hook = attach(task, optimizer, task.criterion, in_chans=3, mean=None, std=None, p=1.0)
    task(images, target)["loss"].backward()
    (pending,) = hook._queue.scored
    assert [float(term.coefficient) for term, _ in pending.terms] == [1.0, pytest.approx(0.4)]
    optimizer.step()
    whole = each(task.outputs[0], target) + 0.4 * each(task.outputs[1], target)
    assert hook.metrics["reward"] == pytest.approx(float(whole.mean()) / 1.4, rel=1e-5)
    assert not [str(w.message) for w in recwarn if "policy_noise" in str(w.message)]


def test_the_step_leaves_no_batch_behind(batch):
    images, target = batch
    loop = Loop()
    loop.criterion(loop.model(images)[0], target).backward()
    assert loop.hook._queue.has_open
    loop.step()
    assert not loop.hook._queue.has_open
