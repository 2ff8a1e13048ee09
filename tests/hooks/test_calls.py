"""Calls of the hooked model: objects as outputs, failed forwards, modules that call themselves, several inputs."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from policy_noise import PairingError, attach
from policy_noise.utils.misc import tensors_in

IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.5
OTHERS = IMAGES.flip(0) + 0.1
TARGETS = torch.arange(4) % 2


def hooked(model, criterion=None, **settings):
    parameters = [*model.parameters(), nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    return optimizer, attach(
        model, optimizer, criterion, **{"preset": "learned", "p": 1.0, "grid_size": 2, "in_chans": 1, **settings}
    )


def rewards_of(optimizer, hook):
    """The losses of each sample that a step learns from, in the order of the draws, and the samples."""
    found, step = [], hook.learner.step

    def recorded(group):
        found.extend(hook.learner._window)
        step(group)

    hook.learner.step = recorded
    optimizer.step()
    del hook.learner.step
    return [seen.loss for seen in found], [seen.sample for seen in found]


class Net(nn.Module):
    def __init__(self, wrap=lambda output: output):
        super().__init__()
        self.layer, self.wrap = nn.Linear(64, 2), wrap

    def forward(self, x):
        return self.wrap(self.layer(x.flatten(1)))


# -- outputs -----------------------------------------------------------------------------------------------------------


@dataclass
class Output:
    logits: torch.Tensor
    aux: object = None


@dataclass(slots=True)
class Slotted:
    logits: torch.Tensor


class Plain:
    def __init__(self, logits):
        self.logits = logits


def nested(logits):
    return Plain({"inner": [Output(logits)]})


def logits_of(output):
    return next(iter(tensors_in(output)))


@pytest.mark.parametrize(
    "wrap", [Output, Slotted, Plain, nested, lambda logits: SimpleNamespace(logits=logits)], ids=lambda f: f.__name__
)
def test_losses_are_found_through_outputs_of_any_kind(wrap):
    """Two forwards whose losses come in reverse, one of them permuted."""
    model = Net(wrap)
    optimizer, hook = hooked(model)
    first, second = logits_of(model(IMAGES)), logits_of(model(OTHERS))
    order = torch.tensor([2, 0, 3, 1])
    losses = [F.cross_entropy(second[order], TARGETS[order], reduction="none")]
    losses.append(F.cross_entropy(first, TARGETS, reduction="none"))
    samples = [pending.sample for pending in hook._queue._pending]
    for loss in losses:
        hook.observe(loss)
    found, of = rewards_of(optimizer, hook)
    assert [sample.action is samples[1 - k].action for k, sample in enumerate(of)] == [True, True]
    torch.testing.assert_close(found[0][order], losses[0].detach())
    torch.testing.assert_close(found[1], losses[1].detach())


def test_modules_and_classes_are_not_searched_for_tensors():
    tensor = torch.zeros(1)
    assert list(tensors_in([nn.Linear(1, 1), Output, test_modules_and_classes_are_not_searched_for_tensors])) == []
    loop = Plain(tensor)
    loop.self = loop
    assert all(found is tensor for found in tensors_in(loop))


# -- forwards that fail ------------------------------------------------------------------------------------------------


class Failing(Net):
    fails = False

    def forward(self, x):
        if self.fails:
            raise torch.OutOfMemoryError("of memory")
        return super().forward(x)


def test_a_forward_that_raised_leaves_no_draw_behind():
    """As often as it likes, and before any loss was seen."""
    model, criterion = Failing(), nn.CrossEntropyLoss()
    optimizer, hook = hooked(model, criterion, max_pending=2)
    for _ in range(5):
        model.fails = True
        with pytest.raises(torch.OutOfMemoryError):
            model(IMAGES)
        assert len(hook._queue) == 0
    model.fails = False
    criterion(model(IMAGES), TARGETS).backward()
    optimizer.step()
    assert hook.metrics["samples_seen"] == 4


def test_a_refused_input_leaves_no_call_behind():
    model, criterion = Net(), nn.CrossEntropyLoss()
    optimizer, hook = hooked(model, criterion)
    with pytest.raises(TypeError, match="without images"):
        model(torch.arange(3))
    criterion(model(IMAGES), TARGETS).backward()
    optimizer.step()
    assert hook.metrics["samples_seen"] == 4


# -- modules that call themselves --------------------------------------------------------------------------------------


class Twice(Net):
    """It calls itself for each of its inputs."""

    def forward(self, a, b=None):
        self.seen = [*getattr(self, "seen", []), a]
        return super().forward(a) if b is None else (self(a), self(b))


@pytest.mark.filterwarnings("ignore:.*look like images")
def test_a_module_that_calls_itself_masks_each_input_once_and_credits_each():
    model, criterion = Twice(), nn.CrossEntropyLoss()
    optimizer, hook = hooked(model)
    outputs = model(IMAGES, OTHERS)
    outer, first, second = model.seen
    assert first is outer
    assert not torch.equal(first, IMAGES)
    assert not torch.equal(second, OTHERS)
    samples = [pending.sample for pending in hook._queue._pending]
    torch.testing.assert_close(first, hook.augmentation(IMAGES, samples[0]))
    torch.testing.assert_close(second, hook.augmentation(OTHERS, samples[1]))
    losses = [F.cross_entropy(output, TARGETS, reduction="none") for output in outputs]
    for loss in reversed(losses):
        hook.observe(loss)
    found, of = rewards_of(optimizer, hook)
    assert [sample.action is samples[1 - k].action for k, sample in enumerate(of)] == [True, True]
    for loss, reward in zip(reversed(losses), found, strict=True):
        torch.testing.assert_close(reward, loss.detach())
    del criterion


class Chunked(Net):
    """It splits large batches."""

    def forward(self, x):
        return torch.cat([self(x[:2]), self(x[2:])]) if len(x) > 2 else super().forward(x)


class Mirrored(Net):
    def forward(self, x, mirror=True):
        return self(x, mirror=False) + self(x.flip(-1), mirror=False) if mirror else super().forward(x)


@pytest.mark.parametrize("model", [Chunked(), Mirrored()])
def test_what_a_module_makes_of_its_masked_images_is_not_masked_again(model):
    criterion = nn.CrossEntropyLoss(reduction="none")
    optimizer, hook = hooked(model)
    output = model(IMAGES)
    (pending,) = hook._queue._pending
    plain = type(model)()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(output, plain(hook.augmentation(IMAGES, pending.sample)))
    losses = criterion(output, TARGETS)
    hook.observe(losses)
    torch.testing.assert_close(rewards_of(optimizer, hook)[0][0], losses.detach())


def test_a_failed_call_within_a_call_is_tried_again():
    class Retrying(Net):
        failed = False

        def forward(self, x):
            if len(x) == 2:
                if not self.failed:
                    self.failed = True
                    raise torch.OutOfMemoryError
                return super().forward(x)
            try:
                return torch.cat([self(x[:2]), self(x[2:])])
            except torch.OutOfMemoryError:
                return self(x)

    model, criterion = Retrying(), nn.CrossEntropyLoss()
    optimizer, hook = hooked(model, criterion)
    criterion(model(IMAGES), TARGETS).backward()
    optimizer.step()
    assert hook.metrics["samples_seen"] == 4


@pytest.mark.filterwarnings("ignore:.*look like images")
def test_checkpointing_repeats_the_masks_of_a_module_that_calls_itself():
    model = Twice()
    _, hook = hooked(model)
    outputs = checkpoint(model, IMAGES, OTHERS, use_reentrant=False)
    drawn = len(hook._queue)
    sum(output.sum() for output in outputs).backward()
    assert len(hook._queue) == drawn == 2
    before, after = model.seen[:3], model.seen[3:]
    for first, second in zip(before, after, strict=True):
        assert torch.equal(first, second)


# -- several inputs ----------------------------------------------------------------------------------------------------


class Pair(Net):
    def forward(self, x1, x2):
        self.seen = x1, x2
        return super().forward(x1 - 0.5 * x2)


@pytest.mark.parametrize("by_name", [True, False])
def test_several_named_inputs_get_a_mask_each_and_the_loss_of_their_row(by_name):
    model, criterion = Pair(), nn.CrossEntropyLoss()
    optimizer, hook = hooked(model, criterion, input_name=("x1", "x2") if by_name else (0, 1))
    output = model(x1=IMAGES, x2=OTHERS) if by_name else model(IMAGES, OTHERS)
    assert hook._queue._pending[0].sample.applied.shape == (8,)
    first, second = (seen / images for seen, images in zip(model.seen, (IMAGES, OTHERS), strict=True))
    assert not torch.equal(first, torch.ones_like(first))
    assert not torch.equal(first, second)
    criterion(output, TARGETS).backward()
    (reward,), (sample,) = rewards_of(optimizer, hook)
    losses = F.cross_entropy(output, TARGETS, reduction="none").detach()
    torch.testing.assert_close(reward, losses.repeat(2))
    assert sample.applied.shape == (8,)


MASKS = {"mean": 0.0, "std": 1.0, "p": 1.0, "in_chans": 1}


@pytest.mark.parametrize("preset", ["learned", "random"])
def test_several_named_inputs_share_a_mask_when_asked(preset):
    model, criterion = Pair(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    learned = preset == "learned"
    hook = attach(model, optimizer, criterion, preset=preset, input_name=("x1", "x2"), shared_mask=True, **MASKS)
    output = checkpoint(model, x1=IMAGES, x2=OTHERS, use_reentrant=False)
    first, second = (seen / images for seen, images in zip(model.seen, (IMAGES, OTHERS), strict=True))
    assert not torch.equal(first, torch.ones_like(first))
    torch.testing.assert_close(first, second)
    rewards = []
    if learned:
        observe = hook.learner.observe
        hook.learner.observe = lambda sample, loss, valid: (rewards.append(loss), observe(sample, loss, valid))
    criterion(output, TARGETS).backward()
    torch.testing.assert_close(model.seen[0] / IMAGES, first)  # recomputed
    optimizer.step()
    assert hook.metrics["samples_seen"] == 4
    assert len(rewards) == learned
    for reward in rewards:
        torch.testing.assert_close(reward, F.cross_entropy(output, TARGETS, reduction="none").detach())


@pytest.mark.parametrize("name", [None, "x1", ("x1",)])
def test_a_shared_mask_needs_several_inputs(name):
    model = Pair()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TypeError, match=r"shared_mask=True is for several inputs: name them with input_name"):
        attach(model, optimizer, input_name=name, shared_mask=True)


def test_inputs_of_different_size_get_a_mask_each():
    class Sizes(Net):
        def forward(self, large, small):
            return super().forward(F.avg_pool2d(large, 2) + small)

    model, criterion = Sizes(), nn.CrossEntropyLoss()
    optimizer, hook = hooked(model, criterion, input_name=(0, 1))
    criterion(model(torch.rand(4, 1, 16, 16), IMAGES), TARGETS).backward()
    optimizer.step()
    assert hook.metrics["samples_seen"] == 8


def test_inputs_of_different_length_are_refused():
    model = Pair()
    hooked(model, input_name=(0, 1))
    with pytest.raises(ValueError, match=r"input_name must name inputs of equal length, got \[4, 3\]"):
        model(IMAGES, OTHERS[:3])


def test_a_missing_one_of_several_inputs_is_refused():
    model = Pair()
    hooked(model, input_name=("x1", "x3"))
    with pytest.raises(TypeError, match=r"input_name is \('x1', 'x3'\), but the model was called with"):
        model(x1=IMAGES, x2=OTHERS)


def test_several_inputs_of_which_one_was_chosen_are_said(recwarn):
    model, criterion = Pair(), nn.CrossEntropyLoss()
    optimizer, _ = hooked(model, criterion)
    for _ in range(2):
        criterion(model(x1=IMAGES, x2=OTHERS), TARGETS).backward()
        optimizer.step()
    (message,) = [str(warning.message) for warning in recwarn if "look like images" in str(warning.message)]
    assert "input_name='x1'" in message
    assert "input_name=('x1', 'x2')" in message


@pytest.mark.parametrize("settings", [{"input_name": 0}, {"other": torch.rand(4, 3, 8, 8)}], ids=["named", "channels"])
def test_one_input_that_is_meant_is_not_talked_of(recwarn, settings):
    model = Pair()
    other = settings.pop("other", OTHERS)
    hooked(model, **settings)
    model.wrap, model.layer = (lambda x: x), nn.LazyLinear(2)
    model(IMAGES, other)
    assert not [warning for warning in recwarn if "look like images" in str(warning.message)]


# -- lists of images ---------------------------------------------------------------------------------------------------


class Detector(nn.Module):
    """It takes images of any sizes as a list and returns its losses, as torchvision's detectors do in training."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3)

    def forward(self, images, targets):
        self.seen = images
        maps = [self.layer(image[None]) for image in images]
        return {
            "box": sum(m.square().mean() for m in maps) / len(maps),
            "class": sum((m.mean() - t) ** 2 for m, t in zip(maps, targets, strict=True)) / len(maps),
        }


LIST = [torch.rand(1, 8, 9) + 0.5, torch.rand(1, 12, 8) + 0.5, torch.rand(1, 8, 9) + 0.5]


def test_a_list_of_images_is_masked_image_by_image():
    model = Detector()
    optimizer, hook = hooked(model, preset="random")
    sum(model(LIST, [0.0, 1.0, 0.0]).values()).backward()
    optimizer.step()
    assert isinstance(model.seen, list)
    assert [image.shape for image in model.seen] == [image.shape for image in LIST]
    assert not any(torch.equal(image, masked) for image, masked in zip(LIST, model.seen, strict=True))
    first, last = (model.seen[k] / LIST[k] for k in (0, 2))
    assert not torch.equal(first, last)
    assert hook.metrics["samples_seen"] == 3


def test_a_detectors_loss_of_a_single_image_is_the_images():
    model = Detector()
    optimizer, hook = hooked(model)
    for image in LIST:
        losses = model([image], [1.0])
        sum(losses.values()).backward()
        expected = sum(losses.values()).detach().view(1)
    found, _ = rewards_of(optimizer, hook)
    assert len(found) == 3
    torch.testing.assert_close(found[-1], expected)


def test_a_detectors_loss_of_several_images_is_refused_with_the_ways_out():
    model = Detector()
    hooked(model)
    with pytest.raises(PairingError, match=r"\(box, class\) of 3 images together.*one image at a time.*output_loss"):
        model(LIST, [0.0, 1.0, 0.0])


def test_a_detector_learns_from_an_output_loss():
    model = Detector()
    per_image = torch.tensor([0.1, 0.2, 0.3])
    optimizer, hook = hooked(model, output_loss=lambda output, args, kwargs: per_image)
    model(LIST, [0.0, 1.0, 0.0])
    (reward,), (sample,) = rewards_of(optimizer, hook)
    torch.testing.assert_close(reward, per_image)
    assert sample.action.shape[0] == 3
