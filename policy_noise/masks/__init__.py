"""Smooth masks that images are multiplied by: drawn by a policy, or at random."""

from ._base import ShadingSample
from .policy_mask import MaskSample, PolicyNoiseMask
from .random_shading import RandomShading

__all__ = ["MaskSample", "PolicyNoiseMask", "RandomShading", "ShadingSample"]
