"""From log-probabilities and losses to a policy gradient."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ..utils.misc import check_one_of

__all__ = ["Baseline", "LossMoments", "Reward", "advantage", "average_or", "paper_objective", "reinforce_loss"]

Baseline = Literal["none", "batch", "leave_one_out"]
Reward = Literal["cooperative", "adversarial"]


def advantage(
    loss: Tensor,
    *,
    baseline: Baseline | Tensor | float = "leave_one_out",
    normalize: bool = False,
    valid: Tensor | None = None,
) -> Tensor:
    r"""How much worse than expected each sample's loss was.

    .. math:: A_i = \frac{l_i - b_i}{s}

    The baseline :math:`b_i` is 0 (``"none"``), the batch mean (``"batch"``), the mean of the other samples
    (``"leave_one_out"``, which keeps the score-function estimator unbiased) or a given number (a moving average). The
    scale s is the batch's standard deviation with ``normalize``, else 1.

    Args:
        loss: Loss of each sample; detached here.
        baseline: A name, or the value itself.
        normalize: Divide by the standard deviation of the valid losses, if there are two or more.
        valid: Samples that count. The others get an advantage of exactly 0, whatever their loss (also NaN).

    Shape:
        - loss: (B,).
        - valid: (B,), bool.
        - Output: (B,).

    Example:
        >>> advantage(torch.tensor([1.0, 2.0, 6.0]), baseline="batch")
        tensor([-2., -1.,  3.])
    """
    loss = loss.detach()
    valid = torch.ones_like(loss, dtype=torch.bool) if valid is None else valid
    moments = LossMoments.of(loss, valid)
    return moments.samples * moments.weights(baseline, normalize)  # n (A_i / n)


class _Factors(NamedTuple):
    """What depends only on the number n of losses that count.

    Args:
        inverse: 1 / n, with n at least 1.
        many: 1 if n > 1, else 0.
        inverse_others: 1 / (n - 1), with n at least 2.
        inverse_root: 1 / sqrt(n), or 0 with n = 0 or 1, where there is no standard deviation.
        floor: The smallest standard deviation to divide by: 1 with n = 0 or 1.
    """

    inverse: Tensor
    many: Tensor
    inverse_others: Tensor
    inverse_root: Tensor
    floor: Tensor


@dataclass(frozen=True)
class LossMoments:
    """Statistics of the valid losses of a window, each computed once.

    With several ranks, ``count`` and everything after it except ``centred`` cover all ranks.

    Args:
        valid: Which losses count, (B,) bool.
        kept: The losses, 0 where they do not count, (B,).
        count: Number of losses that count.
        factors: What depends on the count alone.
        mean: Mean of the losses that count.
        average: Moving average of earlier losses, or the mean if there is none yet. A single valid loss is compared
            with it.
        centred: Each loss minus the mean (or minus the average), 0 where it does not count, (B,).
        norm: Square root of the sum of the squared distances from the mean (or from the average).
    """

    valid: Tensor
    kept: Tensor
    count: Tensor
    factors: _Factors
    mean: Tensor
    average: Tensor
    centred: Tensor
    norm: Tensor

    @classmethod
    def of(cls, loss: Tensor, valid: Tensor, average: Tensor | None = None) -> "LossMoments":
        """Statistics of one process's losses (B,); see :func:`average_or` for the average."""
        kept = torch.where(valid, loss, 0)
        count = valid.sum()
        table = _factors_up_to(len(loss), loss.device, loss.dtype)
        factors = _Factors(*table.index_select(0, count.view(1))[0].unbind())
        mean = kept.sum() * factors.inverse
        average = average_or(mean, average)
        centred = kept.addcmul(valid, torch.lerp(average, mean, factors.many), value=-1)
        return cls(valid, kept, count, factors, mean, average, centred, centred.norm())

    @staticmethod
    def sums(loss: Tensor, valid: Tensor, average: Tensor | None = None) -> Tensor:
        """One rank's contribution to :meth:`of_all_ranks`: count, sum and sum of squares, (3,).

        The moving average is subtracted first, to keep precision. It is equal on all ranks.
        """
        shifted = torch.where(valid, loss - average_or(loss.new_zeros(()), average), 0)
        return torch.stack([valid.sum().to(loss.dtype), shifted.sum(), shifted.square().sum()])

    @classmethod
    def of_all_ranks(cls, loss: Tensor, valid: Tensor, sums: Tensor, average: Tensor | None = None) -> "LossMoments":
        """Statistics of this rank's losses (B,) and those of all ranks, whose :meth:`sums` were added up."""
        count, total, squares = sums
        factors = _Factors(*_factors_of(count).unbind())
        distance = total * factors.inverse
        mean = distance + average_or(loss.new_zeros(()), average)
        kept = torch.where(valid, loss, 0)
        average = average_or(mean, average)
        centred = (kept - torch.lerp(average, mean, factors.many)) * valid
        norm = (squares - total * distance).clamp(min=0).sqrt()
        return cls(valid, kept, count, factors, mean, average, centred, norm)

    @property
    def samples(self) -> Tensor:
        """Number of losses that count, at least 1."""
        return self.count.clamp(min=1)

    @property
    def variance(self) -> Tensor:
        """Biased variance of the losses that count."""
        return self.norm.square() / self.samples

    def weights(self, baseline: Baseline | Tensor | float, normalize: bool) -> Tensor:
        """Each sample's weight in the mean of advantage times log-probability, A_i / n, (B,).

        It is a distance, (B,), times a number. The number is computed first, to save operations on (B,).
        """
        scale = self.factors.inverse
        if not isinstance(baseline, str):
            distance = torch.where(self.valid, self.kept - baseline, 0)
        elif baseline not in ("none", "batch", "leave_one_out"):
            raise ValueError(f"baseline must be 'none', 'batch', 'leave_one_out' or a number, got {baseline!r}")
        else:
            distance = self.kept if baseline == "none" else self.centred
            if baseline == "leave_one_out":
                # With the losses' sum S: l_i - (S - l_i) / (n - 1) = (l_i - S / n) n / (n - 1). The n cancels out.
                scale = self.factors.inverse_others
        if normalize:
            scale = scale / torch.maximum(self.norm * self.factors.inverse_root, self.factors.floor)
        return distance * scale

    def shares(self, total: Tensor | float) -> Tensor:
        """A number split equally among the losses that count, (B,); 0 for the others."""
        return self.valid * (self.factors.inverse * total)

    def blend(self, average: Tensor | None, momentum: float) -> Tensor:
        """The moving average after this window. It does not change if no loss counts, and is NaN at first."""
        blended = torch.lerp(self.mean, self.average, momentum)
        previous = torch.full_like(self.mean, torch.nan) if average is None else average
        return torch.where(self.count > 0, blended, previous).detach()


def _factors_of(count: Tensor) -> Tensor:
    """Compute :class:`_Factors` of a number of losses, along a new last axis."""
    many = count > 1
    root = torch.where(many, count.clamp(min=1).rsqrt(), 0.0)
    others = (count.clamp(min=2) - 1).reciprocal()
    floor = torch.where(many, 1e-6, 1.0).to(root)
    return torch.stack([count.clamp(min=1).reciprocal(), many.to(root), others, root, floor], dim=-1)


@lru_cache(maxsize=64)
def _factors_up_to(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """:func:`_factors_of` for 0 to ``size`` losses. Looking a row up takes one operation on the device."""
    with torch.inference_mode(False), torch.no_grad():
        return _factors_of(torch.arange(size + 1, device=device, dtype=torch.float64)).to(dtype)


def average_or(mean: Tensor, average: Tensor | None) -> Tensor:
    """The moving average, or the mean if there is none yet (None, or NaN because no loss has counted so far)."""
    return mean if average is None else torch.where(average.isnan(), mean, average)


def reinforce_loss(
    log_prob: Tensor,
    loss: Tensor,
    *,
    baseline: Baseline | Tensor | float = "leave_one_out",
    normalize: bool = False,
    reward: Reward = "cooperative",
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    valid: Tensor | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
) -> Tensor:
    r"""Score-function surrogate (REINFORCE, Williams 1992) with a per-sample advantage.

    .. math:: L = \frac{1}{n} \sum_i \pm \log p(a_i \mid x_i) \, A_i - c \, H_i

    Its gradient estimates the gradient of the expected loss. Minimizing it lowers the loss that the masks cause
    (``"cooperative"``), or raises it (``"adversarial"``, the minus sign).

    Args:
        log_prob: Log-probability of each sample's whole mask.
        loss: One loss per sample, detached here. With a scalar, no image would be credited for its own mask.
        baseline: See :func:`advantage`.
        normalize: See :func:`advantage`.
        reward: ``"cooperative"`` if a low loss is good, as in the paper, or ``"adversarial"``.
        entropy: Entropy of each sample's distribution, for the bonus.
        entropy_coef: Weight c of the entropy bonus.
        valid: Samples that count; see :func:`advantage`.
        reduction: ``"mean"`` over the valid samples, ``"sum"`` or ``"none"``.

    Shape:
        - log_prob, loss, entropy, valid: (B,).
        - Output: a scalar, or (B,) with ``reduction="none"``.

    Raises:
        ValueError: If shapes or names do not fit.

    Example:
        >>> log_prob = torch.zeros(4, requires_grad=True)
        >>> reinforce_loss(log_prob, torch.tensor([1.0, 2.0, 3.0, 4.0]), baseline="batch").backward()
        >>> log_prob.grad
        tensor([-0.3750, -0.1250,  0.1250,  0.3750])
    """
    if log_prob.ndim != 1 or loss.shape != log_prob.shape:
        raise ValueError(
            "log_prob and loss must both have shape (B,), one number per sample, got "
            f"{tuple(log_prob.shape)} and {tuple(loss.shape)}"
        )
    check_one_of("reward", reward, ("cooperative", "adversarial"))
    check_one_of("reduction", reduction, ("mean", "sum", "none"))
    weight = advantage(loss, baseline=baseline, normalize=normalize, valid=valid)
    surrogate = log_prob * (weight if reward == "cooperative" else -weight)
    if entropy_coef:
        if entropy is None:
            raise ValueError(f"entropy_coef is {entropy_coef} but entropy was not given")
        surrogate = surrogate - entropy_coef * entropy
    if valid is not None:
        surrogate = torch.where(valid, surrogate, 0)
    if reduction == "none":
        return surrogate
    total = surrogate.sum()
    if reduction == "sum":
        return total
    return total / (log_prob.numel() if valid is None else valid.sum().clamp(min=1))


def paper_objective(log_prob: Tensor, loss: Tensor) -> Tensor:
    r"""The published policy loss, as in the authors' training code.

    .. math:: L = \frac{1}{B} \sum_b \log \Big( \sum_j p_j(a_{bj}) \Big) \cdot \overline{l}

    where the last factor is the batch's mean loss. This function is here for comparison. It is not the score-function
    estimator: it takes the logarithm of the sum of the densities, not of their product. So its expected gradient is not
    zero for a constant loss, and every image gets the same credit. One backward pass trains both networks, and scales
    the classifier's gradient by the first factor. It is computed with logsumexp, which does not overflow.

    Args:
        log_prob: Log density of each cell.
        loss: The batch's losses or their mean; not detached.

    Shape:
        - log_prob: (B, G * G).
        - loss: (B,) or a scalar.
        - Output: a scalar.

    Example:
        >>> paper_objective(torch.zeros(8, 4), torch.full((8,), 0.5))  # log(4) * 0.5
        tensor(0.6931)
    """
    if log_prob.ndim != 2:
        raise ValueError(f"log_prob must have shape (B, G * G), one number per cell, got {tuple(log_prob.shape)}")
    return torch.logsumexp(log_prob, dim=1).mean() * loss.mean()
