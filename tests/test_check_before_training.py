"""One look at a loop before it is trained: what is told, and that nothing is changed."""

import copy
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import policy_noise
from policy_noise import attach, check


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Spread(nn.Module):
    """Couples the samples."""

    def forward(self, output, targets):
        return output.std(0).mean() + 1


class Counter(nn.CrossEntropyLoss):
    calls = torch.zeros(())

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, output, targets):
        self.seen += 1
        return super().forward(output, targets)


@pytest.fixture
def loop():
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    return model, optimizer, nn.CrossEntropyLoss(), (torch.rand(8, 3, 16, 16), torch.arange(8) % 5)


def last_line(found):
    return str(found).splitlines()[-1]


def test_a_good_loop_is_ready_and_the_report_says_what_happens(loop):
    found = check(*loop, black=0.0, p=1.0)
    assert found.ready
    assert last_line(found) == "ready"
    report = str(found)
    assert report.startswith("Net, AdamW, CrossEntropyLoss\n")
    for line in (
        "images    the model's argument 0, 8 x 3 x 16 x 16, float32, ",
        "black     [0.0",
        "batch     the criterion's argument 0, shape (8, 5)",
        "losses    CrossEntropyLoss, reduction='none'",
        "8 of 8 images have a reward",
        "fp32      accepted",
        "bfloat16  accepted",
        "cost ",
    ):
        assert line in report
    assert found.losses.shape == (8,)
    assert f"mean {float(found.losses.mean()):.4g}; the loop's loss is {float(found.losses.mean()):.4g}" in report


def test_nothing_is_changed(loop):
    model, optimizer, _, batch = loop
    criterion = Counter()
    criterion(model(batch[0]), batch[1]).backward()
    optimizer.step()
    model.eval()
    objects = (model.state_dict(), optimizer.state_dict(), criterion.state_dict(), batch)
    before = copy.deepcopy(objects)
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    states = torch.get_rng_state(), random.getstate()
    assert check(model, optimizer, criterion, batch, black=0.0).losses is not None
    torch.testing.assert_close(objects, before, rtol=0, atol=0)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert not model.training
    assert policy_noise.detach(model) == policy_noise.detach(optimizer) == policy_noise.detach(criterion) == 0
    assert not model._forward_pre_hooks
    assert not criterion._forward_hooks


def test_a_refused_criterion_is_told_with_its_remedy(loop):
    model, optimizer, _, batch = loop
    found = check(model, optimizer, Spread(), batch, black=0.0)
    assert not found.ready
    assert last_line(found).startswith("change: CriterionError: criterion Spread")
    assert "hook.observe" in last_line(found)
    assert "bfloat16  CriterionError" in str(found)


def test_rows_that_cannot_be_followed_are_told(loop):
    found = check(*loop, black=0.0, step=lambda m, c, b, hook: c(m(b[0]).flip(0), b[1].flip(0)))
    assert "PairingError" in last_line(found)
    assert "index=" in last_line(found)


def test_no_images(loop):
    _, optimizer, criterion, batch = loop
    found = check(nn.Linear(4, 5), optimizer, criterion, (torch.rand(8, 4), batch[1]), in_chans=3)
    assert "TypeError: the model was called without images" in last_line(found)
    assert "images    none was masked" in str(found)


def test_an_optimizer_of_other_parameters(loop):
    model, _, criterion, batch = loop
    found = check(model, torch.optim.SGD(Net().parameters(), lr=0.1), criterion, batch, black=0.0)
    assert last_line(found).startswith("change: the optimizer holds no parameter of Net")


def test_a_criterion_that_the_step_does_not_call(loop):
    found = check(*loop, black=0.0, step=lambda m, c, b, hook: F.cross_entropy(m(b[0]), b[1]))
    assert last_line(found).startswith("change: no image got a reward")


def test_losses_that_are_observed_by_hand(loop):
    model, optimizer, _, batch = loop

    def step(model, criterion, batch, hook):
        return hook.observe(F.cross_entropy(model(batch[0]), batch[1], reduction="none")).mean()

    found = check(model, optimizer, None, batch, black=0.0, step=step, preset="learned")
    assert found.ready
    assert "losses    observe()" in str(found)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"criterion": None}, "pass check(model, optimizer, nn.CrossEntropyLoss(), batch), or step=lambda"),
        ({"criterion": nn.CrossEntropyLoss(reduction="none")}, "pass step=lambda model, criterion, batch, hook: "),
        ({"criterion": nn.CrossEntropyLoss}, "pass CrossEntropyLoss()"),
        ({"criterion": F.cross_entropy}, "call hook.observe(losses)"),
        ({"optimizer": torch.optim.SGD}, "pass SGD(model.parameters(), ...)"),
        ({"model": nn.Linear}, "pass Linear(...)"),
    ],
)
def test_what_is_missing_is_told_in_words_to_write(loop, change, remedy):
    given = dict(zip(("model", "optimizer", "criterion", "batch"), loop, strict=True)) | change
    line = last_line(check(**given, black=0.0))
    assert remedy in line
    assert "the loop itself fails" not in line


def test_the_step_that_the_report_asks_for_runs(loop):
    model, optimizer, _, batch = loop
    criterion = nn.CrossEntropyLoss(reduction="none")
    step = lambda model, criterion, batch, hook: criterion(model(batch[0]), batch[1]).mean()  # noqa: E731
    assert check(model, optimizer, criterion, batch, black=0.0, step=step).ready


def test_a_loop_that_fails_by_itself(loop):
    model, optimizer, criterion, batch = loop
    found = check(model, optimizer, criterion, (batch[0], batch[1] + 5))
    assert "the loop itself fails, also without policy_noise" in last_line(found)


@pytest.mark.parametrize("broken", [None, 3, {"images": 1}])
def test_nothing_is_raised(loop, broken):
    model, optimizer, criterion, batch = loop
    for arguments in (
        (broken, optimizer, criterion, batch),
        (model, broken, criterion, broken),
        (model, optimizer, broken, batch),
    ):
        assert "change: " in last_line(check(*arguments))
    assert "unknown setting" in last_line(check(*loop, sigmas=3))


def test_random_masks_need_no_losses(loop):
    found = check(*loop, black=0.0, preset="random")
    assert found.ready
    assert "reward" not in str(found)


def test_a_hooked_model_is_sent_back(loop):
    with attach(*loop[:3]):
        assert "policy_noise.detach(model)" in last_line(check(*loop))
    assert "hooked already" not in str(check(*loop, black=0.0))


def test_what_is_hooked_is_said_in_three_lines(loop):
    model, optimizer, criterion, (images, targets) = loop
    with attach(model, optimizer, criterion, black=0.0) as hook:
        assert "none yet" in repr(hook)
        criterion(model(images), targets).backward()
        optimizer.step()
        assert repr(hook).splitlines() == [
            f"images: 16 x 16 px, PolicyNoiseMask, black {[0.0] * len(hook.augmentation.black.flatten())}",
            "losses: CrossEntropyLoss, reduction='none'",
            "steps: AdamW, 1 so far",
        ]
