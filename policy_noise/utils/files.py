"""Write files completely or not at all."""

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
"""Age in seconds, since its last write, from which a temporary file counts as left over by a killed process."""


def write_atomic(path: PathLike, write: Callable[[Path], Any]) -> None:
    """Write a file completely or not at all: write a temporary file beside it, fsync, rename.

    The temporary file is hidden. If a killed process leaves one behind, a later write of the same file removes it once
    it is an hour old.

    Args:
        path: File to write.
        write: Called with the temporary file's path.

    Raises:
        OSError: If the file cannot be written, for example because the disk is full, even if the writing library raises
            another error then. The message names the file. An existing file stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"  # mkstemp would make it readable by its owner only
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        # On a full disk torch and safetensors raise their own errors, and torch's does not mention the disk.
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
    """Try a plain write to the file. Returns its error, or None if it works."""
    try:
        with temporary.open("ab") as file:
            file.write(bytes(1 << 20))
    except OSError as error:
        return error
    return None
