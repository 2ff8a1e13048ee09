"""Renamed arguments. Old names raise a TypeError that gives the new one."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

__all__ = ["RENAMED", "check_renamed", "refuse_renamed"]

F = TypeVar("F", bound=Callable[..., Any])

RENAMED: Mapping[str, str] = {
    "mask_std": "pattern_std",
    "level_std": "brightness_std",
    "domain": "scale_about ('black' for 'intensity', 'zero' for 'normalized')",
    "lr": "policy_lr",
    "lr_ratio": "policy_lr_ratio",
    "weight_decay": "policy_weight_decay",
    "optimizer_name": "policy_optimizer",
}


def check_renamed(arguments: Mapping[str, Any]) -> None:
    """Check that no argument has an old name.

    Raises:
        TypeError: If one has. The message gives the new name.
    """
    for name in arguments:
        if name in RENAMED:
            raise TypeError(f"{name} has been renamed: use {RENAMED[name]}")


def refuse_renamed(function: F) -> F:
    """Decorate a function so that old argument names raise an error that gives the new ones."""

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check_renamed(kwargs)
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]
