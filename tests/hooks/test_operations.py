"""The number of operations that a hooked step adds to a plain one."""

from collections import Counter

import pytest
import torch
from torch import nn

import policy_noise
from benchmarks.overhead.launches import Launches
from policy_noise.learning._window import SampleCount


@pytest.mark.parametrize(
    ("settings", "most"),
    [({}, 160), ({"entropy_target": None, "center_brightness": False, "reward": "cooperative"}, 140)],
    ids=["preset", "without holding the entropy"],
)
def test_a_step_asks_little_of_the_device_and_reads_nothing_back(make_model, batch, monkeypatch, settings, most):
    """On a GPU, a small policy costs mainly launches and waits, so their number must not grow unnoticed."""
    images, targets = batch
    model, criterion = make_model(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step():
        optimizer.zero_grad()
        criterion(model(images), targets).backward()
        optimizer.step()

    def recorded():
        step()
        with Launches() as launches:
            step()
        return Counter(name for (_, name) in launches.counts.elements())

    plain = recorded()
    # On a GPU dropped samples are reported only when the metrics are read.
    monkeypatch.setattr(SampleCount, "warn_dropped", lambda self: None)
    hook = policy_noise.attach(model, optimizer, criterion, mean=4.0, std=1.0, **settings)
    counts = recorded()
    hook.remove()
    extra = counts - plain
    for name in ("nonzero", "equal", "item"):
        assert extra[name] == 0, name
    # Only a CPU is asked whether all pixels are finite.
    assert extra["is_nonzero"] <= 1
    assert extra["local_scalar_dense"] <= 1
    assert extra["sample_dirichlet"] == 1
    assert extra["adaptive_avg_pool2d"] == 0
    assert extra["lerp"] >= 1
    print(f"{extra.total()} operations of at most {most}")
    assert extra.total() <= most, extra
