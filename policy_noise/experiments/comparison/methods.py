"""The training methods that can be compared."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..recipes import TrainRecipe

__all__ = ["CONTROLS", "METHODS", "REFERENCE", "Method", "choose_methods", "recipe_for"]

REFERENCE = "conventional"
"""Name of the method that every other one is compared with."""
SETTINGS = ("noise", "preset", "noise_options", "policy_lr", "extra_augmentation", "clean_epochs")
"""The settings of a recipe that a method may change. All others are the same for all methods."""
PAPER_SIDE = 224
"""Image side in pixels for which the paper chose its grid of 64 x 64 cells."""


@dataclass(frozen=True)
class Method:
    """A training method.

    Args:
        name: Its name on the command line.
        label: Its name in tables.
        about: What it does, in words for the report.
        changes: The settings of the recipe that it changes, from :data:`SETTINGS`.
    """

    name: str
    label: str
    about: str
    changes: Mapping[str, Any] = field(default_factory=dict)


_PAPER: dict[str, Any] = {"preset": "paper", "policy_lr": 0.01}
_RANDOM: dict[str, Any] = {"noise": "frozen", "preset": "random", "policy_lr": None}

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(REFERENCE, "conventional", "no masks and no other change of intensities"),
            Method("augment", "random masks", 'smooth random shading of half of the images, preset="random"', _RANDOM),
            Method(
                "policy",
                "learned masks",
                'the same masks drawn by a small policy that learns, preset="learned"',
                {"noise": "policy", "preset": "learned", "policy_lr": None},
            ),
            Method("paper", "the paper's masks", 'learned as published, preset="paper"', {"noise": "policy", **_PAPER}),
            Method(
                "paper-frozen",
                "the paper's masks, unlearned",
                "the same masks of a policy that never learns",
                {"noise": "frozen", **_PAPER},
            ),
            Method(
                "color-jitter",
                "ColorJitter",
                "brightness and contrast (of colours, saturation too) within 0.4 of 1",
                {"extra_augmentation": "color_jitter"},
            ),
            Method(
                "color-jitter-augment",
                "ColorJitter, then random masks",
                "both, in this order",
                {"extra_augmentation": "color_jitter", **_RANDOM},
            ),
            Method(
                "bias-field",
                "random bias field",
                "multiplied by the exponential of a random polynomial, half of the images",
                {"extra_augmentation": "bias_field"},
            ),
            Method(
                "randaugment",
                "RandAugment",
                "torchvision's, 2 operations of magnitude 9",
                {"extra_augmentation": "randaugment"},
            ),
            Method(
                "mixup", "MixUp", "images and labels of two mixed, alpha 0.2 (timm's)", {"extra_augmentation": "mixup"}
            ),
        )
    }
)

CONTROLS = (
    ("policy", "augment"),
    ("paper", "paper-frozen"),
    ("color-jitter-augment", "color-jitter"),
)
"""Pairs that are compared too, if both methods ran: learned and unlearned masks, ColorJitter with and without masks."""


def choose_methods(names: Sequence[str], own: Sequence[str]) -> list[Method]:
    """The methods that a command line names. The reference is always included and comes first.

    Args:
        names: Names from :data:`METHODS`.
        own: The user's own methods as ``NAME=JSON`` with an object of settings, such as
            ``mild={"noise": "frozen", "preset": "random", "noise_options": {"pattern_std": 0.05}}``.

    Raises:
        ValueError: If a name is unknown or repeated, or an own method is malformed.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"--methods must be among {list(METHODS)}, got {unknown}")
    chosen = [METHODS[name] for name in dict.fromkeys([REFERENCE, *names])]
    chosen += [_parse(text) for text in own]
    all_names = [method.name for method in chosen]
    if len(set(all_names)) < len(all_names):
        raise ValueError(f"methods must have different names, got {all_names}")
    if len(chosen) < 2:
        raise ValueError(f"--methods must name at least one method besides {REFERENCE}, from {list(METHODS)[1:]}")
    return chosen


def _parse(text: str) -> Method:
    name, separator, settings = text.partition("=")
    form = '--method must be NAME=JSON, for example mild={"noise": "frozen", "preset": "random"}'
    if not separator or not name or not all(letter.isalnum() or letter in "-_." for letter in name):
        raise ValueError(f"{form}, with letters, digits, ., - and _ in NAME; got {text!r}")
    if name in METHODS:
        raise ValueError(f"--method {name}: a built-in method has this name; choose another one")
    try:
        changes = json.loads(settings)
    except json.JSONDecodeError as error:
        raise ValueError(f"{form}; {settings!r} is not JSON: {error}") from error
    if not isinstance(changes, dict):
        raise ValueError(f"{form}; {settings!r} is not an object")
    unknown = sorted(changes.keys() - set(SETTINGS))
    if unknown:
        raise ValueError(f"--method {name} may only change {list(SETTINGS)}, got {unknown}")
    return Method(name, name, json.dumps(changes), changes)


def recipe_for(method: Method, base: TrainRecipe, seed: int) -> TrainRecipe:
    """The recipe of one run.

    The paper's mask has 64 x 64 cells, 3.5 px wide at 224 px. On smaller images the cells are 4 px wide.

    Args:
        method: The method.
        base: The recipe that all methods share.
        seed: The run's seed.

    Raises:
        ValueError: If a setting has an invalid value.
    """
    changes = dict(method.changes)
    if changes.get("preset") == "paper" and base.image_size < PAPER_SIDE and "noise_options" not in changes:
        cells = max(2, base.image_size // 4)
        changes["noise_options"] = {"grid_size": cells, "kernel_size": None, "sigma": None}
    try:
        return dataclasses.replace(base, **changes, seed=seed)
    except ValueError as error:
        raise ValueError(f"method {method.name}: {error}") from error
