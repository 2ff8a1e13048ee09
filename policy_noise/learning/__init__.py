"""The policy's own training: a window of observed samples, an estimator and an optimizer."""

from .learner import PolicyLearner

__all__ = ["PolicyLearner"]
