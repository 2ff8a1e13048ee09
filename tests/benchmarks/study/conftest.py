"""A tiny task of the study."""

import pytest
import torch

from benchmarks.study.tasks import EvalSet, Task, TaskData

TASK = Task("tiny", "organs", 16, per_class=8, epochs=4, batch_size=8)


@pytest.fixture(scope="module")
def data() -> TaskData:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(12)
    images = torch.randint(0, 80, (36, 1, 16, 16), generator=generator) + 80 * labels.view(-1, 1, 1, 1)
    images = images.to(torch.uint8)
    clean = EvalSet(images[:12], labels[:12].numpy())
    evals = {"val": {"clean": clean, "contrast:1": clean, "ct2": EvalSet(images[:12], labels[:12].numpy() % 2, (0, 1))}}
    return TaskData(TASK, images, labels, 3, 0.4, 0.25, evals)
