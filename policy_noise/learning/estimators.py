"""Policy-gradient estimators: what a window's losses make of its log-probabilities.

An estimator names the terms of its surrogate, each an output of the policy's graph with the weight of its gradient.
What :func:`policy_noise.functional.reinforce_loss` differentiates is linear in the log-probabilities, so the weights
are handed to autograd as they are, and the surrogate itself is never computed.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..augmentation import Sample
from ..functional import Baseline, LossMoments, Reward, paper_objective
from ..utils.misc import check_one_of

__all__ = ["EntropyConstraint", "PaperEstimator", "Reinforce", "create_estimator"]

Terms = tuple[list[Tensor], list[Tensor]]


def create_estimator(
    name: str,
    reward: Reward | Callable[[Tensor], Tensor],
    *,
    baseline: str,
    normalize: bool,
    entropy: bool,
    update_every: int,
) -> "Reinforce | PaperEstimator":
    """Make an estimator from its name and refuse what does not go with it.

    Args:
        name: ``"reinforce"`` or ``"paper"``.
        reward: ``"cooperative"``, ``"adversarial"``, or a function from losses to costs.
        baseline: See :class:`Reinforce`.
        normalize: See :class:`Reinforce`.
        entropy: Whether entropy is rewarded too.
        update_every: Windows from one learned window to the next.

    Raises:
        ValueError: If a name is unknown, or two settings exclude each other.
    """
    check_one_of("estimator", name, ("reinforce", "paper"))
    if not callable(reward):
        check_one_of("reward", reward, ("cooperative", "adversarial"))
    check_one_of("baseline", baseline, ("leave_one_out", "batch", "moving_average", "none"))
    if name == "reinforce":
        return Reinforce("cooperative" if callable(reward) else reward, baseline, normalize)
    if reward != "cooperative" or entropy:
        raise ValueError(
            f"estimator='paper' allows neither another reward nor an entropy bonus, got reward={reward!r}"
            f"{' and an entropy bonus' if entropy else ''}: use estimator='reinforce' or preset='paper'"
        )
    if update_every > 1:
        raise ValueError(
            "estimator='paper' scales the classifier's loss in every step and needs update_every=1, got "
            f"{update_every}: use estimator='reinforce'"
        )
    return PaperEstimator()


class Reinforce:
    r"""The score function :math:`\log p(a) A`, see :func:`policy_noise.functional.reinforce_loss`.

    Args:
        reward: ``"cooperative"`` or ``"adversarial"``.
        baseline: ``"leave_one_out"``, ``"batch"``, ``"moving_average"`` or ``"none"``.
        normalize: Divide advantages by their standard deviation.
    """

    def __init__(self, reward: Reward, baseline: str, normalize: bool) -> None:
        self.sign = 1.0 if reward == "cooperative" else -1.0
        self.baseline = baseline
        self.normalize = normalize

    def terms(
        self, samples: Sequence[Sample], moments: LossMoments, seen: int | Tensor, entropy_coef: Tensor | float
    ) -> Terms:
        """Outputs to differentiate and the weight of each, over all samples of the window.

        Args:
            samples: The window's draws, batch by batch.
            moments: Of their losses, joined; over all ranks where there are several.
            seen: Samples in the window, of all ranks.
            entropy_coef: Weight of the entropy bonus; a plain 0 for none.
        """
        baseline: Baseline | Tensor = moments.average if self.baseline == "moving_average" else self.baseline  # type: ignore[assignment]
        weight = moments.weights(baseline, self.normalize)
        sizes = [len(sample.applied) for sample in samples]
        weights = (weight if self.sign > 0 else -weight).split(sizes)
        bonus: Sequence[Tensor | None] = [None] * len(samples)
        if isinstance(entropy_coef, Tensor) or entropy_coef:
            bonus = moments.shares(entropy_coef).split(sizes)
        outputs: list[Tensor] = []
        gradients: list[Tensor] = []
        for sample, weight, share in zip(samples, weights, bonus, strict=True):
            name = type(sample).__name__
            if sample.log_prob is None:
                raise TypeError(f"{name} has no log_prob to learn from: pass frozen=True")
            outputs.append(sample.log_prob)
            gradients.append(weight)
            if share is None:
                continue
            if sample.entropy is None:
                raise TypeError(
                    f"entropy_coef and entropy_target need an entropy, which {name} does not have: return "
                    "Sample(..., entropy=...) of shape (B,)"
                )
            outputs.append(sample.entropy)
            gradients.append(-share)
        return outputs, gradients

    def loss_scale(self, sample: Sample) -> None:
        """What the classifier's loss is multiplied by; None leaves it alone."""


class PaperEstimator:
    """The published surrogate, :func:`policy_noise.functional.paper_objective` of each batch.

    Its methods are those of :class:`Reinforce`.
    """

    def terms(
        self, samples: Sequence[Sample], moments: LossMoments, seen: int | Tensor, entropy_coef: Tensor | float
    ) -> Terms:
        sizes = [len(sample.applied) for sample in samples]
        outputs = [
            paper_objective(_cells(sample), losses)
            for sample, losses in zip(samples, moments.kept.split(sizes), strict=True)
        ]
        # Each batch's objective is a mean over its images.
        return outputs, [torch.full_like(output, size) / seen for output, size in zip(outputs, sizes, strict=True)]

    def loss_scale(self, sample: Sample) -> Tensor:
        return paper_objective(_cells(sample).detach(), sample.applied.new_ones((), dtype=torch.float32))


def _cells(sample: Sample) -> Tensor:
    cell_log_prob = getattr(sample, "cell_log_prob", None)
    if cell_log_prob is None:
        raise TypeError(
            f"estimator='paper' needs the log density of each cell, which {type(sample).__name__} does not have: use "
            "estimator='reinforce'"
        )
    return cell_log_prob()


START = 0.1
"""Coefficient at the start."""
BOUNDS = (0.01, 20.0)
"""Range of the coefficient."""
RATE = 0.5
"""Eta, the exponent's share per nat."""


class EntropyConstraint:
    r"""An entropy bonus whose weight follows a target, as in InstaAug (Miao et al., ICML 2023).

    .. math:: c \leftarrow c \, \exp(\eta (h - \overline{H})), \qquad 0.01 \le c \le 20, \quad \eta = 0.5

    with the target h and the window's mean entropy H, both in nats per action. The policy can then distribute its noise
    between cells and images, and neither drop it nor collapse. The coefficient is a tensor, equal on all ranks, and
    changes without waiting for the device.

    Args:
        target: In nats per action. For Beta distributions 0 is uniform, the largest; Beta(1.5, 1.5) has about -0.05.
        start: The coefficient at the start; 0 stands for 0.1.

    Raises:
        ValueError: If the target is no finite number, or positive.
    """

    def __init__(self, target: float, start: float = 0.0) -> None:
        if not math.isfinite(target):
            raise ValueError(f"entropy_target must be a finite number of nats per action, got {target!r}")
        self.target = target
        self.coefficient = torch.tensor(start or START, dtype=torch.float32)

    def update(self, entropy: Tensor) -> None:
        """Follow a window's mean entropy.

        Args:
            entropy: Mean over the window's samples, in nats per action, a scalar; NaN changes nothing.
        """
        step = torch.rsub(entropy, RATE * self.target, alpha=RATE).nan_to_num_(0.0).exp_()
        self.coefficient = step.mul_(self.coefficient).clamp_(*BOUNDS)
