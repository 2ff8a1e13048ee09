"""Compute one loss per sample from any criterion: the policy's reward signal."""

from .batch import loss_of, plain_tensor, with_loss
from .isolation import is_hookable
from .splitter import CriterionError, LossMethod, LossSplitter, SampleLosses, per_sample_loss

__all__ = [
    "CriterionError",
    "LossMethod",
    "LossSplitter",
    "SampleLosses",
    "is_hookable",
    "loss_of",
    "per_sample_loss",
    "plain_tensor",
    "with_loss",
]
