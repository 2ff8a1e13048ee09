"""Warn at the user's line, however many frames of libraries lie between."""

import os
import sys
import sysconfig
import traceback
import warnings

import torch

__all__ = ["Once", "warn"]

OWN = tuple(os.path.dirname(os.path.abspath(file)) + os.sep for file in (os.path.dirname(__file__), torch.__file__))
"""Folders of this package and of torch."""
INSTALLED = tuple(
    os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
"""Folders of Python's own and of installed libraries."""


def warn(message: str) -> None:
    """Issue a ``UserWarning`` that names the user's line.

    A fixed ``stacklevel`` would point into this package, into torch (whose hooks call it) or into a framework that runs
    the loop. So the first frame outside of all installed libraries is taken. If there is none (the script itself is
    installed), it is the first one outside of this package and torch.

    Args:
        message: What happened and what to do. The package's name is put in front.
    """
    frames = [frame for frame, _ in traceback.walk_stack(sys._getframe(1))]
    foreign = [frame for frame in frames if not frame.f_code.co_filename.startswith(OWN)]
    own_code = (frame for frame in foreign if not _is_installed(frame.f_code.co_filename))
    frame = next(own_code, foreign[0] if foreign else frames[-1])
    warnings.warn_explicit(
        f"policy_noise: {message}",
        UserWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        module=frame.f_globals.get("__name__", "sys"),
        registry=frame.f_globals.setdefault("__warningregistry__", {}),
    )


class Once:
    """Issues one warning for each cause.

    Attributes:
        said: The causes so far.
    """

    def __init__(self) -> None:
        self.said: set[str] = set()

    def warn(self, cause: str, message: str) -> None:
        """:func:`warn`, if it is the first time."""
        if cause not in self.said:
            self.said.add(cause)
            warn(message)


def _is_installed(file: str) -> bool:
    parts = file.replace(os.sep, "/").split("/")
    return (
        "site-packages" in parts
        or "dist-packages" in parts
        or file.startswith("<frozen ")
        or os.path.realpath(file).startswith(INSTALLED)
    )
