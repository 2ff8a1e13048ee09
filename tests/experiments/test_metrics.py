"""Classification metrics, against scikit-learn and against numbers worked out by hand."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from policy_noise.experiments.evaluation import medmnist_scores
from policy_noise.experiments.metrics import (
    bootstrap_metrics,
    classification_metrics,
    confusion,
    cross_entropy,
    group_metrics,
    per_class_metrics,
)


def draw(classes, images=200, seed=0, digits=None):
    rng = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(classes), rng.integers(0, classes, images - classes)])
    probabilities = rng.dirichlet(np.ones(classes), images) + 0.3 * np.eye(classes)[targets]
    if digits is not None:
        probabilities = probabilities.round(digits)  # many ties
    return targets, probabilities / probabilities.sum(1, keepdims=True)


@pytest.mark.parametrize("classes", [3, 7, 12])
@pytest.mark.parametrize("digits", [None, 1])
def test_one_vs_one_auc_is_scikit_learns(classes, digits):
    targets, probabilities = draw(classes, digits=digits)
    expected = roc_auc_score(targets, probabilities, multi_class="ovo", average="macro")
    assert classification_metrics(targets, probabilities)["roc_auc"] == pytest.approx(expected, abs=1e-12)


def test_by_hand():
    targets = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]])
    scores = classification_metrics(targets, probabilities)
    assert scores["precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert scores["recall"] == scores["balanced_accuracy"] == scores["top1"] == 0.75
    assert scores["f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert scores["roc_auc"] == 1.0
    assert scores["top5"] == 1.0  # two classes only


def test_top5():
    targets = np.arange(8)
    probabilities = np.full((8, 8), 0.0)
    for row in range(8):
        probabilities[row] = np.roll(np.linspace(0.3, 0.0, 8), row - row % 2 * 6)
    probabilities /= probabilities.sum(1, keepdims=True)
    order = np.argsort(-probabilities, axis=1)[:, :5]
    expected = np.mean([target in row for target, row in zip(targets, order, strict=True)])
    assert 0 < expected < 1
    assert classification_metrics(targets, probabilities)["top5"] == expected


def test_several_labels():
    targets = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    probabilities = np.array([[0.9, 0.4], [0.6, 0.8], [0.7, 0.3], [0.2, 0.1]])
    scores = classification_metrics(targets, probabilities)
    assert scores["top1"] == 6 / 8
    assert scores["roc_auc"] == pytest.approx((1.0 + 0.75) / 2)
    assert scores["balanced_accuracy"] == 0.75
    assert "top5" not in scores


def test_tables():
    targets, probabilities = draw(3)
    table = per_class_metrics(targets, probabilities, ["a", "b", "c"])
    matrix = confusion(targets, probabilities)
    assert [row["support"] for row in table] == matrix.sum(1).tolist()
    assert [row["recall"] for row in table] == pytest.approx((matrix.diagonal() / matrix.sum(1)).tolist())
    assert np.mean([row["f1"] for row in table]) == pytest.approx(classification_metrics(targets, probabilities)["f1"])
    for label, row in enumerate(table):
        others = np.delete(np.delete(matrix, label, 0), label, 1).sum()
        assert row["specificity"] == pytest.approx(others / np.delete(matrix, label, 0).sum())
        assert row["roc_auc"] == pytest.approx(roc_auc_score(targets == label, probabilities[:, label]))
    groups = group_metrics(table, ["CT", "MR", "CT"])
    assert [group["group"] for group in groups] == ["CT", "MR"]
    assert groups[0]["f1"] == pytest.approx((table[0]["f1"] + table[2]["f1"]) / 2)
    assert groups[0]["support"] == table[0]["support"] + table[2]["support"]


@pytest.mark.parametrize(
    ("targets", "probabilities", "message"),
    [
        (np.array([0, 1]), np.full((2,), 0.5), "probabilities must have shape"),
        (np.array([0, 1, 1]), np.full((2, 2), 0.5), r"targets must have shape \(2,\)"),
        (np.array([0.0, 1.0]), np.full((2, 2), 0.5), "targets must be integers"),
        (np.array([0, 2]), np.full((2, 2), 0.5), "targets must lie in 0 to 1, got 0 to 2"),
        (np.array([0, 1]), np.array([[0.5, 0.5], [np.nan, 0.5]]), "must be finite"),
        (np.array([0, 1]), np.array([[0.5, 0.5], [3.0, -2.0]]), "softmax"),
        (np.array([0, 0]), np.full((2, 2), 0.5), r"\[1\] never occur"),
    ],
)
def test_bad_input(targets, probabilities, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(targets, probabilities)


@pytest.mark.parametrize("classes", [2, 5])
def test_medmnists_scores_are_its_own_evaluators(classes):
    evaluator = pytest.importorskip("medmnist.evaluator")
    targets, probabilities = draw(classes)
    task = "binary-class" if classes == 2 else "multi-class"
    found = medmnist_scores(targets, probabilities)
    assert found["medmnist_auc"] == pytest.approx(evaluator.getAUC(targets[:, None], probabilities, task))
    assert found["medmnist_acc"] == pytest.approx(evaluator.getACC(targets[:, None], probabilities, task))


def test_medmnists_scores_of_several_labels():
    evaluator = pytest.importorskip("medmnist.evaluator")
    rng = np.random.default_rng(0)
    targets, probabilities = rng.integers(0, 2, (60, 4)), rng.random((60, 4))
    found = medmnist_scores(targets, probabilities)
    task = "multi-label, binary-class"
    assert found["medmnist_auc"] == pytest.approx(evaluator.getAUC(targets, probabilities, task))
    assert found["medmnist_acc"] == pytest.approx(evaluator.getACC(targets, probabilities, task))


def test_bootstrap_intervals_hold_the_scores_and_agree_with_drawing_images():
    targets, probabilities = draw(4, images=120)
    scores, intervals = classification_metrics(targets, probabilities), bootstrap_metrics(targets, probabilities)
    assert all(low < scores[name] < high for name, (low, high) in intervals.items())
    assert intervals == bootstrap_metrics(targets, probabilities)
    rng = np.random.default_rng(1)
    members = [np.flatnonzero(targets == label) for label in range(4)]
    drawn = []
    for _ in range(300):
        chosen = np.concatenate([rng.choice(own, len(own)) for own in members])
        drawn.append(classification_metrics(targets[chosen], probabilities[chosen])["f1"])
    assert intervals["f1"] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


def test_cross_entropy_is_torchs():
    import torch

    logits, targets = torch.randn(20, 4), torch.randint(4, (20,))
    expected = torch.nn.functional.cross_entropy(logits, targets).item()
    assert cross_entropy(targets.numpy(), logits.softmax(1).numpy()) == pytest.approx(expected, rel=1e-5)
    labels = torch.randint(2, (20, 4))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float()).item()
    assert cross_entropy(labels.numpy(), logits.sigmoid().numpy()) == pytest.approx(expected, rel=1e-5)
