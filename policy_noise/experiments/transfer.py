"""Few-shot transfer: draws of a few images, embeddings and a linear probe on them."""

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["draw_few_shot", "embed", "linear_probe"]


def draw_few_shot(labels: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Draw images at random, as evenly over the classes as their numbers allow.

    With fewer shots than classes some classes are left out, each as likely as the others.

    Args:
        labels: The split's labels, (N,); or (N, K) for several an image, which are drawn without regard to them.
        shots: Images in all.
        rng: Source of randomness.

    Returns:
        Positions of the drawn images, (shots,).

    Raises:
        ValueError: If the split holds fewer images, or shots is not positive.
    """
    if not 1 <= shots <= len(labels):
        raise ValueError(f"shots must lie in 1 to {len(labels)}, the images of the training split, got {shots}")
    if labels.ndim == 2:
        return rng.permutation(len(labels))[:shots]
    shuffled = rng.permutation(len(labels))
    classes = rng.permutation(np.unique(labels))
    rank = np.empty(len(labels), np.int64)  # how many of its class come before it
    turn = np.empty(len(labels), np.int64)
    for position, label in enumerate(classes):
        members = shuffled[labels[shuffled] == label]
        rank[members] = np.arange(len(members))
        turn[members] = position
    return rng.permutation(np.lexsort((turn, rank))[:shots])


@torch.no_grad()
def embed(model: nn.Module, images: Tensor, batch_size: int = 256) -> np.ndarray:
    """Pooled features of a timm model in eval mode, before its classifier.

    Args:
        model: A timm model.
        images: Normalised images.
        batch_size: Images at a time.

    Shape:
        - images: (N, C, H, W).
        - Output: (N, features), fp32.
    """
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    parts = []
    for batch in images.split(batch_size):
        features = model.forward_features(batch.to(device))  # type: ignore[operator]
        parts.append(model.forward_head(features, pre_logits=True).float().cpu())  # type: ignore[operator]
    model.train(training)
    return torch.cat(parts).numpy()


def linear_probe(
    features: np.ndarray, labels: np.ndarray, test_features: np.ndarray, num_classes: int, *, c: float = 1.0
) -> np.ndarray:
    """Logistic regression on standardised features.

    Args:
        features: Of the few images, (shots, features).
        labels: Theirs, (shots,), or (shots, K) of 0 and 1.
        test_features: Of the images to classify, (N, features).
        num_classes: K, also where some classes have no shot: those get probability 0.
        c: Inverse strength of the L2 penalty.

    Returns:
        Probabilities, (N, K).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fit(target: np.ndarray) -> np.ndarray:
        """Probabilities of the classes that occur, in their order."""
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=2000))
        return probe.fit(features, target).predict_proba(test_features)

    probabilities = np.zeros((len(test_features), num_classes))
    columns = [labels] if labels.ndim == 1 else list(labels.T)
    for column, target in enumerate(columns):
        seen = np.unique(target)
        found = np.ones((len(test_features), 1)) if len(seen) == 1 else fit(target)
        if labels.ndim == 1:
            probabilities[:, seen] = found
        else:
            probabilities[:, column] = found[:, seen == 1].sum(1)
    return probabilities
