"""Smooth masks that images are multiplied by: drawn by a policy, or at random."""

from .policy_mask import PolicyNoiseMask
from .random_shading import RandomShading
from .samples import MaskSample, ShadingSample

__all__ = ["MaskSample", "PolicyNoiseMask", "RandomShading", "ShadingSample"]
