"""Files that are whole or not there."""

import contextlib
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["PathLike", "write_atomic"]

PathLike = str | os.PathLike[str]

ABANDONED = 3600
"""Seconds after which a temporary file that nobody writes to is one that a killed process left."""


def write_atomic(path: PathLike, write: Callable[[Path], Any]) -> None:
    """Write a file whole or not at all: a temporary one beside it, fsync, rename.

    The temporary file is hidden. One that a killed process left is removed by the next write of the same file that
    comes an hour later.

    Args:
        path: File to write.
        write: Called with the temporary file's path.

    Raises:
        OSError: If the file cannot be written, such as on a full disk; also where the library that writes it raises
            something else. It names the file. One that was there before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"  # not mkstemp's, which only its owner may read
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        # torch and safetensors have errors of their own for a full disk, and torch's does not say so.
        cause = error if isinstance(error, OSError) else _probe(temporary) if isinstance(error, Exception) else None
        temporary.unlink(missing_ok=True)
        if cause is None or cause.errno is None:
            raise
        raise OSError(cause.errno, f"{cause.strerror}, nothing was changed", str(path)) from error


def _sweep(path: Path) -> None:
    """Remove the abandoned temporary files of a path."""
    own = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}")
    for left in path.parent.iterdir():
        if own.fullmatch(left.name):
            with contextlib.suppress(OSError):  # another process may be faster
                if time.time() - left.stat().st_mtime > ABANDONED:
                    left.unlink()


def _probe(temporary: Path) -> OSError | None:
    """Why no more could be written to a file, if a plain write fails too."""
    try:
        with temporary.open("ab") as file:
            file.write(bytes(1 << 20))
    except OSError as error:
        return error
    return None
