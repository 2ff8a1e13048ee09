"""The operations that a step launches on the device, and the time of its parts."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.overhead.clock import synchronize
from benchmarks.overhead.parts import PARTS, clocked_hooks, parts_within, without_dropped_check
from benchmarks.overhead.variants import Variant


def count_kernels(step: Callable[[], None], device: torch.device) -> int:
    """The number of kernels, copies and fills that a step launches on the GPU."""
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        synchronize(device)
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    # Optimizers mark their range on the device too.
    return sum(not event.name.startswith("Optimizer.") for event in events)


class Launches(TorchDispatchMode):
    """Counts the operations that a step launches on the device, by part. One operation can be several kernels.

    Views, bare allocations and host scalars that are passed to a kernel are not counted.
    """

    FREE = re.compile(
        r"scalar_tensor|detach_?|alias|t|lift_fresh|empty\w*|new_empty\w*|_?record_function\w*"
        r"|(?!index_|masked_)\w*(view|expand|select|slice|split|unbind|squeeze|transpose|permute|as_strided)\w*"
    )

    def __init__(self) -> None:
        super().__init__()
        self.part = "rest"
        self.counts: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if not self.FREE.fullmatch(name):
            self.counts[self.part, name.strip("_")] += 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def within(self, part: str) -> Iterator[None]:
        outer, self.part = self.part, part
        yield
        self.part = outer


def count_launches(variant: Variant) -> dict[str, int]:
    """Operations on the device that a variant's mask and policy launch per step, by part."""
    assert variant.hook is not None
    variant.step()
    launches = Launches()
    with (
        without_dropped_check(),
        parts_within(variant.hook, launches.within),
        launches,
    ):
        variant.step()
    counts = dict.fromkeys(PARTS, 0)
    for (part, _), count in launches.counts.items():
        if part in counts:
            counts[part] += count
    return {**counts, "all": sum(counts.values())}


def time_parts(variant: Variant, steps: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each part of a step, of the hooks around them, and of the total.

    It synchronizes with the device at the beginning and end of each part.
    """
    assert variant.hook is not None
    rows: list[dict[str, float]] = []
    inner = [0.0]

    @contextmanager
    def clock(part: str) -> Iterator[None]:
        synchronize(device)
        start = time.perf_counter()
        inner.append(0.0)
        yield
        synchronize(device)
        spent = time.perf_counter() - start
        rows[-1][part] += spent - inner.pop()
        inner[-1] += spent

    with clocked_hooks() as whole, parts_within(variant.hook, clock):
        for _ in range(steps):
            rows.append(dict.fromkeys(PARTS, 0.0))
            whole[0] = 0.0
            variant.step()
            rows[-1] |= {"hooks and pairing": whole[0] - sum(rows[-1].values()), "all": whole[0]}
    return {part: median(row[part] for row in rows) for part in rows[0]}
