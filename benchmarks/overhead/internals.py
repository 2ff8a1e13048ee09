"""Where the package's hooks are timed: the only file here that knows names of the package that are not public."""

import time
import unittest.mock
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import policy_noise


@contextmanager
def clocked_hooks() -> Iterator[list[float]]:
    """Add up the seconds that the package's hooks take, which is all that it does in a step, in a list of one."""
    spent = [0.0]
    call = policy_noise.hook._Functor.__call__

    def timed_call(functor: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = call(functor, *args, **kwargs)
        spent[0] += time.perf_counter() - start
        return result

    with unittest.mock.patch.object(policy_noise.hook._Functor, "__call__", timed_call):
        yield spent


# Called by these names in a step of the default preset; what one calls of the others counts as theirs.
PARTS = {
    "policy forward": lambda hook: (hook.mask.policy, "forward"),
    "sampling": lambda hook: (hook.mask, "sample"),
    "rendering": lambda hook: (hook.mask, "forward"),
    "loss of each sample": lambda hook: (policy_noise.hook, "per_sample_loss"),
    "observe": lambda hook: (hook.learner, "observe"),
    "policy backward": lambda hook: (hook.learner, "_flat_gradient"),
    "estimator and policy step": lambda hook: (hook.learner, "step"),
}


@contextmanager
def parts_within(hook: policy_noise.ReinforceHook, enter: Callable[[str], Any]) -> Iterator[None]:
    """Run each part of a step inside a context of its own."""
    with ExitStack() as stack:
        for part, find in PARTS.items():
            owner, name = find(hook)
            original = getattr(owner, name)

            def within(*args: Any, part: str = part, original: Callable[..., Any] = original, **kwargs: Any) -> Any:
                with enter(part):
                    return original(*args, **kwargs)

            stack.enter_context(unittest.mock.patch.object(owner, name, within))
        yield


def without_dropped_check(hook: policy_noise.ReinforceHook) -> Any:
    """Leave the count of dropped samples unread for a while, as on a GPU, where only reading the metrics does so."""
    return unittest.mock.patch.object(hook.learner, "_warn_dropped")
