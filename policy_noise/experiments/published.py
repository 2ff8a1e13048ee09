"""The paper's published results, for comparison with a run of its recipe."""

from collections.abc import Mapping

__all__ = ["FEW_SHOT", "METRICS", "SCORES"]

METRICS = ("precision", "recall", "f1", "roc_auc", "balanced_accuracy")

# RadImageNet's test split, ResNet-50, from the authors' project page, in the order of METRICS.
SCORES: Mapping[str, tuple[float, ...]] = {
    "published, conventional training": (0.5929, 0.5014, 0.5226, 0.9884, 0.5014),
    "published, policy noise, then fine-tuned": (0.6034, 0.5211, 0.5468, 0.9900, 0.5211),
}

# Macro F1 at 256 images, read off the authors' plots to about .005: policy noise, and conventional RadImageNet
# pretraining (several curves).
FEW_SHOT: Mapping[str, tuple[str, str]] = {
    "OrganAMNIST": ("0.61", "0.46 to 0.48"),
    "Breast Cancer US": ("0.61", "0.54 to 0.56"),
    "Brain MRI": ("0.21", "0.08 to 0.14"),
    "Brain Tumour MRI": ("0.83", "0.75 to 0.77"),
}
