"""Checks of arguments that several modules share."""

import math
from collections.abc import Sequence
from numbers import Real
from typing import TypeGuard

__all__ = ["check_one_of", "is_number"]


def check_one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Check that a value is one of the allowed names.

    Raises:
        ValueError: If it is not. The message gives the argument's name, the allowed names and the value.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {tuple(allowed)}, got {value!r}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a finite real number."""
    return isinstance(value, Real) and math.isfinite(value)
