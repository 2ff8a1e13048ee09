"""Scores of a finished classifier on a test split."""

from typing import Any

import numpy as np

from .metrics import classification_metrics, confusion, group_metrics, per_class_metrics

__all__ = ["medmnist_scores", "score"]


def medmnist_scores(targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """AUC and ACC as MedMNIST's own Evaluator computes them.

    Args:
        targets: (N,) integers, or (N, K) of 0 and 1.
        probabilities: (N, K).
    """
    from medmnist.evaluator import getACC, getAUC

    if targets.ndim == 2:
        task = "multi-label, binary-class"
    else:
        task = "binary-class" if probabilities.shape[1] == 2 else "multi-class"
    labels = targets if targets.ndim == 2 else targets[:, None]
    return {
        "medmnist_auc": float(getAUC(labels, probabilities, task)),
        "medmnist_acc": float(getACC(labels, probabilities, task)),
    }


def score(data: Any, targets: np.ndarray, probabilities: np.ndarray) -> dict[str, Any]:
    """All that is reported of a test split, ready for JSON.

    Args:
        data: The set, for names and groups of its classes.
        targets: Of the test split.
        probabilities: Likewise.

    Returns:
        ``scores`` (macro metrics and MedMNIST's), ``per_class``, ``groups`` and, for one label an image,
        ``confusion``.
    """
    per_class = per_class_metrics(targets, probabilities, data.class_names)
    result = {
        "data": data.name,
        "images": len(targets),
        "scores": classification_metrics(targets, probabilities) | medmnist_scores(targets, probabilities),
        "per_class": per_class,
        "groups": {name: group_metrics(per_class, kinds) for name, kinds in data.groups.items()},
    }
    if targets.ndim == 1:
        result["confusion"] = confusion(targets, probabilities).tolist()
    return result
