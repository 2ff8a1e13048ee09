"""Seconds of a step, of a call, and a result or the words of its failure."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.benchmark import Timer


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def elapsed(step: Callable[[], None], times: int, device: torch.device) -> float:
    """Seconds a step, of some in a row."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        step()
    synchronize(device)
    return (time.perf_counter() - start) / times


def timed(function: Callable[[], Any]) -> float:
    """Median seconds of a call, of five at least; the timer waits for the GPU."""
    timer = Timer("f()", globals={"f": function}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=max(0.3, 5 * timer.timeit(1).median)).median


def guarded(function: Callable[[], Any]) -> Any:
    """A result, or the words of its failure."""
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:2000]
