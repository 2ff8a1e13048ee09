"""Recipes: the paper's settings, and settings for a small machine."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from .rivals import RIVALS

__all__ = [
    "NOISES",
    "RECIPES",
    "TrainRecipe",
    "TransferRecipe",
    "as_published",
    "departures",
    "name_of",
    "override",
    "recorded_recipe",
]

NOISES = ("plain", "random", "learned")


Count = Annotated[int, "must be at least 1", lambda value: value >= 1]
Natural = Annotated[int, "must not be negative", lambda value: value >= 0]
Positive = Annotated[float, "must be positive", lambda value: value > 0]
NotNegative = Annotated[float, "must not be negative", lambda value: value >= 0]

_WANTED: Mapping[Any, tuple[Any, str]] = {
    int: (int, "a whole number"),
    float: ((int, float), "a finite number"),
    float | None: ((int, float, type(None)), "a finite number"),
    bool: (bool, "true or false"),
    str: (str, "a text"),
    Mapping[str, Any]: (Mapping, 'an object such as {"name": 1}'),
    Sequence[int]: ((list, tuple), "a list of whole numbers"),
}


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a declared type. A truth value is no number here, and a number is finite."""
    if isinstance(value, list | tuple) and not all(type(item) is int for item in value):
        return False
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return isinstance(value, _WANTED[kind][0]) and isinstance(value, bool) == (kind is bool)


def _check(recipe: Any) -> None:
    """Check every value by the type that the recipe declares. Integers count as floats; nan and infinity do not."""
    for name, kind in get_type_hints(type(recipe), include_extras=True).items():
        value = getattr(recipe, name)
        kind, *rule = get_args(kind) if get_origin(kind) is Annotated else (kind,)
        if get_origin(kind) is Literal:
            _one_of(name, value, get_args(kind))
            continue
        if not _fits(value, kind):
            raise ValueError(f"{name} must be {_WANTED[kind][1]}, got {value!r}")
        if rule and not rule[1](value):
            raise ValueError(f"{name} {rule[0]}, got {value!r}")


def _one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {tuple(allowed)}, got {value!r}")


@dataclass(frozen=True)
class TrainRecipe:
    """All settings of a training, so that a run can be repeated from its file.

    Args:
        model: Name of a timm model.
        image_size: Side in pixels that the classifier sees.
        load_size: Side in pixels to which images are resized when they are read.
        batch_size: Images per process and step.
        epochs: Passes over the training split.
        optimizer: ``"sgd"`` (with momentum 0.9) or ``"adamw"``.
        lr: Learning rate, not scaled by the number of processes.
        weight_decay: Weight decay of the optimizer.
        schedule: ``"step"`` (times 0.1 every 30 epochs), ``"onecycle"``, or ``"warmup"`` (linear from 1 % over
            ``warmup_epochs``, then constant).
        warmup_epochs: See ``schedule``.
        augmentation: ``"resized_crop"`` (with flips), ``"shift"`` (by a tenth of the side) or ``"none"``.
        mean: Mean of the normalization, one for all channels.
        std: Standard deviation of the normalization, one for all channels.
        in_chans: Channels that the model takes: 1 or 3.
        noise: ``"plain"`` (no masks), ``"random"`` (masks of a policy that never learns) or ``"learned"``
            (masks of a policy that learns).
        preset: The mask's preset: ``"learned"``, ``"random"`` or ``"paper"``.
        noise_options: More arguments of :func:`policy_noise.attach`.
        policy_lr: Learning rate of the policy, which falls to 0 along a cosine; by default the preset's own rule.
        extra_augmentation: Augmentation before the mask: ``"none"``, one of
            :data:`~policy_noise.experiments.rivals.RIVALS`, or one of your own as ``"package.module:name"``.
        normalize_images: Each image's mean is subtracted and its deviation divided out before the network, in training
            and in testing, after all augmentation.
        clean_epochs: Number of epochs at the end without masks and extra augmentation.
        model_options: Arguments of :func:`timm.create_model`.
        pretrained: Start from timm's published weights. Then ``in_chans`` is 3, and ``mean`` and ``std`` are those of
            the weights, averaged over channels, unless they are given.
        weights: File of these weights, safetensors, where they cannot be downloaded.
        seed: Seed of weights, order, augmentation and masks.
        workers: Processes that read files; sets in memory need none.
        amp: Run the model in bfloat16.
        keep_checkpoints: Number of last epochs whose weights are kept on disk, for averaging.
        checkpoint_steps: Also save the state every this many steps within an epoch; 0 saves only after each epoch.
    """

    model: str
    image_size: Count
    load_size: Count
    batch_size: Count
    epochs: Count
    optimizer: Literal["sgd", "adamw"]
    lr: Positive
    weight_decay: NotNegative
    schedule: Literal["step", "onecycle", "warmup"]
    warmup_epochs: Natural = 0
    augmentation: Literal["resized_crop", "shift", "none"] = "none"
    mean: float = 0.5
    std: Positive = 0.25
    in_chans: int = 1
    noise: Literal["plain", "random", "learned"] = "plain"
    preset: str = "learned"
    noise_options: Mapping[str, Any] = field(default_factory=dict)
    policy_lr: float | None = None
    extra_augmentation: str = "none"
    normalize_images: bool = False
    clean_epochs: Natural = 0
    model_options: Mapping[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    weights: str = ""
    seed: Natural = 0
    workers: Natural = 0
    amp: bool = False
    keep_checkpoints: Count = 3
    checkpoint_steps: Natural = 0

    def __post_init__(self) -> None:
        _check(self)
        if ":" not in self.extra_augmentation:
            _one_of("extra_augmentation", self.extra_augmentation, ("none", *RIVALS))
        _one_of("in_chans", self.in_chans, (1, 3))
        if self.augmentation != "resized_crop" and self.load_size != self.image_size:
            raise ValueError(
                f"load_size must equal image_size with augmentation={self.augmentation!r}, got {self.load_size} and "
                f"{self.image_size}"
            )
        if self.clean_epochs >= self.epochs:
            raise ValueError(f"clean_epochs must be fewer than epochs, got {self.clean_epochs} of {self.epochs}")


@dataclass(frozen=True)
class TransferRecipe:
    """Settings to compare pretrained weights on few images of another set.

    Args:
        mode: ``"linear"`` (logistic regression on pooled features) or ``"full"`` (fine-tuning of all weights).
        shots: Sample sizes, in images over all classes.
        trials: Random draws of each size, the same for all weights.
        image_size: Side in pixels.
        mean: Mean of the normalization.
        std: Standard deviation of the normalization.
        steps: Steps of full fine-tuning, with AdamW and a one-cycle schedule.
        batch_size: Batch size of full fine-tuning.
        lr: Learning rate of full fine-tuning.
        c: Inverse penalty of the linear probe.
        seed: Seed of the draws.
    """

    mode: Literal["linear", "full"]
    image_size: Count
    mean: float = 0.5
    std: Positive = 0.25
    shots: Sequence[int] = (8, 16, 32, 64, 128, 256)
    trials: Count = 10
    steps: Count = 100
    batch_size: Count = 32
    lr: Positive = 1e-3
    c: Positive = 1.0
    seed: Natural = 0

    def __post_init__(self) -> None:
        _check(self)
        if not self.shots or min(self.shots) < 1 or len(set(self.shots)) < len(self.shots):
            raise ValueError(f"shots must be positive numbers of images, each once, got {self.shots!r}")


# What the paper's training code says; .3162 and .3213 are RadImageNet's, on all three channels. 8 processes x 32
# images, then 4 x 64. ResNet-10t and -18 are --set model=resnet10t and model=resnet18.
_PAPER = TrainRecipe(
    model="resnet50",
    image_size=224,
    load_size=256,
    batch_size=32,
    epochs=90,
    optimizer="sgd",
    lr=0.1,
    weight_decay=1e-4,
    schedule="step",
    augmentation="resized_crop",
    mean=0.3162,
    std=0.3213,
    in_chans=3,
    preset="paper",
    policy_lr=0.01,
    workers=8,
)
_PAPER_TUNED: dict[str, Any] = {"batch_size": 64, "epochs": 10, "lr": 0.001, "schedule": "warmup", "warmup_epochs": 7}
# A model of 0.4 M parameters on 32-px images: minutes on two cores.
_SMALL = TrainRecipe(
    model="test_resnet",
    image_size=32,
    load_size=32,
    batch_size=32,
    epochs=10,
    optimizer="adamw",
    lr=4e-3,
    weight_decay=0.05,
    schedule="onecycle",
    augmentation="shift",
)

RECIPES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "paper": {
            "pretrain": _PAPER,
            "finetune": dataclasses.replace(_PAPER, **_PAPER_TUNED, preset="learned", policy_lr=None),
            "transfer": TransferRecipe(mode="full", image_size=224, mean=0.3162, std=0.3213),
        },
        "small": {
            "pretrain": _SMALL,
            "finetune": dataclasses.replace(_SMALL, epochs=3, lr=4e-4),
            "transfer": TransferRecipe(mode="linear", image_size=32),
        },
    }
)


def override(recipe: Any, settings: Sequence[str]) -> Any:
    """Change a recipe with ``name=value`` texts, the form of the option ``--set``.

    Args:
        recipe: A recipe.
        settings: Texts. Values are parsed as JSON if possible, otherwise used as strings.

    Raises:
        ValueError: If a name is unknown or its value is invalid.

    Example:
        >>> override(RECIPES["small"]["pretrain"], ["epochs=2", "model=resnet10t"]).epochs
        2
    """
    known = {entry.name: getattr(recipe, entry.name) for entry in dataclasses.fields(recipe)}
    changes: dict[str, Any] = {}
    for setting in settings:
        name, separator, text = setting.partition("=")
        if not separator or name not in known:
            raise ValueError(f"--set takes NAME=VALUE with NAME one of {sorted(known)}, got {setting!r}")
        try:
            changes[name] = json.loads(text)
        except json.JSONDecodeError:
            changes[name] = text
        if isinstance(known[name], float) and type(changes[name]) is int:
            changes[name] = float(changes[name])
    try:
        return dataclasses.replace(recipe, **changes)
    except ValueError as error:
        raise ValueError(f"--set: {error}") from error


def as_published(recipe: TrainRecipe, given: Sequence[str]) -> TrainRecipe:
    """A recipe for timm's published weights: three channels, and their mean and deviation, averaged over channels.

    Args:
        recipe: The recipe, with a model that timm knows.
        given: Names of settings that stay as they are.
    """
    import timm

    found = timm.get_pretrained_cfg(recipe.model)
    if found is None:
        raise ValueError(f"timm has no published weights of {recipe.model!r}: leave out pretrained=true")
    settings: dict[str, Any] = {"in_chans": 3, "mean": fmean(found.mean), "std": fmean(found.std)}
    return dataclasses.replace(recipe, **{name: value for name, value in settings.items() if name not in given})


def recorded_recipe(metadata: Mapping[str, Any], path: Any) -> TrainRecipe:
    """The recipe in the file of a trained model.

    Args:
        metadata: The file's metadata.
        path: The file, for messages.

    Raises:
        ValueError: If there is none, as in a model that was saved by hand, or one of another version.
    """
    if "recipe" not in metadata or "classes" not in metadata:
        raise ValueError(
            f"{path} does not say how it was trained (no recipe and classes): give a model.safetensors that a run wrote"
        )
    try:
        return TrainRecipe(**metadata["recipe"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} carries a recipe that this version does not know: {error}") from error


def departures(recipe: Mapping[str, Any], stage: str) -> dict[str, tuple[Any, Any]] | None:
    """The settings in which a run differs from the paper's recipe, each with its value and the paper's.

    Seeds, workers, the kind of training and settings for files on disk are not compared. A run counts as one of the
    paper's recipe if it has its normalization, schedule and optimizer; for any other run the result is None.
    """
    paper = json.loads(json.dumps(dataclasses.asdict(RECIPES["paper"][stage])))
    free = ("seed", "workers", "noise", "keep_checkpoints", "checkpoint_steps")
    found = {
        name: (recipe.get(name), value)
        for name, value in paper.items()
        if name not in free and recipe.get(name) != value
    }
    marks = ("mode", "mean", "std", "schedule", "optimizer")
    return None if any(name in found for name in marks) else found


def name_of(recipe: Mapping[str, Any], data: Mapping[str, Any] = MappingProxyType({})) -> str:
    """The name of a training: its arm in a comparison, or what changes its images, joined by ``+``; or ``plain``.

    Args:
        recipe: Its settings.
        data: The record of its data, with the name of the arm, if any.
    """
    if "arm" in data:
        return str(data["arm"])
    extra = recipe.get("extra_augmentation", "none")
    parts = ["normalize"] if recipe.get("normalize_images") else []
    parts += [] if extra == "none" else [extra.replace("_", "-")]
    parts += [recipe["noise"]] if recipe.get("noise", "plain") != "plain" else []
    return "+".join(parts) or "plain"
