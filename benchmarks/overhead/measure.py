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

from benchmarks.overhead.alone import check_graph, check_no_synchronisation, rendering
from benchmarks.overhead.arms import Arm, make_arm
from benchmarks.overhead.clock import elapsed, guarded, synchronize
from benchmarks.overhead.launches import count_kernels, count_launches, time_parts
from benchmarks.overhead.parts import clocked_hooks
from benchmarks.overhead.suites import Configuration


def warm_up(arm: Arm, device: torch.device) -> None:
    """Build caches, state and compiled code. On a GPU also record the memory of a step."""
    if device.type != "cuda":
        for _ in range(2):
            arm.step()
        return
    for _ in range(3):
        arm.step()
    synchronize(device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(2):
        arm.step()
    synchronize(device)
    arm.peak = torch.cuda.max_memory_allocated() - before


def measure(configuration: Configuration, device: torch.device, until: float = math.inf) -> dict[str, Any]:
    """Time a configuration's variants in turn. After ``until`` (:func:`time.perf_counter`) no repetition starts."""
    arms: dict[str, Arm] = {}
    try:
        return _measure(arms, configuration, device, until)
    finally:
        for arm in arms.values():
            arm.close()


def _measure(arms: dict[str, Arm], configuration: Configuration, device: torch.device, until: float) -> dict[str, Any]:
    failures: dict[str, str] = {}
    for name in configuration.arms:
        before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
        try:
            arm = make_arm(name, configuration, device)
            warm_up(arm, device)
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"[:2000]
            gc.collect()
            continue
        if device.type == "cuda":
            gc.collect()
            arm.static = torch.cuda.memory_allocated() - before
        arms[name] = arm
    if "plain" not in arms:
        raise RuntimeError(f"the plain step failed: {failures}")
    # Short steps are timed several in a row, because reading the clock after each would wait for the device.
    pilot = {name: elapsed(arm.step, 1, device) for name, arm in arms.items()}
    target = 0.1 if device.type == "cuda" else 0.02
    times = max(1, math.ceil(target / min(pilot.values())))
    shuffled = random.Random(0)
    order = list(arms)
    start = time.perf_counter()
    with clocked_hooks() as spent:
        for repetition in range(configuration.repetitions):
            now = time.perf_counter()
            if (repetition >= 6 and now - start > configuration.seconds) or (repetition and now > until):
                break
            shuffled.shuffle(order)
            for name in order:
                arm = arms[name]
                steps = arm.period * math.ceil(times / arm.period)
                spent[0] = 0.0
                arm.times.append(elapsed(arm.step, steps, device))
                if arm.hook is not None and device.type == "cpu":  # a GPU works on after its hooks have returned
                    arm.inside.append(spent[0] / steps)
    record: dict[str, Any] = {
        "configuration": asdict(configuration),
        "label": configuration.label(),
        "steps_in_a_row": times,
        "failures": failures,
        "arms": {},
    }
    for name, arm in arms.items():
        if device.type == "cuda":
            memory: int | None = arm.static + arm.peak
        else:
            memory = peak_memory_on_cpu(name, configuration) if time.perf_counter() < until else None
        record["arms"][name] = {"seconds": arm.times, "peak_memory_bytes": memory}
        if arm.inside:
            record["arms"][name]["seconds_in_hooks"] = arm.inside
    if configuration.profile and "default" in arms and time.perf_counter() < until:
        record["kernels"] = {
            name: guarded(lambda arm=arms[name]: count_kernels(arm.step, device))
            for name in ("plain", "default", "paper", "authors")
            if name in arms and device.type == "cuda"
        }
        record["split"] = {
            preset: guarded(lambda preset=preset: time_parts(arms[preset], 15, device))
            for preset in ("default", "paper")
            if preset in arms
        }
        record["rendering"] = guarded(lambda: rendering(configuration, device))
        if device.type == "cuda":
            record["checks"] = {
                "a step of the default preset under torch.cuda.set_sync_debug_mode('error')": guarded(
                    lambda: check_no_synchronisation(arms["default"], configuration, device)
                ),
                "masks drawn and applied inside torch.cuda.graph": guarded(lambda: check_graph(configuration, device)),
            }
    if configuration.launches:
        record["launches"] = guarded(lambda: count_launches(arms["default"]))
        record["launches augment"] = guarded(lambda: count_launches(arms["augment"]))
        record["host"] = guarded(lambda: time_parts(arms["default"], 200, device))
    return record


def peak_memory_on_cpu(name: str, configuration: Configuration) -> int:
    """Peak bytes that PyTorch's allocator holds for a variant, from its creation to the end of its second step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        arm = make_arm(name, configuration, torch.device("cpu"))
        for _ in range(2):
            arm.step()
    arm.close()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_bytes())["traceEvents"]
    # Each event gives the total after it, and the total did not start at zero.
    changes = [event["args"] for event in sorted(events, key=lambda event: event["ts"]) if event["name"] == "[memory]"]
    totals = [change["Total Allocated"] for change in changes]
    return max(totals) - (totals[0] - changes[0]["Bytes"])
