"""The parts of the package's step that are timed and counted."""

import time
import unittest.mock
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

import policy_noise
from policy_noise import MaskSample
from policy_noise.hooks.copies import Functor
from policy_noise.learning import window
from policy_noise.learning.window import SampleCount
from policy_noise.losses import LossSplitter


@contextmanager
def clocked_hooks() -> Iterator[list[float]]:
    """Sum the seconds in the package's hooks, which do all its work in a step. Yields a list with that sum."""
    spent, running = [0.0], [False]
    call = Functor.__call__

    def timed_call(functor: Functor, *args: Any, **kwargs: Any) -> Any:
        if running[0]:  # the policy's own optimizer step also calls a hook
            return call(functor, *args, **kwargs)
        running[0] = True
        start = time.perf_counter()
        try:
            return call(functor, *args, **kwargs)
        finally:
            spent[0] += time.perf_counter() - start
            running[0] = False

    with unittest.mock.patch.object(Functor, "__call__", timed_call):
        yield spent


# The functions of each part in a learning step. A nested call of another part counts for that part.
PARTS: dict[str, Callable[[policy_noise.ReinforceHook], tuple[Any, str]]] = {
    "policy forward": lambda hook: (getattr(hook.augmentation, "policy", None), "forward"),
    "sampling": lambda hook: (hook.augmentation, "sample"),
    "rendering": lambda hook: (hook.augmentation, "forward"),
    "loss of each sample": lambda hook: (LossSplitter, "__call__"),
    "observe": lambda hook: (hook.learner, "observe"),
    "entropy": lambda hook: (window, "_entropy_sums"),
    "score": lambda hook: (MaskSample, "surrogate"),
    "policy backward": lambda hook: (torch.autograd, "grad"),
    "estimator and policy step": lambda hook: (hook.learner, "step"),
}


@contextmanager
def parts_within(hook: policy_noise.ReinforceHook, enter: Callable[[str], Any]) -> Iterator[None]:
    """Run each part of a step in its own context."""
    with ExitStack() as stack:
        for part, find in PARTS.items():
            owner, name = find(hook)
            if owner is None:  # a mask without a policy
                continue
            original = getattr(owner, name)

            def within(*args: Any, part: str = part, original: Callable[..., Any] = original, **kwargs: Any) -> Any:
                with enter(part):
                    return original(*args, **kwargs)

            stack.enter_context(unittest.mock.patch.object(owner, name, within))
        yield


def without_dropped_check() -> Any:
    """Do not read the number of dropped samples for a while. On a GPU only reading the metrics does so."""
    return unittest.mock.patch.object(SampleCount, "warn_dropped")
