"""Nested mappings, lists and tuples."""

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["leaves_of"]


def leaves_of(value: Any) -> Iterator[Any]:
    """Iterate over the leaves of nested mappings, lists and tuples, in order."""
    if isinstance(value, Mapping):
        for item in value.values():
            yield from leaves_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from leaves_of(item)
    else:
        yield value
