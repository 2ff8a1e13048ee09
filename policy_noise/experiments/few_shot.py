"""Few-shot transfer: draw a few images, train a linear probe or fine-tune on them, and compare initialisations."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .data import match_channels, resize, to_tensor
from .initialisation import Initialisation
from .metrics import classification_metrics
from .recipes import TransferRecipe
from .runs import Run
from .statistics import Interval, t_interval
from .world import World

__all__ = [
    "compare",
    "draw_few_shot",
    "embed",
    "fine_tune",
    "linear_probe",
    "summarise",
]


BATCH = 256
"""Images at a time, where nothing is trained."""


def draw_few_shot(labels: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
    """Draw images at random, as evenly over the classes as their numbers allow.

    With fewer shots than classes a random subset of the classes is drawn.

    Args:
        labels: The split's labels, (N,), or (N, K) for several per image. The latter are not balanced.
        shots: Number of images over all classes.
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
def embed(model: nn.Module, images: Tensor) -> np.ndarray:
    """Pooled features of a timm model in eval mode, before its classifier.

    Args:
        model: A timm model.
        images: Normalised images.

    Shape:
        - images: (N, C, H, W).
        - Output: (N, features), fp32.
    """
    training = model.training
    model.eval()
    features = model.forward_features(images)  # type: ignore[operator]
    pooled = model.forward_head(features, pre_logits=True)  # type: ignore[operator]
    model.train(training)
    return pooled.float().cpu().numpy()


def linear_probe(
    features: np.ndarray, labels: np.ndarray, test_features: np.ndarray, num_classes: int, *, c: float = 1.0
) -> np.ndarray:
    """Logistic regression on standardised features.

    Args:
        features: Features of the training images, (shots, features).
        labels: Their labels, (shots,), or (shots, K) of 0 and 1.
        test_features: Features of the images to classify, (N, features).
        num_classes: K, including classes without a training image, which get probability 0.
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


def fine_tune(model: nn.Module, images: Tensor, labels: Tensor, recipe: TransferRecipe, seed: int) -> None:
    """Train all weights on a few clean images, a fixed number of steps.

    Args:
        model: Classifier with a fresh head.
        images: Normalised images, on the model's device.
        labels: (N,) or (N, K).
        recipe: Steps, batch size and learning rate.
        seed: Of the order.
    """
    optimizer = torch.optim.AdamW(model.parameters(), recipe.lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=max(2, recipe.steps))
    criterion: nn.Module = nn.BCEWithLogitsLoss() if labels.ndim == 2 else nn.CrossEntropyLoss()
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    model.train()
    for _ in range(recipe.steps):
        if len(order) < recipe.batch_size:
            order = torch.cat([order, torch.randperm(len(images), generator=generator)])
        chosen, order = order[: recipe.batch_size], order[recipe.batch_size :]
        target = labels[chosen]
        if len(chosen) < 2:
            chosen, target = chosen.repeat(2), target.repeat(2)  # BatchNorm needs two
        loss = criterion(model(images[chosen]), target.float() if labels.ndim == 2 else target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def compare(
    run: Run, recipe: TransferRecipe, sets: Sequence[Any], inits: Sequence[Initialisation], world: World
) -> list[dict[str, Any]]:
    """Run few-shot trials of every initialisation on every data set, one line each in the run's log.

    The draws are the same for all initialisations. Trials that are in the log are not repeated. Several processes
    share the trials, and the log is the same as that of one process. Images stay uint8 on the host until their batch
    is needed. Of the training split only the drawn images are read.

    Args:
        run: The run's folder.
        recipe: The settings.
        sets: Target sets.
        inits: Initialisations; several with one label are several pretraining seeds.
        world: The processes.

    Returns:
        All lines.
    """
    from tqdm import tqdm

    run.rewind()
    world.barrier()
    done = {_key(line) for line in run.history()}
    world.barrier()  # all must have read the log before anyone writes to it
    total = len(sets) * len(inits) * len(recipe.shots) * recipe.trials
    bar = tqdm(total=total, unit="trial", initial=len(done), mininterval=world.pace, disable=not world.shows)
    for data in sets:
        lines = [
            (init, {"data": data.name, "init": init.label, "source": init.source, "shots": shots, "trial": trial})
            for init in inits
            for shots in recipe.shots
            for trial in range(recipe.trials)
        ]
        todo = [(init, line) for init, line in lines if _key(line) not in done]
        if not todo:
            continue
        target = _Target(data, recipe, world.device)
        for start in range(0, len(todo), world.size):
            line = None
            if start + world.rank < len(todo):
                init, line = todo[start + world.rank]
                line |= _trial(target, init, recipe, line["shots"], line["trial"])
            for finished in world.gather(line):
                if finished is not None:
                    run.log(finished)
                    bar.set_postfix_str(f"{data.name}, {finished['init']}, {finished['shots']} images", refresh=False)
                    bar.update()
    bar.close()
    return run.history()


class _Target:
    """A target data set: the drawn training images and the whole test split, uint8 on the host."""

    def __init__(self, data: Any, recipe: TransferRecipe, device: torch.device) -> None:
        self.classes, self.multi_label, self.device, self.recipe = data.num_classes, data.multi_label, device, recipe
        readable = np.arange(len(data.train))
        while True:  # draw again without unreadable images, in the same way for all trials
            labels = data.train.labels[readable]
            self.draws = {
                (shots, trial): readable[
                    draw_few_shot(labels, shots, np.random.default_rng([recipe.seed, trial, shots]))
                ]
                for shots in recipe.shots
                for trial in range(recipe.trials)
            }
            positions = np.unique(np.concatenate(list(self.draws.values())))
            images, kept = data.train.read(positions)
            if len(kept) == len(positions):
                break
            readable = np.setdiff1d(readable, np.setdiff1d(positions, kept))
        self.train, self.train_labels = resize(images, recipe.image_size), data.train.labels[positions]
        self.draws = {key: np.searchsorted(positions, drawn) for key, drawn in self.draws.items()}
        images, kept = data.test.read(np.arange(len(data.test)))
        self.test, self.test_labels = resize(images, recipe.image_size), data.test.labels[kept]
        self.skipped = len(data.test) - len(kept)
        self.features: tuple[str, np.ndarray, np.ndarray] | None = None

    def batches(self, images: np.ndarray, in_chans: int) -> Iterator[Tensor]:
        """Normalised batches on the device, one at a time."""
        for start in range(0, len(images), BATCH):
            batch = to_tensor(images[start : start + BATCH], self.recipe.mean, self.recipe.std)
            yield match_channels(batch.to(self.device), in_chans)


def _trial(target: _Target, init: Initialisation, recipe: TransferRecipe, shots: int, trial: int) -> dict[str, float]:
    """Test scores after training on one draw. The target caches the last initialisation's features for the probe."""
    chosen = target.draws[shots, trial]
    labels = target.train_labels[chosen]
    if recipe.mode == "linear":
        if target.features is None or target.features[0] != init.source:
            model = init.create(target.classes, recipe.seed).to(target.device)
            train, test = (
                np.concatenate([embed(model, batch) for batch in target.batches(images, init.in_chans)])
                for images in (target.train, target.test)
            )
            target.features = (init.source, train, test)
        _, train, test = target.features
        probabilities = linear_probe(train[chosen], labels, test, target.classes, c=recipe.c)
    else:
        model = init.create(target.classes, trial).to(target.device)
        images = torch.cat(list(target.batches(target.train[chosen], init.in_chans)))
        fine_tune(model, images, torch.from_numpy(labels).to(target.device), recipe, trial)
        probabilities = _probabilities(model, target.batches(target.test, init.in_chans), target.multi_label)
        if not np.isfinite(probabilities).all():
            raise ValueError(
                f"fine-tuning diverged: from {init.label} on {shots} images, trial {trial}, the outputs are not "
                f"finite (lr {recipe.lr:g}); try a lower lr in another --output"
            )
    skipped = {"files_skipped": target.skipped} if target.skipped else {}
    return classification_metrics(target.test_labels, probabilities) | skipped


def _key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("data", "init", "source", "shots", "trial"))


@torch.no_grad()
def _probabilities(model: nn.Module, batches: Iterable[Tensor], multi_label: bool) -> np.ndarray:
    model.eval()
    logits = torch.cat([model(batch).float().cpu() for batch in batches])
    return (logits.sigmoid() if multi_label else logits.softmax(1)).numpy()


def summarise(lines: Sequence[Mapping[str, Any]], metric: str) -> dict[str, dict[str, dict[int, Interval]]]:
    """Means and 95 % t-intervals by set, initialisation and sample size.

    With one pretraining run per label the interval is over trials, as in the paper. With several it is over the runs'
    means, as a claim about pretraining requires. A trial that is in the log twice counts once. Intervals are clipped
    to [0, 1], see :func:`~policy_noise.experiments.statistics.t_interval`.
    """
    import pandas as pd

    frame = pd.DataFrame({_key(line): line for line in lines}.values())
    table: dict[str, dict[str, dict[int, Interval]]] = {}
    # The log's order of sets and initialisations, and ascending sample sizes.
    for (data, init), mine in frame.groupby(["data", "init"], sort=False):
        for shots, of_size in mine.groupby("shots"):
            runs = of_size.groupby("source", sort=False)[metric].agg(lambda values: np.mean(values.to_numpy()))
            repeats = (runs if len(runs) > 1 else of_size[metric]).tolist()
            table.setdefault(data, {}).setdefault(init, {})[shots] = t_interval(repeats, bounds=(0, 1))
    return table
