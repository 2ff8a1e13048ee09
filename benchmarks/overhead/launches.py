"""The operations that a step's hooks launch on the device, the kernels of a whole step, and checks on a GPU."""

import re
import unittest.mock
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import policy_noise
from benchmarks.overhead.clock import guarded, in_hooks, synchronize
from benchmarks.overhead.suites import MEAN, STD, Configuration
from benchmarks.overhead.variants import Variant, make_batch
from policy_noise.learning._window import SampleCount


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
    """Operations on the device that a variant's hooks launch in a step, and of these the policy network's forward."""
    assert variant.hook is not None
    variant.step()
    launches = Launches()
    policy = getattr(variant.hook.augmentation, "policy", None)

    def forward(*args: Any) -> Any:
        with launches.within("policy network"):
            return original(*args)

    original = getattr(policy, "forward", None)
    within = nullcontext() if policy is None else unittest.mock.patch.object(policy, "forward", forward)
    # On a GPU dropped samples are counted only when the metrics are read.
    dropped = unittest.mock.patch.object(SampleCount, "warn_dropped")
    with within, dropped, in_hooks(lambda: launches.within("hooks")), launches:
        variant.step()
    parts = Counter(part for (part, _) in launches.counts.elements())
    return {"all": parts["hooks"] + parts["policy network"], "policy network, forward": parts["policy network"]}


def count_kernels(step: Callable[[], None], device: torch.device) -> int:
    """The number of kernels, copies and fills that a step launches on the GPU."""
    synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        step()
        synchronize(device)
    events = [event for event in profiler.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    # Optimizers mark their range on the device too.
    return sum(not event.name.startswith("Optimizer.") for event in events)


def look_closer(variants: dict[str, Variant], configuration: Configuration, device: torch.device) -> dict[str, Any]:
    """What a results file keeps of a configuration with ``launches``."""
    hooked = {name: variant for name, variant in variants.items() if variant.hook is not None}
    found: dict[str, Any] = {
        "launches": {name: guarded(lambda one=one: count_launches(one)) for name, one in hooked.items()}
    }
    if device.type == "cuda":
        found["kernels"] = {
            name: guarded(lambda one=one: count_kernels(one.step, device)) for name, one in variants.items()
        }
        found["checks"] = {
            f"a step of {name} under torch.cuda.set_sync_debug_mode('error')": guarded(
                lambda one=one: check_no_synchronisation(one, configuration)
            )
            for name, one in hooked.items()
        }
        found["checks"]["masks drawn and applied inside torch.cuda.graph"] = guarded(
            lambda: check_graph(configuration, device)
        )
    return found


def check_no_synchronisation(variant: Variant, configuration: Configuration) -> str:
    if configuration.precision == "fp16":
        return "not checked: GradScaler itself waits for the device"
    torch.cuda.set_sync_debug_mode("error")
    try:
        variant.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "passed"


def check_graph(configuration: Configuration, device: torch.device) -> str:
    images, _ = make_batch(configuration, device)
    mask = policy_noise.RandomShading(p=1.0, grid_size=(2,) * (images.ndim - 2), mean=MEAN, std=STD).to(device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(40):  # until the range of the images' values has been looked at
            mask(images)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        masked = mask(images)
    graph.replay()
    first = masked.clone()
    graph.replay()
    if torch.equal(first, masked) or not bool(torch.isfinite(masked).all()):
        return "failed: two replays drew the same masks, or none that are finite"
    return "passed"
