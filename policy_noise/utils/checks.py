"""Refusals that several rooms word alike."""

from collections.abc import Sequence

__all__ = ["check_one_of"]


def check_one_of(name: str, value: object, allowed: Sequence[str]) -> None:
    """Refuse a name that is not among those allowed.

    Raises:
        ValueError: With the argument's name, what came and what is allowed.
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {tuple(allowed)}, got {value!r}")
