"""Estimators of the policy gradient: from a pool and a batch size B to one gradient per batch, (N / B, D)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

import policy_noise.functional as PF

MOMENTUM = 0.9
"""Decay of the moving-average baseline, as in the learner."""
CHUNK = 256


@dataclass(frozen=True)
class Pool:
    """Independent samples with their per-sample gradients in the policy's D parameters, flattened.

    Args:
        loss: Loss of each masked image, (N,).
        unmasked_loss: Loss of the same image without a mask, (N,).
        twin_loss: Loss of the same image with a second mask, (N,).
        score: Gradient of the mask's log-probability, (N, D).
        twin_score: Gradient of the second mask's log-probability, (N, D).
        paper: Gradient of the logarithm of the summed densities, (N, D).
        credit: The score of each cell times its credit: the loss's gradient in that cell times the cell's distance
            from its mean, (N, D).
        pathwise: Gradient of the loss through the implicitly reparameterised draw, (N, D).
    """

    loss: Tensor
    unmasked_loss: Tensor
    twin_loss: Tensor
    score: Tensor
    twin_score: Tensor
    paper: Tensor
    credit: Tensor
    pathwise: Tensor


def draw_pool(
    policy: nn.Module, loss_of: Callable[[Tensor | None, Tensor, Tensor], Tensor], images: Tensor, targets: Tensor
) -> Pool:
    """Draw two masks for each image and compute the gradients that the estimators need.

    Args:
        policy: The policy. It must treat samples independently, because gradients are computed per sample.
        loss_of: Function from the action, (N, 1, G, G) or None for no mask, images and targets to losses, (N,).
        images: One image per sample.
        targets: One target per sample.
    """
    parts: list[tuple[Tensor, ...]] = []
    for some, target in zip(images.split(CHUNK), targets.split(CHUNK), strict=True):
        with torch.no_grad():
            logarithms = torch.stack(policy(some))
            unmasked = loss_of(None, some, target)
        logarithms.requires_grad_()
        first, second = logarithms.exp()
        distribution = torch.distributions.Beta(first, second)
        action = distribution.rsample()
        loss = loss_of(action, some, target)
        pathwise, slope = torch.autograd.grad(loss.sum(), (logarithms, action), retain_graph=True)
        action = action.detach().clamp(PF.ACTION_EPS, 1 - PF.ACTION_EPS)
        twin = PF.sample_beta(first, second)
        with torch.no_grad():
            twin_loss = loss_of(twin, some, target)
        cells = PF.beta_log_prob(action, first, second)
        credit = slope * (action - distribution.mean.detach())
        cotangents = [
            torch.autograd.grad(value.sum(), logarithms, retain_graph=True)[0]
            for value in (
                cells,
                PF.beta_log_prob(twin, first, second),
                torch.logsumexp(cells.flatten(1), dim=1),
                credit * cells,
            )
        ]
        gradients = _through_policy(policy, some, torch.stack([*cotangents, pathwise]).transpose(1, 2))
        parts.append((loss.detach(), unmasked, twin_loss, *gradients))
    return Pool(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _through_policy(policy: nn.Module, images: Tensor, cotangents: Tensor) -> Tensor:
    """Per-sample gradients in the parameters, (K, N, D), from those in the log-concentrations, (K, N, 2, 1, G, G)."""
    parameters = {name: value.detach() for name, value in policy.named_parameters()}

    def single(image: Tensor, cotangent: Tensor) -> Tensor:
        def outputs(values: dict[str, Tensor]) -> Tensor:
            return torch.cat(functional_call(policy, values, (image.unsqueeze(0),)))

        _, pull_back = vjp(outputs, parameters)
        (gradients,) = vmap(pull_back)(cotangent)
        return torch.cat([gradient.flatten(1) for gradient in gradients.values()], dim=1)

    return vmap(single, in_dims=(0, 1), out_dims=1)(images, cotangents)


def _weighted(weights: Tensor, gradients: Tensor) -> Tensor:
    """Weighted mean over each batch, with weights (batches, B)."""
    return torch.einsum("rb,rbd->rd", weights, gradients.unflatten(0, weights.shape)) / weights.shape[1]


def _advantage(pool: Pool, batch: int, **settings: Any) -> Tensor:
    weights = torch.stack([PF.advantage(losses, **settings) for losses in pool.loss.split(batch)])
    return _weighted(weights, pool.score)


def _moving_average(pool: Pool, batch: int) -> Tensor:
    losses = pool.loss.view(-1, batch)
    average, baselines = losses[-1].mean(), []  # initialised from the last batch, as in a running training
    for mean in losses.mean(1):
        baselines.append(average)
        average = torch.lerp(mean, average, MOMENTUM)
    return _weighted(losses - torch.stack(baselines).unsqueeze(1), pool.score)


def _unmasked(pool: Pool, batch: int) -> Tensor:
    return _weighted((pool.loss - pool.unmasked_loss).view(-1, batch), pool.score)


def _two_masks(pool: Pool, batch: int) -> Tensor:
    """Two masks per image on half of the images, so that the number of masked images is that of other estimators."""
    difference = (pool.loss - pool.twin_loss).view(-1, batch)[:, : batch // 2]
    first, second = (s.unflatten(0, (-1, batch))[:, : batch // 2].flatten(0, 1) for s in (pool.score, pool.twin_score))
    return (_weighted(difference, first) - _weighted(difference, second)) / 2


def _paper(pool: Pool, batch: int) -> Tensor:
    losses = pool.loss.view(-1, batch)
    return _weighted(losses.mean(1, keepdim=True).expand_as(losses), pool.paper)


def _mean(gradients: Tensor, batch: int) -> Tensor:
    return gradients.unflatten(0, (-1, batch)).mean(1)


@dataclass(frozen=True)
class Estimator:
    """An estimator of the gradient of the expected loss.

    Args:
        function: Function from a pool and a batch size to gradients.
        cost: Cost per batch beyond that of training.
        exact: Whether its expectation has the gradient's direction. The batch-mean baseline shrinks it by 1 / B, and
            the normalised one divides each batch's gradient by a number, so both count as exact.
    """

    function: Callable[[Pool, int], Tensor]
    cost: str = "none"
    exact: bool = True


ESTIMATORS = {
    "no baseline": Estimator(lambda pool, batch: _advantage(pool, batch, baseline="none")),
    "moving average": Estimator(_moving_average),
    "batch mean": Estimator(lambda pool, batch: _advantage(pool, batch, baseline="batch")),
    "leave one out": Estimator(lambda pool, batch: _advantage(pool, batch)),
    "leave one out, normalised": Estimator(lambda pool, batch: _advantage(pool, batch, normalize=True)),
    "same image unmasked": Estimator(_unmasked, "one forward"),
    "two masks an image": Estimator(_two_masks),
    "paper": Estimator(_paper, exact=False),
    "per-cell credit": Estimator(lambda pool, batch: _mean(pool.credit, batch), "gradient in the image", exact=False),
    "pathwise": Estimator(lambda pool, batch: _mean(pool.pathwise, batch), "gradient in the image"),
}
