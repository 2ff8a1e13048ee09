"""The arms of a comparison: training methods, each by one name on the command line, in logs and on the page."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..recipes import TrainRecipe
from ..rivals import RIVALS

__all__ = ["METHODS", "REFERENCE", "Method", "choose_methods", "controls", "recipe_for", "unlearned"]

REFERENCE = "plain"
"""The arm that every other one is compared with by default."""
SETTINGS = (
    "noise", "preset", "noise_options", "policy_lr", "extra_augmentation", "normalize_images", "clean_epochs"
)  # fmt: skip
"""The settings of a recipe that an arm may change. All others are the same for all arms."""
TWINS = {"learned": "learned-random", "paper": "paper-random"}
"""Learned arms, each with the one that draws the very same masks and learns nothing."""
PAPER_SIDE = 224
"""Image side in pixels for which the paper chose its grid of 64 x 64 cells."""


@dataclass(frozen=True)
class Method:
    """An arm.

    Args:
        name: Its name.
        about: What it does to training images, in words for the page.
        changes: The settings of the recipe that it changes, from :data:`SETTINGS`.
    """

    name: str
    about: str
    changes: Mapping[str, Any] = field(default_factory=dict)


_PAPER: dict[str, Any] = {"preset": "paper", "policy_lr": 0.01}
_OURS: dict[str, Any] = {"policy_lr": None}

METHODS: Mapping[str, Method] = MappingProxyType(
    {
        method.name: method
        for method in (
            Method(REFERENCE, "no masks and no other change of intensities"),
            Method(
                "normalize",
                "each image's mean subtracted and its deviation divided out, before the network, in testing too",
                {"normalize_images": True},
            ),
            Method(
                "random",
                'smooth random shading of half of the images, preset="random"',
                {"noise": "random", "preset": "random", **_OURS},
            ),
            Method(
                "learned",
                'masks drawn by a small policy that learns, preset="learned"',
                {"noise": "learned", "preset": "learned", **_OURS},
            ),
            Method(
                "learned-random",
                "the masks of learned, drawn by a policy that never learns",
                {"noise": "random", "preset": "learned", **_OURS},
            ),
            Method("paper", 'masks learned as published, preset="paper"', {"noise": "learned", **_PAPER}),
            Method("paper-random", "the paper's masks of a policy that never learns", {"noise": "random", **_PAPER}),
            *(
                Method(name.replace("_", "-"), rival.about, {"extra_augmentation": name})
                for name, rival in RIVALS.items()
            ),
        )
    }
)


def choose_methods(names: Sequence[str], own: Sequence[str], reference: str = REFERENCE) -> list[Method]:
    """The arms that a command line names. The reference is always included and comes first.

    Args:
        names: Names from :data:`METHODS`, or several joined by ``+``, such as ``normalize+random``.
        own: The user's own arms as ``NAME=JSON``, an object of settings, such as
            ``mild={"noise": "random", "preset": "random", "noise_options": {"pattern_std": 0.05}}``, or of a transform,
            ``mine={"transform": "package.module:build"}``.
        reference: The arm that the others are compared with.

    Raises:
        ValueError: If a name is unknown or repeated, parts of a combination change the same setting, or an own arm is
            malformed.
    """
    known = {**METHODS, **{method.name: method for method in map(_parse, own)}}
    if len(known) < len(METHODS) + len(own):
        raise ValueError(f"--method: names must differ from one another, got {[text.split('=')[0] for text in own]}")
    wanted = dict.fromkeys([reference, *names, *list(known)[len(METHODS) :]])
    chosen = [_combine(name, known) for name in wanted]
    if len(chosen) < 2:
        raise ValueError(f"--methods must name at least one besides {reference}, from {list(known)}")
    return chosen


def _combine(name: str, known: Mapping[str, Method]) -> Method:
    """An arm, or several that are active together."""
    parts = name.split("+")
    unknown = [part for part in parts if part not in known]
    if unknown:
        raise ValueError(f"--methods must be among {list(known)}, or some of them joined by '+', got {unknown[0]!r}")
    if len(parts) == 1:
        return known[name]
    changes: dict[str, Any] = {}
    for part in parts:
        twice = [key for key in known[part].changes if key in changes]
        if twice or not known[part].changes or parts.count(part) > 1:
            raise ValueError(
                f"--methods {name}: {part} cannot be joined with the others; only one of its parts may "
                "be a mask, one an augmentation, and one normalize"
            )
        changes |= known[part].changes
    return Method(name, "together: " + "; ".join(known[part].about for part in parts), changes)


def unlearned(name: str) -> str:
    """The arm that differs from a learned one in nothing but learning; for any other arm its own name."""
    return "+".join(TWINS.get(part, part) for part in name.split("+"))


def controls(names: Sequence[str], reference: str = REFERENCE) -> list[tuple[str, str]]:
    """The pairs of arms that are compared: each with the reference, then those that isolate a part.

    Learned masks are compared with random ones and with the same masks unlearned, a combination with what is left
    without one of its parts, and masks with normalization alone, which is what most people try first.
    """
    pairs = [(name, reference) for name in names if name != reference]
    for name in names:
        parts = name.split("+")
        pairs += [(name, "+".join("random" if part == "learned" else part for part in parts)), (name, unlearned(name))]
        if len(parts) > 1:
            pairs += [(name, "+".join(parts[:place] + parts[place + 1 :])) for place in range(len(parts))]
        elif name in ("random", "learned"):
            pairs += [(name, "normalize")]
    return [pair for pair in dict.fromkeys(pairs) if pair[0] != pair[1] and pair[1] in names]


def _parse(text: str) -> Method:
    name, separator, settings = text.partition("=")
    form = '--method must be NAME=JSON, for example mine={"transform": "package.module:build"}'
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
    about = json.dumps(changes)
    if "transform" in changes:
        changes = {"extra_augmentation": changes.pop("transform"), **changes}
        if ":" not in str(changes["extra_augmentation"]):
            raise ValueError(f'--method {name}: transform must be "package.module:name", got {about}')
    unknown = sorted(changes.keys() - set(SETTINGS))
    if unknown:
        raise ValueError(f"--method {name} may only change {['transform', *SETTINGS]}, got {unknown}")
    return Method(name, about, changes)


def recipe_for(method: Method, base: TrainRecipe, seed: int) -> TrainRecipe:
    """The recipe of one run, from the one that all arms share.

    The paper's mask has 64 x 64 cells, 3.5 px wide at 224 px. On smaller images the cells are 4 px wide.

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
