"""Time all variants of a configuration in turn."""

import gc
import json
import math
import random
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.overhead.clock import clocked_hooks, elapsed, synchronize
from benchmarks.overhead.launches import look_closer
from benchmarks.overhead.suites import Configuration
from benchmarks.overhead.variants import Variant, make_variant


def warm_up(variant: Variant, device: torch.device) -> None:
    """Build caches, state and compiled code. On a GPU also record the memory of a step."""
    if device.type != "cuda":
        for _ in range(2):
            variant.step()
        return
    for _ in range(3):
        variant.step()
    synchronize(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        variant.step()
    synchronize(device)
    variant.peak = torch.cuda.max_memory_allocated() - before


def measure(configuration: Configuration, device: torch.device, until: float = math.inf) -> dict[str, Any]:
    """Time a configuration's variants in turn. After ``until`` (:func:`time.perf_counter`) no repetition starts."""
    variants: dict[str, Variant] = {}
    try:
        return _measure(variants, configuration, device, until)
    finally:
        for variant in variants.values():
            variant.close()


def _measure(
    variants: dict[str, Variant], configuration: Configuration, device: torch.device, until: float
) -> dict[str, Any]:
    failures: dict[str, str] = {}
    for name in configuration.arms:
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        try:
            variant = make_variant(name, configuration, device)
            warm_up(variant, device)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"[:2000]
            gc.collect()
            continue
        if device.type == "cuda":
            gc.collect()
            variant.static = torch.cuda.memory_allocated() - before
        variants[name] = variant
    if "plain" not in variants:
        raise RuntimeError(f"the plain step failed: {failures}")
    # Short steps are timed several in a row, because reading the clock after each would wait for the device.
    pilot = {name: elapsed(variant.step, 1, device) for name, variant in variants.items()}
    target = 0.1 if device.type == "cuda" else 0.02
    times = max(1, math.ceil(target / min(pilot.values())))
    shuffled = random.Random(0)
    order = list(variants)
    start = time.perf_counter()
    with clocked_hooks() as spent:
        for repetition in range(configuration.repetitions):
            now = time.perf_counter()
            if (repetition >= 6 and now - start > configuration.seconds) or (repetition and now > until):
                break
            shuffled.shuffle(order)
            for name in order:
                variant = variants[name]
                steps = variant.period * math.ceil(times / variant.period)
                spent[0] = 0.0
                variant.times.append(elapsed(variant.step, steps, device))
                if variant.hook is not None and device.type == "cpu":  # a GPU works on after its hooks have returned
                    variant.inside.append(spent[0] / steps)
    record: dict[str, Any] = {
        "configuration": asdict(configuration),
        "label": configuration.label(),
        "steps_in_a_row": times,
        "failures": failures,
        "arms": {},
    }
    for name, variant in variants.items():
        if device.type == "cuda":
            memory: int | None = variant.static + variant.peak
        else:
            memory = peak_memory_on_cpu(name, configuration) if time.perf_counter() < until else None
        record["arms"][name] = {"seconds": variant.times, "peak_memory_bytes": memory}
        if variant.inside:
            record["arms"][name]["seconds_in_hooks"] = variant.inside
    if configuration.launches and time.perf_counter() < until:
        record |= look_closer(variants, configuration, device)
    return record


def peak_memory_on_cpu(name: str, configuration: Configuration) -> int:
    """Peak bytes that PyTorch's allocator holds for a variant, from its creation to the end of its second step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        variant = make_variant(name, configuration, torch.device("cpu"))
        for _ in range(2):
            variant.step()
    variant.close()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_bytes())["traceEvents"]
    # Each event gives the total after it, and the total did not start at zero.
    changes = [event["args"] for event in sorted(events, key=lambda event: event["ts"]) if event["name"] == "[memory]"]
    totals = [change["Total Allocated"] for change in changes]
    return max(totals) - (totals[0] - changes[0]["Bytes"])
