"""Scores of a trained classifier on a test split."""

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from .data import fingerprint
from .metrics import bootstrap_metrics, classification_metrics, confusion, group_metrics, per_class_metrics
from .shifts import MEDMNISTC_SEVERITIES, medmnistc_errors, medmnistc_shifts

__all__ = ["medmnist_scores", "medmnistc_scores", "predictions", "score"]


def medmnist_scores(targets: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """AUC (one-vs-rest) and ACC (accuracy) as MedMNIST's own Evaluator computes them.

    Args:
        targets: (N,) integers, or (N, K) of 0 and 1.
        probabilities: (N, K).
    """
    from sklearn.metrics import roc_auc_score

    classes = range(probabilities.shape[1])
    if targets.ndim == 2:
        areas = [roc_auc_score(targets[:, k], probabilities[:, k]) for k in classes]
        right = (probabilities > 0.5) == targets
    elif len(classes) == 2:
        areas = [roc_auc_score(targets, probabilities[:, 1])]
        right = (probabilities[:, 1] > 0.5) == targets
    else:
        areas = [roc_auc_score(targets == k, probabilities[:, k]) for k in classes]
        right = probabilities.argmax(1) == targets
    return {"medmnist_auc": float(np.mean(areas)), "medmnist_acc": float(right.mean())}


def medmnistc_scores(
    data: Any, clean: float, score: Callable[[str, int], Mapping[str, float]]
) -> dict[str, float | dict[str, float]]:
    """Scores of a MedMNIST test split under MedMNIST-C's corruptions.

    Args:
        data: The set.
        clean: Balanced accuracy on the test images as they are.
        score: From a corruption of :func:`~policy_noise.experiments.shifts.medmnistc_shifts` and a severity to
            ``balanced_accuracy``, ``f1`` and ``roc_auc``.

    Returns:
        ``be`` and ``rbe``, see :func:`~policy_noise.experiments.shifts.medmnistc_errors`, the mean ``f1`` and
        ``roc_auc``, and ``errors``, 1 minus the balanced accuracy, by corruption.
    """
    found = {
        name.partition("/")[2]: [score(name, severity) for severity in MEDMNISTC_SEVERITIES]
        for name in medmnistc_shifts(data.name)
    }
    errors = {name: 1 - fmean(one["balanced_accuracy"] for one in several) for name, several in found.items()}
    means = {name: fmean(one[name] for several in found.values() for one in several) for name in ("f1", "roc_auc")}
    return {**medmnistc_errors(data.name, 1 - clean, errors), **means, "errors": errors}


def score(data: Any, positions: np.ndarray, probabilities: np.ndarray, *, model: str) -> dict[str, Any]:
    """Compute everything that is reported about a test split, ready for JSON.

    Args:
        data: The data set.
        positions: Positions of the test images that could be read, (N,).
        probabilities: Their predicted probabilities, (N, K).
        model: The model's file, for the record.

    Returns:
        ``scores`` (macro metrics and MedMNIST's), ``intervals`` over test images, ``per_class``, ``groups``
        and, for one label per image, ``confusion``. ``fingerprint`` identifies the data, and
        ``files_skipped`` is the number of unreadable images.
    """
    targets = data.test.labels[positions]
    per_class = per_class_metrics(targets, probabilities, data.class_names)
    result = {
        "data": data.name,
        "fingerprint": fingerprint(data),
        "model": model,
        "images": len(targets),
        "files_skipped": len(data.test) - len(targets),
        **({"images_excluded": data.excluded} if data.excluded else {}),
        "scores": classification_metrics(targets, probabilities) | medmnist_scores(targets, probabilities),
        "per_class": per_class,
        "groups": {name: group_metrics(per_class, kinds) for name, kinds in data.groups.items()},
    }
    if targets.ndim == 1:
        result["intervals"] = bootstrap_metrics(targets, probabilities)
        result["confusion"] = confusion(targets, probabilities).tolist()
    return result


def predictions(key: str, split: Any, positions: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]) -> Any:
    """The predictions of a test set as a pandas table, a row for each image.

    Args:
        key: The set's name.
        split: Its images.
        positions: Of the images that could be read, (N,).
        probabilities: (N, K).
        classes: Their names, (K,).

    Returns:
        The columns ``set``, ``image`` (the position in the set), ``patient`` if the set names patients, and a
        probability for each class. With one label per image also ``label`` and ``predicted``; with several, ``true``
        and the class's name for each label.
    """
    import pandas as pd

    labels = split.labels[positions]
    table = pd.DataFrame({"set": key, "image": positions})
    if split.groups is not None:
        table["patient"] = split.groups[positions]
    if labels.ndim == 1:
        table["label"] = np.asarray(classes)[labels]
        table["predicted"] = np.asarray(classes)[probabilities.argmax(1)]
    for place, name in enumerate(classes):
        if labels.ndim == 2:
            table[f"true {name}"] = labels[:, place]
        table[name] = probabilities[:, place]
    return table
