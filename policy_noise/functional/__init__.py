"""The mathematics of the noise mask, without state.

All functions are pure. Random ones take a generator. Caches hold only what sizes and settings, device and dtype decide,
such as the rendering operators.
"""

from .distribution import ACTION_EPS, beta_entropy, beta_log_prob, beta_score, bounded_exp, sample_beta
from .estimator import Baseline, LossMoments, Reward, advantage, average_or, paper_objective, reinforce_loss
from .masking import apply_mask, mask_brightness, noise_mask, scale_mask
from .rendering import Upsample, blur_parameters, render_mask

__all__ = [
    "ACTION_EPS",
    "Baseline",
    "LossMoments",
    "Reward",
    "Upsample",
    "advantage",
    "apply_mask",
    "average_or",
    "beta_entropy",
    "beta_log_prob",
    "beta_score",
    "blur_parameters",
    "bounded_exp",
    "mask_brightness",
    "noise_mask",
    "paper_objective",
    "reinforce_loss",
    "render_mask",
    "sample_beta",
    "scale_mask",
]
