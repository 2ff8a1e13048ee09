"""Losses and inputs beyond classification, end to end: labels, regression, segmentation, named inputs, volumes."""

import pytest
import torch
from tiny import SETTINGS, TinyNet, assert_masked, policy_vector, tiny_data
from torch import nn
from torch.nn import functional as F

import policy_noise

IMAGES, TARGETS = tiny_data().tensors


class Segmenter(nn.Module):
    def __init__(self, classes=4, dims=2):
        super().__init__()
        conv = nn.Conv2d if dims == 2 else nn.Conv3d
        self.layers = nn.Sequential(conv(3, 8, 3, padding=1), nn.ReLU(), conv(8, classes, 3, padding=1))

    def forward(self, images):
        return self.layers(images)


class Dice(nn.Module):
    """A user's loss without ``reduction``: the mean of the samples' overlaps."""

    def forward(self, output, target):
        probability = output.softmax(1)[:, 1]
        target = (target == 1).to(probability)
        overlap = (probability * target).flatten(1).sum(1)
        return (1 - (2 * overlap + 1) / ((probability + target).flatten(1).sum(1) + 1)).mean()


PIXELS = (IMAGES.sum(1) > 0.2).long() + (IMAGES.sum(1) > 1).long()
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 1.0])
CASES = {
    "multi_label": (TinyNet, nn.BCEWithLogitsLoss(), F.one_hot(TARGETS, 4).float()),
    "multi_label_weighted": (TinyNet, nn.BCEWithLogitsLoss(pos_weight=WEIGHT), F.one_hot(TARGETS, 4).float()),
    "regression": (TinyNet, nn.SmoothL1Loss(), torch.randn(32, 4, generator=torch.Generator().manual_seed(0))),
    "sum": (TinyNet, nn.CrossEntropyLoss(reduction="sum"), TARGETS),
    "soft_targets": (TinyNet, nn.CrossEntropyLoss(label_smoothing=0.1), F.one_hot(TARGETS, 4).float()),
    "pixels": (Segmenter, nn.CrossEntropyLoss(), PIXELS),
    "dice": (Segmenter, Dice(), PIXELS),
}


@pytest.mark.parametrize("case", CASES)
def test_every_sample_has_its_loss(case):
    """The reward is the sample's own loss, by calling the criterion with that sample alone."""
    network, criterion, targets = CASES[case]
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = policy_noise.attach(model, optimizer, criterion, **SETTINGS, p=1.0)
    before, clean = policy_vector(hook), targets.clone()
    for rows in torch.arange(32).split(8):
        output = model(IMAGES[rows])
        loss = criterion(output, targets[rows])
        rewards = hook._queue.scored[-1].terms[-1][0].losses.values
        alone = [criterion.forward(output[i : i + 1], targets[rows][i : i + 1]).item() for i in range(8)]
        assert rewards.tolist() == pytest.approx(alone, rel=1e-4, abs=1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert hook.metrics["samples_seen"] == 32
    assert torch.equal(clean, targets)  # only images are masked
    assert not torch.equal(before, policy_vector(hook))


class Named(nn.Module):
    """A model of several inputs, two of which are images."""

    def __init__(self):
        super().__init__()
        self.net = TinyNet(in_chans=3)
        self.seen = {}

    def forward(self, inputs=None, *, image=None, reference=None, age=None):
        if inputs is not None:
            image, reference = inputs["image"], inputs["reference"]
        self.seen = {"image": image, "reference": reference}
        return self.net(image) + self.net(reference)


@pytest.mark.parametrize("name", [None, "image", "reference"])
@pytest.mark.parametrize("as_dict", [False, True])
def test_inputs_by_name(name, as_dict):
    torch.manual_seed(0)
    model, criterion = Named(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    hook = policy_noise.attach(model, optimizer, criterion, input_name=name, **SETTINGS)
    inputs = {"image": IMAGES, "reference": IMAGES.flip(0), "age": torch.rand(32)}
    given = dict(inputs)
    criterion(model(inputs) if as_dict else model(**inputs), TARGETS).backward()
    optimizer.step()
    masked = name or "image"
    other = {"image": "reference", "reference": "image"}[masked]
    assert_masked([model.seen[masked]], inputs[masked])
    assert model.seen[other] is inputs[other]
    assert all(inputs[key] is given[key] for key in given)  # the loop's own dict is as it was
    assert hook.metrics["samples_seen"] == 32


def test_unknown_name_says_what_there_is():
    model, criterion = Named(), nn.CrossEntropyLoss()
    policy_noise.attach(model, torch.optim.SGD(model.parameters(), 0.1), criterion, input_name="img", **SETTINGS)
    with pytest.raises(TypeError, match=r"input_name is 'img'.*\['image', 'reference'\]"):
        model(image=IMAGES, reference=IMAGES)


@pytest.mark.parametrize("grid_size", [None, 3, (2, 4, 4)])
def test_volumes(grid_size):
    """(B, C, D, H, W): attach() sees the Conv3d and makes a grid of three axes."""
    torch.manual_seed(0)
    volumes = torch.randn(16, 1, 8, 16, 16)
    targets = torch.arange(16) % 4
    model, criterion = TinyNet(in_chans=1, dims=3), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    hook = policy_noise.attach(model, optimizer, criterion, **({} if grid_size is None else {"grid_size": grid_size}))
    assert hook.augmentation.grid_size == {None: (2, 2, 2), 3: (3, 3, 3), (2, 4, 4): (2, 4, 4)}[grid_size]
    before = policy_vector(hook)
    for rows in torch.arange(16).split(8):
        loss = criterion(model(volumes[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert hook.metrics["samples_seen"] == 16
    assert not torch.equal(before, policy_vector(hook))
    model.eval()
    assert torch.equal(model(volumes), model(volumes))
