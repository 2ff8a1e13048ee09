"""A learned noise mask for PyTorch image training.

:func:`attach` adds it to an existing loop in one line; :class:`PolicyNoiseMask` and :class:`ReinforceHook` are its two
parts; :mod:`policy_noise.functional` holds the mathematics.
"""

from . import functional
from ._attach import attach
from .hook import ReinforceHook
from .mask import MaskSample, PolicyNoiseMask
from .hooks.pairing import PairingError
from .version import __version__

__all__ = [
    "MaskSample",
    "PairingError",
    "PolicyNoiseMask",
    "ReinforceHook",
    "__version__",
    "attach",
    "functional",
]
