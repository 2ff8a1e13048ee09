"""How much of a policy gradient is signal? Estimators compared by batch size and grid, on a half-trained classifier.

    python benchmarks/gradient_quality.py --output benchmarks/results

Every estimator sees the same images, masks and losses. With g the gradient of one batch, in the policy's parameters,

    SNR = ||E g||^2 / E ||g - E g||^2

over images and masks. From R independent batches of variance S^2 = sum ||g_r - mean g||^2 / (R - 1) the numerator is
estimated without bias by ||mean g||^2 - S^2 / R, which can be negative where nothing but noise was seen. The SNR of a
biased estimator says how firmly it points somewhere; whether that is the right place says its cosine to the reference:
the pathwise gradient of all the *other* samples of the pool, which shares no draw with the batch.

The classifier is in eval mode, as BatchNorm would make each loss depend on the other images' masks.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from study_analysis import save_plot
from study_conditions import LEARNING_RATE
from study_tasks import TASKS, TaskData, build_task
from study_training import PAPER_SIGMA, WEIGHT_DECAY, Batches, Classifier
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

import policy_noise.functional as PF
from policy_noise.experiments.statistics import t_interval
from policy_noise.policy import SpatialPolicy

__all__ = ["ESTIMATORS", "Pool", "draw_pool", "main", "quality"]

MOMENTUM = 0.9
"""Of the moving-average baseline, the learner's own."""
HEAD_STD = 0.1
"""The policy's head starts at zero, where only the head itself has a gradient: it is moved away by this much."""
CHUNK = 256


@dataclass(frozen=True)
class Pool:
    """Independent samples and each one's own gradients, in the policy's D parameters, flat.

    Args:
        loss: Of each masked image, (N,).
        unmasked_loss: Of the same image without a mask, (N,).
        twin_loss: Of the same image with a second mask, (N,).
        score: Gradient of the mask's log-probability, (N, D).
        twin_score: Of the second mask's, (N, D).
        paper: Gradient of the logarithm of the summed densities, (N, D).
        credit: Score of each cell times its own credit, the loss's gradient in that cell times the cell's distance
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
    """Draw two masks for each image and compute the gradients that all estimators are made of.

    Args:
        policy: Couples no samples: gradients are taken one sample at a time.
        loss_of: From action (N, 1, G, G) or None for no mask, images and targets to losses (N,).
        images: One a sample.
        targets: Likewise.
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
    """Each sample's gradients: from (K, N, 2, 1, G, G), in the log-concentrations, to (K, N, D), in the parameters."""
    parameters = {name: value.detach() for name, value in policy.named_parameters()}

    def single(image: Tensor, cotangent: Tensor) -> Tensor:
        def outputs(values: dict[str, Tensor]) -> Tensor:
            return torch.cat(functional_call(policy, values, (image.unsqueeze(0),)))

        _, pull_back = vjp(outputs, parameters)
        (gradients,) = vmap(pull_back)(cotangent)
        return torch.cat([gradient.flatten(1) for gradient in gradients.values()], dim=1)

    return vmap(single, in_dims=(0, 1), out_dims=1)(images, cotangents)


# -- estimators: from a pool and a batch size B to one gradient a batch, (N / B, D) ------------------------------------


def _weighted(weights: Tensor, gradients: Tensor) -> Tensor:
    """Mean over each batch; weights are (batches, B)."""
    return torch.einsum("rb,rbd->rd", weights, gradients.unflatten(0, weights.shape)) / weights.shape[1]


def _advantage(pool: Pool, batch: int, **settings: Any) -> Tensor:
    weights = torch.stack([PF.advantage(losses, **settings) for losses in pool.loss.split(batch)])
    return _weighted(weights, pool.score)


def _moving_average(pool: Pool, batch: int) -> Tensor:
    losses = pool.loss.view(-1, batch)
    average, baselines = losses[-1].mean(), []  # as if a batch had been before the first
    for mean in losses.mean(1):
        baselines.append(average)
        average = torch.lerp(mean, average, MOMENTUM)
    return _weighted(losses - torch.stack(baselines).unsqueeze(1), pool.score)


def _unmasked(pool: Pool, batch: int) -> Tensor:
    return _weighted((pool.loss - pool.unmasked_loss).view(-1, batch), pool.score)


def _two_masks(pool: Pool, batch: int) -> Tensor:
    """Half the images, so that the classifier sees as many masked ones as with the other estimators."""
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
        function: From a pool and a batch size to gradients.
        cost: Beyond training itself, a batch.
        exact: Whether its expectation points where the gradient does. The batch mean shortens it by 1 / B, and the
            normalised one divides each batch's gradient by a number, so both count as exact.
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


def quality(gradients: Tensor, pathwise: Tensor, batch: int) -> dict[str, float | None]:
    """Judge one gradient a batch.

    Args:
        gradients: Of independent batches, (R, D), made of consecutive samples of the pool.
        pathwise: Of each sample of the pool, (R * batch, D).
        batch: Batch size.

    Returns:
        ``snr``; ``cosine``, the mean over batches of the cosine to the reference; ``cosine_of_mean``, the cosine of the
        expected gradient to the reference, from unbiased estimates (None where the signal's is not positive): 1 for an
        unbiased estimator, and can exceed 1 by chance.
    """
    gradients, pathwise = gradients.double(), pathwise.double()
    reference = (pathwise.sum(0) - pathwise.unflatten(0, (-1, batch)).sum(1)) / (len(pathwise) - batch)
    signal, variance = _signal_and_variance(gradients)
    true_signal, _ = _signal_and_variance(pathwise)
    inner = (gradients * reference).sum(1).mean()
    return {
        "snr": float(signal / variance),
        "cosine": float(F.cosine_similarity(gradients, reference).mean()),
        "cosine_of_mean": float(inner / (signal * true_signal).sqrt()) if min(signal, true_signal) > 0 else None,
    }


def _signal_and_variance(gradients: Tensor) -> tuple[Tensor, Tensor]:
    mean = gradients.mean(0)
    variance = (gradients - mean).square().sum() / (len(gradients) - 1)
    return mean.square().sum() - variance / len(gradients), variance


# -- the measurement ---------------------------------------------------------------------------------------------------


def half_trained(data: TaskData, seed: int, epochs: int) -> tuple[Classifier, float]:
    """Train the study's classifier a little, half of its images under frozen Beta(1, 1) masks; its clean accuracy."""
    torch.manual_seed(seed)
    model = Classifier(data.task.model, data.task.size, data.num_classes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    batches = Batches(data, seed, epochs)
    black = torch.tensor(-data.mean / data.std).view(1, 1, 1, 1)
    for step in range(len(batches)):
        images, labels = batches[step]
        action = torch.rand(len(images), 1, 8, 8)
        masked = PF.noise_mask(
            (images - data.mean) / data.std,
            action,
            sigma=PAPER_SIGMA * data.task.size,
            mean_preserving=True,
            black=black,
            applied=torch.rand(len(images)) < 0.5,
        )
        loss = F.cross_entropy(model(masked)[0], labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    model.eval().requires_grad_(False)
    with torch.no_grad():
        predictions = model((data.images.float() / 255 - data.mean) / data.std)[0].argmax(1)
    return model, float((predictions == data.labels).float().mean())


def measure(
    data: TaskData, seeds: int, grids: list[int], batches: list[int], samples: int, epochs: int
) -> dict[str, Any]:
    """All estimators, grids, batch sizes and seeds: ``rows``, and each seed's classifier."""
    black = torch.tensor(-data.mean / data.std).view(1, 1, 1, 1)
    rows, accuracies = [], []
    for seed in range(seeds):
        model, accuracy = half_trained(data, seed, epochs)
        accuracies.append(accuracy)

        def loss_of(action: Tensor | None, images: Tensor, targets: Tensor, model: Classifier = model) -> Tensor:
            if action is not None:
                sigma = PAPER_SIGMA * data.task.size
                images = PF.noise_mask(images, action, sigma=sigma, mean_preserving=True, black=black)
            return F.cross_entropy(model(images)[0], targets, reduction="none")

        for grid in grids:
            torch.manual_seed(1000 * seed + grid)
            policy = SpatialPolicy(1, (grid, grid))
            nn.init.normal_(policy.head.weight, std=HEAD_STD)
            chosen = torch.randint(len(data.images), (samples,))
            images = (data.images[chosen].float() / 255 - data.mean) / data.std
            pool = draw_pool(policy, loss_of, images, data.labels[chosen])
            for batch in batches:
                for name, estimator in ESTIMATORS.items():
                    scores = quality(estimator.function(pool, batch), pool.pathwise, batch)
                    rows.append({"estimator": name, "grid": grid, "batch": batch, "seed": seed, **scores})
            print(f"seed {seed}, grid {grid}: {float(pool.loss.mean()):.3f} nats under masks", flush=True)
    return {"rows": rows, "accuracies": accuracies}


def _interval(rows: list[dict[str, Any]], name: str, grid: int, batch: int, score: str) -> tuple[float, float]:
    values = [r[score] for r in rows if (r["estimator"], r["grid"], r["batch"]) == (name, grid, batch)]
    if None in values:
        return float("nan"), float("nan")
    interval = t_interval(values)
    return interval.mean, interval.high - interval.mean


def _table(rows: list[dict[str, Any]], grids: list[int], batches: list[int]) -> list[str]:
    lines = []
    titles = {
        "snr": "Signal-to-noise ratio of one batch's gradient",
        "cosine": "Cosine of one batch's gradient to the reference",
    }
    for score, title in titles.items():
        columns = [(grid, batch) for grid in grids for batch in batches]
        heads = [f"{grid}x{grid}, batch {batch}" for grid, batch in columns]
        lines += ["", f"## {title}", "", f"| estimator | extra cost | {' | '.join(heads)} |"]
        lines += [f"|---|---{'|---' * len(heads)}|"]
        for name, estimator in ESTIMATORS.items():
            cells = ["{:.3f} ± {:.3f}".format(*_interval(rows, name, *column, score)) for column in columns]
            lines.append(f"| {name} | {estimator.cost} | {' | '.join(cells)} |")
    batch = max(batches)
    heads = [f"{grid}x{grid}" for grid in grids]
    lines += ["", "## Cosine of the expected gradient to the reference, of the two that are biased", ""]
    lines += [f"| estimator | {' | '.join(heads)} |", f"|---{'|---' * len(heads)}|"]
    for name in (name for name, estimator in ESTIMATORS.items() if not estimator.exact):
        cells = ["{:.3f} ± {:.3f}".format(*_interval(rows, name, g, batch, "cosine_of_mean")) for g in grids]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _plot(rows: list[dict[str, Any]], grids: list[int], batches: list[int], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, len(grids), figsize=(4.2 * len(grids), 7.5), sharex=True, sharey="row", squeeze=False
    )
    for column, grid in enumerate(grids):
        for row, score in enumerate(("snr", "cosine")):
            axis = axes[row][column]
            for number, name in enumerate(ESTIMATORS):
                points = [_interval(rows, name, grid, batch, score) for batch in batches]
                axis.errorbar(
                    np.array(batches) * 1.04 ** (number - len(ESTIMATORS) / 2),
                    [mean for mean, _ in points],
                    [half for _, half in points],
                    marker="o",
                    markersize=4,
                    linewidth=1,
                    color=f"C{number}",
                    label=name,
                )
            axis.set_xscale("log", base=2)
            axis.set_xticks(batches, [str(batch) for batch in batches])
            axis.grid(alpha=0.3)
        axes[0][column].set_yscale("symlog", linthresh=1e-2)
        axes[0][column].set_title(f"grid {grid}x{grid}")
        axes[1][column].set_xlabel("batch size")
    axes[0][0].set_ylabel("signal-to-noise ratio of a batch's gradient")
    axes[1][0].set_ylabel("cosine to the reference")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncol=5, fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    save_plot(figure, path)


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=5, help="classifiers, each with a policy and samples of its own")
    parser.add_argument("--samples", type=int, default=1536, help="a pool, a multiple of the batch sizes")
    parser.add_argument("--epochs", type=int, default=4, help="of the classifier's training")
    parser.add_argument("--grids", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128])
    args = parser.parse_args(arguments)
    if any(args.samples % batch or args.samples < 2 * batch or batch % 2 for batch in args.batches):
        parser.error(f"--samples {args.samples} must be at least twice, and a multiple of, each even batch size")
    torch.set_num_threads(1)
    start = time.perf_counter()
    data = build_task(TASKS["organs"], Path(), torch.device("cpu"), ())
    result = measure(data, args.seeds, args.grids, args.batches, args.samples, args.epochs)
    seconds = time.perf_counter() - start
    accuracies = ", ".join(f"{accuracy:.2f}" for accuracy in result["accuracies"])
    lines = [
        "# Quality of policy gradients",
        "",
        f"`python benchmarks/gradient_quality.py --output {args.output}`: {args.seeds} seeds, {args.samples} samples a "
        f"seed and grid, {seconds:.0f} s on one thread ({platform.machine()} CPU, torch {torch.__version__}). "
        f"Classifiers after {args.epochs} epochs, training accuracy {accuracies}. ± is the 95 % t-interval over seeds. "
        "Definitions stand in the script.",
        *_table(result["rows"], args.grids, args.batches),
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "gradient-quality.md").write_text("\n".join(lines) + "\n")
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    record = {**settings, "torch": torch.__version__, "seconds": round(seconds, 1), **result}
    (args.output / "gradient-quality.json").write_text(json.dumps(record) + "\n")
    _plot(result["rows"], args.grids, args.batches, args.output / "gradient-quality.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
