"""Files that are whole or not there."""

import os
import tempfile
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
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
