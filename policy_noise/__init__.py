"""Shading augmentation for PyTorch image training, random or learned.

:func:`attach` adds it to an existing loop in one line. :class:`RandomShading` and :class:`PolicyNoiseMask` are the
masks. :class:`ReinforceHook` trains a mask or any other :class:`StochasticAugmentation`.
:mod:`policy_noise.functional` holds the mathematics.
"""

import importlib
from typing import TYPE_CHECKING, Any

from . import functional
from .augmentation import Sample, StochasticAugmentation
from .check import Check, check
from .factory import attach
from .hooks._draws import StrengthSchedule
from .hooks._pairing import PairingError
from .hooks._registry import detach
from .hooks.hook import ReinforceHook
from .masks import MaskSample, PolicyNoiseMask, RandomShading
from .version import __version__

if TYPE_CHECKING:
    from . import heated, losses, plotting

__all__ = [
    "Check",
    "MaskSample",
    "PairingError",
    "PolicyNoiseMask",
    "RandomShading",
    "ReinforceHook",
    "Sample",
    "StochasticAugmentation",
    "StrengthSchedule",
    "__version__",
    "attach",
    "check",
    "detach",
    "functional",
    "heated",
    "losses",
    "plotting",
]

_LAZY = ("heated", "losses", "plotting")
"""Modules that are imported when they are first read."""


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
