"""What ``attach(..., compile=True)`` makes of a mask's operations: graphs, fused kernels and library calls."""

import re
from typing import Any

import torch
from torch import nn

import policy_noise
from benchmarks.overhead.launches import Launches
from benchmarks.overhead.parts import parts_within, without_dropped_check
from benchmarks.overhead.suites import MEAN, STD
from benchmarks.pages import head, row

PRESETS = ("learned", "augment")
SIZE = 64
BATCHES = (8, 5, 12, 3, 15, 16, 64, 17)
"""Batch sizes. The first call compiles for the first one; the others follow."""
PARTS = ("policy forward", "sampling", "rendering", "entropy", "score", "policy backward")
"""The compiled parts. Drawing random numbers is not compiled."""
FUSED = re.compile(r"^ +(?:cpp_fused\w*\(|triton_\w+\.run\()", re.MULTILINE)
LIBRARY = re.compile(r"^ +(?:\w+ = )?(?:extern_kernels\.\w+\(|torch\.ops\.aten\.\w+\.\w+\()", re.MULTILINE)


class Step:
    """A mask's part of a training step on a batch, with given losses."""

    def __init__(self, preset: str, device: torch.device, *, compile: bool) -> None:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 1, 1).to(device)
        self.hook = policy_noise.attach(model, None, preset=preset, mean=MEAN, std=STD, compile=compile)
        self.images = torch.randn(max(BATCHES), 3, SIZE, SIZE, device=device).clamp(-1.5, 1.5)
        self.losses = torch.rand(max(BATCHES), device=device)

    def __call__(self, batch: int) -> None:
        self.hook.apply(self.images[:batch])
        if not self.hook.learner.frozen:
            self.hook.observe(self.losses[:batch])
        self.hook.step()


def count_operations(preset: str, device: torch.device) -> int:
    """The number of operations of these parts without a compiler."""
    step, launches = Step(preset, device, compile=False), Launches()
    step(BATCHES[0])
    with without_dropped_check(), parts_within(step.hook, launches.within), launches:
        step(BATCHES[0])
    return sum(count for (part, _), count in launches.counts.items() if part in PARTS)


def measure_kernels(preset: str, device: torch.device) -> dict[str, Any]:
    """Count operations without a compiler, then graphs, kernels and library calls with it, and graphs by batch size."""
    from torch._dynamo.utils import counters  # both take seconds to import, and a report needs neither
    from torch._inductor import config
    from torch._inductor.utils import run_and_get_code

    torch._dynamo.reset()
    counters.clear()
    step = Step(preset, device, compile=True)
    with config.patch(force_disable_caches=True):
        _, sources = run_and_get_code(step, BATCHES[0])
        graphs = [counters["stats"]["unique_graphs"]]
        for batch in BATCHES[1:]:
            step(batch)
            graphs.append(counters["stats"]["unique_graphs"])
    return {
        "operations": count_operations(preset, device),
        "graphs": graphs,
        "fused": sum(len(FUSED.findall(source)) for source in sources),
        "library": sum(len(LIBRARY.findall(source)) for source in sources),
    }


READ_AS = (
    "A step of the mask by itself, forwards and backwards, without the classifier, its losses and the policy's "
    f"optimizer, on batches of 3 x {SIZE} x {SIZE}: operations without a compiler, and what they become with "
    "`attach(..., compile=True)`. Between the graphs lie the draws, from the hook's own generators, in at most four "
    "operations. Library calls are convolutions and matrix products."
)


def table(results: dict[str, Any]) -> list[str]:
    """The table of the page."""
    lines = [
        "",
        *head(["preset", "operations", "graphs", "fused kernels", "library calls", "graphs after the batches"]),
    ]
    for preset, found in results["kernels"].items():
        after = ", ".join(f"{batch}: {graphs}" for batch, graphs in zip(BATCHES, found["graphs"], strict=True))
        numbers = (found["operations"], found["graphs"][0], found["fused"], found["library"])
        lines.append(row([preset, *map(str, numbers), after]))
    return lines
