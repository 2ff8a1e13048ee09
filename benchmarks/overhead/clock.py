"""Timing of steps and of the package's hooks within them, and calls whose failure is recorded."""

import time
import unittest.mock
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from policy_noise.hooks._registry import Functor


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def now() -> float:
    """Seconds. On one CPU thread the process's own, which other processes do not disturb."""
    alone = torch.get_num_threads() == 1 and not torch.cuda.is_available()
    return time.process_time() if alone else time.perf_counter()


def elapsed(step: Callable[[], None], times: int, device: torch.device) -> float:
    """Seconds per step, over several consecutive steps."""
    synchronize(device)
    start = now()
    for _ in range(times):
        step()
    synchronize(device)
    return (now() - start) / times


def guarded(function: Callable[[], Any]) -> Any:
    """The result of a call, or the message of its error."""
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:2000]


@contextmanager
def in_hooks(enter: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """Run the package's hooks, which do all its work in a step, in a context of their own."""
    running, call = [False], Functor.__call__

    def within(functor: Functor, *args: Any, **kwargs: Any) -> Any:
        if running[0]:  # the policy's own optimizer step also calls a hook
            return call(functor, *args, **kwargs)
        running[0] = True
        try:
            with enter():
                return call(functor, *args, **kwargs)
        finally:
            running[0] = False

    with unittest.mock.patch.object(Functor, "__call__", within):
        yield


@contextmanager
def clocked_hooks() -> Iterator[list[float]]:
    """Sum the seconds in the package's hooks. Yields a list with that sum."""
    spent = [0.0]

    @contextmanager
    def clock() -> Iterator[None]:
        start = now()
        try:
            yield
        finally:
            spent[0] += now() - start

    with in_hooks(clock):
        yield spent
