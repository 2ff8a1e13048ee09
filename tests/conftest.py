"""What the tests share: one thread, a seed for each test, a small classifier and a batch."""

import gc
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and torch are imported, and for the tests' own processes

import pytest
import torch
from torch import nn

torch.set_num_threads(1)
gc.disable()  # until all tests are imported, which makes many objects and no garbage


def pytest_collection_finish():
    """Collect garbage from here on, without imported objects, because some tests collect often."""
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    """Undo this at the end. Otherwise extension modules report leaks."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _seed():
    # torch.manual_seed keeps the stack for each kind of device that is not there, which takes a millisecond.
    (torch.manual_seed if torch.cuda.is_available() else torch.default_generator.manual_seed)(0)


@pytest.fixture
def without_garbage():
    """Collect garbage, and leave what remains out of the next collections, which are quick then.

    Hooks of other tests are gone. statsmodels collects at each call of Holm's method.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def make_model():
    """Builder of a classifier for any image size that is small, deterministic and free of batch statistics."""

    def make(in_chans=3, classes=5, *, batch_norm=False):
        return nn.Sequential(
            nn.Conv2d(in_chans, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(128, classes),
        )

    return make


@pytest.fixture
def batch():
    """Eight normalised images of three channels, and their classes."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, 32, 32, generator=generator), torch.arange(8) % 5
