"""The hook does not change the user's losses, batches and random numbers."""

import io
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset

from policy_noise import attach


class Cropped(Dataset):
    """Images that use every generator: a crop by torch, a flip by numpy, a gain by random."""

    def __init__(self):
        self.images = torch.rand(24, 3, 24, 24, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        top, left = torch.randint(8, (2,)).tolist()
        image = self.images[index, :, top : top + 16, left : left + 16]
        image = image.flip(-1) if np.random.rand() < 0.5 else image  # noqa: NPY002
        return image * random.uniform(0.9, 1.1), index % 4


def seed_all():
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)


def make_dropping_model():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )


def train(steps, **settings):
    """Losses, batches and the generators' states after a run, hooked if there are settings."""
    seed_all()
    model, criterion = make_dropping_model(), nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    hook = attach(model, optimizer, criterion, **settings) if settings else None
    losses, batches = [], []
    while len(losses) < steps:
        for images, targets in DataLoader(Cropped(), batch_size=8, shuffle=True):
            loss = criterion(model(images), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            batches.append(images)
    states = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    return torch.stack(losses), torch.stack(batches), states, hook


class Dropping(nn.Module):
    """A policy that draws from the global generator, as a backbone with dropout does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def forward(self, images):
        out = self.layer(F.dropout(images.mean((2, 3)), 0.5))
        return tuple(out.view(-1, 2, 1, 2, 2).unbind(1))


POLICIES = {
    "spatial": lambda: {},
    "dropout": lambda: {"policy": Dropping()},
    "backbone": lambda: {"policy": "test_resnet"},
    "augment": lambda: {"preset": "random"},
}


@pytest.mark.parametrize("kind", POLICIES)
def test_losses_and_batches_without_masks_are_the_plain_loops(kind):
    losses, batches, (torch_state, numpy_state, python_state), _ = train(6)
    with torch.random.fork_rng():
        settings = POLICIES[kind]()
    hooked, seen, states, hook = train(6, p=0.0, **settings)
    assert torch.equal(hooked, losses)
    assert torch.equal(seen, batches)
    assert torch.equal(states[0], torch_state)
    assert (states[1] == numpy_state).all()
    assert states[2] == python_state
    assert hook.augmentation.p == 0.0


@pytest.mark.parametrize("kind", POLICIES)
def test_generators_are_untouched_by_twenty_masked_steps(kind):
    """The masks change the losses. The draws for shuffling, crops and dropout do not change."""
    losses, batches, (torch_state, numpy_state, python_state), _ = train(20)
    with torch.random.fork_rng():
        settings = POLICIES[kind]()
    hooked, seen, states, _ = train(20, p=1.0, **settings)
    assert not torch.equal(hooked, losses)
    assert torch.equal(seen, batches)
    assert torch.equal(states[0], torch_state)
    assert (states[1] == numpy_state).all()
    assert states[2] == python_state


@pytest.mark.parametrize("settings", [{}, {"policy": "test_resnet"}, {"preset": "random"}, {"policy": "static"}])
def test_attaching_draws_nothing_from_the_global_generator(make_model, settings):
    model = make_model()
    before = torch.get_rng_state()
    attach(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(), **settings)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["spatial", "dropout"])
def test_resume_without_a_generator_of_ones_own_is_bit_equal(make_model, batch, kind):
    """Resume from the optimizer's state alone, in a process with another seed."""

    def start():
        with torch.random.fork_rng():
            torch.manual_seed(3)
            model, criterion = make_model(), nn.CrossEntropyLoss()
            settings = POLICIES[kind]()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, criterion, optimizer, attach(model, optimizer, criterion, **settings)

    def step(model, criterion, optimizer):
        loss = criterion(model(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    *loop, hook = start()
    for _ in range(3):
        step(*loop)
    saved = [{k: v.clone() for k, v in loop[0].state_dict().items()}, loop[2].state_dict()]
    saved[1] = torch.load(_in_memory(saved[1]), weights_only=True)
    rest = torch.stack([step(*loop) for _ in range(4)])

    torch.manual_seed(999)
    *other, resumed = start()
    other[0].load_state_dict(saved[0])
    other[2].load_state_dict(saved[1])
    assert torch.equal(torch.stack([step(*other) for _ in range(4)]), rest)
    for first, second in zip(hook.augmentation.parameters(), resumed.augmentation.parameters(), strict=True):
        assert torch.equal(first, second)


def _in_memory(state):
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return stream
