"""Few-shot transfer: draws of a few images, a linear probe or fine-tuning on them, and the comparison of both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from policy_noise.heated import load_heated, read_heated_metadata

from .data import match_channels, resize, to_tensor
from .distributed import World
from .metrics import classification_metrics
from .recipes import TransferRecipe
from .runs import Run
from .statistics import Interval, t_interval

__all__ = [
    "Initialisation",
    "compare",
    "draw_few_shot",
    "embed",
    "fine_tune",
    "linear_probe",
    "parse_initialisation",
    "summarise",
]


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


@dataclass(frozen=True)
class Initialisation:
    """Weights that a transfer starts from.

    Args:
        label: What tables and curves call it; the same for several pretraining seeds of one method.
        source: ``"random"``, ``"imagenet"`` (timm's pretrained weights, fetched) or a file.
        model: Name of the timm model.
        in_chans: Channels that the model takes.
        options: Arguments of :func:`timm.create_model`.
        normalization: Mean and std that it was trained with, where that is known.
        heated: Whether a file is a heated model's; else it holds timm's pretrained weights.
    """

    label: str
    source: str
    model: str
    in_chans: int = 1
    options: Mapping[str, Any] = field(default_factory=dict)
    normalization: tuple[float, float] | None = None
    heated: bool = True

    def create(self, num_classes: int, seed: int) -> nn.Module:
        """A model with these weights and a fresh head.

        Raises:
            ValueError: If timm's weights cannot be had, or a file is of another architecture.
        """
        import timm

        torch.manual_seed(seed)
        options: dict[str, Any] = {"in_chans": self.in_chans, **self.options}
        file = None if self.source in ("random", "imagenet") else self.source
        if self.source == "random" or (file and self.heated):
            model = timm.create_model(self.model, num_classes=num_classes, **options)
            if file:
                load_heated(model, file)
            return model
        try:
            # With the published number of classes first: with another, timm takes any file and leaves out what differs.
            overlay = {"file": file} if file else None
            model = timm.create_model(self.model, pretrained=True, pretrained_cfg_overlay=overlay, **options)
        except (OSError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"initialisation {self.label!r}: timm's weights of {self.model} cannot be had from "
                f"{file or 'its download'} ({str(error)[:300]}); give their safetensors file as imagenet=FILE, or "
                "leave this initialisation out"
            ) from error
        model.reset_classifier(num_classes)  # type: ignore[operator]
        return model


def parse_initialisation(text: str, model: str | None, like: Initialisation | None) -> Initialisation:
    """Read ``label=source`` of the command line; a run's folder stands for its ``model.safetensors``.

    Args:
        text: Such as ``"policy=runs/policy"``, ``"random"``, ``"imagenet"`` or ``"imagenet=FILE"``, timm's weights as
            safetensors.
        model: Name of the timm model for the last three; by default that of ``like``.
        like: A run's initialisation, whose model and channels they share.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the text is none of these, or there is no model for it.
    """
    label, separator, source = text.partition("=")
    if not separator:
        source = label
    if source in ("random", "imagenet") or label == "imagenet":
        if model is None and like is None:
            raise ValueError(f"{label!r} needs the name of a timm model: name a run beside it, or pass --model")
        if source not in ("random", "imagenet") and not (Path(source).is_file() and source.endswith(".safetensors")):
            raise FileNotFoundError(f"imagenet={source}: timm's weights must be a safetensors file, and there is none")
        if like is not None and model in (None, like.model):
            return Initialisation(label, source, like.model, like.in_chans, like.options, heated=False)
        return Initialisation(label, source, str(model), 1 if like is None else like.in_chans, heated=False)
    if not separator:
        raise ValueError(f"an initialisation must be LABEL=RUN, 'random' or 'imagenet', got {text!r}")
    path = Path(source)
    path = path / "model.safetensors" if path.is_dir() else path
    metadata = read_heated_metadata(path)
    recipe = metadata.get("recipe", {})
    name = recipe.get("model") or metadata.get("architecture") or model
    if name is None:
        raise ValueError(f"{path} does not say which model it holds: pass --model")
    normalization = (recipe["mean"], recipe["std"]) if "mean" in recipe and "std" in recipe else None
    in_chans = recipe.get("in_chans", 1)
    return Initialisation(label, str(path), name, in_chans, recipe.get("model_options", {}), normalization)


def compare(
    run: Run, recipe: TransferRecipe, sets: Sequence[Any], inits: Sequence[Initialisation], world: World
) -> list[dict[str, Any]]:
    """Few-shot trials of every initialisation on every set, one line each in the run's log.

    The draws are the same for all initialisations. Trials that the log holds already are not repeated. Several
    processes take turns at the trials; the log is the same as one process writes.

    Args:
        run: The run's folder.
        recipe: How.
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
    world.barrier()  # nobody writes on before all have read
    total = len(sets) * len(inits) * len(recipe.shots) * recipe.trials
    bar = tqdm(total=total, unit="trial", initial=len(done), disable=not world.main)
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
        splits = [_tensors(split, recipe, world.device) for split in (data.train, data.test)]
        features: dict[str, list[np.ndarray]] = {}
        for start in range(0, len(todo), world.size):
            line = None
            if start + world.rank < len(todo):
                init, line = todo[start + world.rank]
                line |= _trial(data, splits, init, recipe, line["shots"], line["trial"], features)
            for finished in world.gather(line):
                if finished is not None:
                    run.log(finished)
                    bar.set_postfix_str(f"{data.name}, {finished['init']}, {finished['shots']} images")
                    bar.update()
    bar.close()
    return run.history()


def _trial(
    data: Any,
    splits: Sequence[Tensor],
    init: Initialisation,
    recipe: TransferRecipe,
    shots: int,
    trial: int,
    features: dict[str, list[np.ndarray]],
) -> dict[str, float]:
    """Test scores after learning from one draw; ``features`` keeps those of the last initialisation for the probe."""
    chosen = draw_few_shot(data.train.labels, shots, np.random.default_rng([recipe.seed, trial, shots]))
    labels = data.train.labels[chosen]
    device = splits[0].device
    if recipe.mode == "linear":
        if init.source not in features:
            features.clear()
            model = init.create(data.num_classes, recipe.seed).to(device)
            features[init.source] = [embed(model, match_channels(images, init.in_chans)) for images in splits]
        train, test = features[init.source]
        probabilities = linear_probe(train[chosen], labels, test, data.num_classes, c=recipe.c)
    else:
        model = init.create(data.num_classes, trial).to(device)
        train_images, test_images = (match_channels(images, init.in_chans) for images in splits)
        fine_tune(model, train_images[chosen], torch.from_numpy(labels).to(device), recipe, trial)
        probabilities = _probabilities(model, test_images, data.multi_label)
    return classification_metrics(data.test.labels, probabilities)


def _key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line[name] for name in ("data", "init", "source", "shots", "trial"))


def _tensors(split: Any, recipe: TransferRecipe, device: torch.device) -> Tensor:
    images, kept = split.read(np.arange(len(split)))
    if len(kept) != len(split):
        raise ValueError(f"{len(split) - len(kept)} images cannot be read")
    return to_tensor(resize(images, recipe.image_size), recipe.mean, recipe.std).to(device)


@torch.no_grad()
def _probabilities(model: nn.Module, images: Tensor, multi_label: bool) -> np.ndarray:
    model.eval()
    logits = torch.cat([model(batch).float().cpu() for batch in images.split(256)])
    return (logits.sigmoid() if multi_label else logits.softmax(1)).numpy()


def summarise(lines: Sequence[Mapping[str, Any]], metric: str) -> dict[str, dict[str, dict[int, Interval]]]:
    """Means and 95 % t-intervals by set, initialisation and sample size.

    With one pretraining run a label the interval is over trials, as in the paper; with several it is over the runs'
    means, which is what a claim about pretraining rests on.
    """
    table: dict[str, dict[str, dict[int, Interval]]] = {}
    for data in dict.fromkeys(line["data"] for line in lines):
        for init in dict.fromkeys(line["init"] for line in lines):
            mine = [line for line in lines if line["data"] == data and line["init"] == init]
            for shots in sorted({line["shots"] for line in mine}):
                values: dict[str, list[float]] = {}
                for line in mine:
                    if line["shots"] == shots:
                        values.setdefault(line["source"], []).append(line[metric])
                repeats = (
                    [float(np.mean(v)) for v in values.values()] if len(values) > 1 else next(iter(values.values()))
                )
                table.setdefault(data, {}).setdefault(init, {})[shots] = t_interval(repeats)
    return table
