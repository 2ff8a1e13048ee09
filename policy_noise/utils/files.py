"""Files that are whole or not there."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["PathLike", "write_atomic"]

PathLike = str | os.PathLike[str]


def write_atomic(path: PathLike, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all: a temporary one beside it, fsync, rename.

    Args:
        path: File to write.
        write: Called with the temporary file's path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"  # not mkstemp's, which only its owner may read
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
