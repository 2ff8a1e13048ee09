"""Timing of steps and calls, and calls whose failure is recorded."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.benchmark import Timer


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def elapsed(step: Callable[[], None], times: int, device: torch.device) -> float:
    """Seconds per step, over several consecutive steps."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / times


def timed(function: Callable[[], Any]) -> float:
    """Median seconds of a call over at least five calls. The timer waits for the GPU."""
    timer = Timer("f()", globals={"f": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=max(0.3, 5 * timer.timeit(1).median)).median


def guarded(function: Callable[[], Any]) -> Any:
    """The result of a call, or the message of its error."""
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:2000]
