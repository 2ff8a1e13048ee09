"""Compute one loss per sample from any criterion: the policy's reward signal."""

from ._batch import loss_of, plain_tensor, with_loss
from ._isolation import is_hookable
from ._splitter import CriterionError, LossMethod, LossSplitter, SampleLosses, per_sample_loss

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
