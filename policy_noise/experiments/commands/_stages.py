"""Options and steps that commands share."""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..data import fingerprint, require_classes
from ..evaluation import predictions
from ..recipes import RECIPES, TrainRecipe, as_published
from ..run_page import write_report
from ..runs import only_one, write_atomic, write_json
from ..shifts import ShiftedSplit, medmnistc_shifts
from ..sources import describe, open_joined
from ..world import World, started_first

__all__ = [
    "add_recipe",
    "add_shifts",
    "check_scorable",
    "locked",
    "numbered",
    "open_for_training",
    "record_of",
    "require_different",
    "score_line",
    "try_medmnistc",
    "weights_of",
    "write_scores",
]


def add_recipe(parser: argparse.ArgumentParser, stage: str = "pretrain") -> None:
    """Add the options for the training settings and the run's folder."""
    settings = dataclasses.asdict(RECIPES["small"][stage])
    listed = ", ".join(f"{name}={json.dumps(value)}" for name, value in settings.items())
    parser.add_argument(
        "--recipe", choices=sorted(RECIPES), default="small", help="named training settings (default: small)"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help=f"change settings of the recipe, for example epochs=3. All, with the small recipe's values: {listed}",
    )
    parser.add_argument("--output", type=Path, required=True, help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="continue the run in that folder")


def add_shifts(parser: Any) -> None:
    """Add the option for shifts of the test images by another package."""
    parser.add_argument(
        "--shifts",
        choices=("medmnistc",),
        help="of a MedMNIST set: also score the test images under MedMNIST-C's corruptions, with the package medmnistc",
    )


def try_medmnistc(data: Any) -> None:
    """Try every corruption of MedMNIST-C on one image, before anything is trained.

    Raises:
        ModuleNotFoundError: If the package is missing.
        ValueError: If the data are not a set of MedMNIST, or a corruption fails.
    """
    for name in medmnistc_shifts(data.name):
        try:
            ShiftedSplit(data.test, name, 1).read([0])
        except Exception as error:  # whatever the package and the versions under it make of it
            raise ValueError(
                f"--shifts medmnistc: {name} fails with {error!r}; motion_blur of medmnistc 0.1.0 needs numpy<2.3"
            ) from error


def weights_of(path: Path) -> Path:
    """The model file that a path names: a folder is a run's, and its model is meant."""
    return path / "model.safetensors" if path.is_dir() else path


def check_scorable(data: Any) -> None:
    """Check, before anything is trained, that the data can be scored."""
    if data.num_classes < 2:
        raise ValueError(f"{data.name} has one class, {data.class_names[0]!r}: at least two are needed")
    require_classes(data)


def record_of(data: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Describe the data for a run's record, so that a resumed run notices other images, labels or classes.

    Only the process that writes the record reads all images to hash them.
    """
    found = describe(data, arguments) | {"class_names": list(data.class_names)}
    return found | ({"fingerprint": fingerprint(data)} if started_first() else {})


def require_different(name: str, given: Sequence[Any]) -> None:
    """Refuse duplicates, which would count as independent repeats."""
    if len(set(given)) < len(given):
        raise ValueError(f"{name} must differ from one another, got {given}")


def numbered(names: Sequence[str]) -> bool:
    """Whether classes have no names, only numbers, which mean the same only within one data set."""
    return list(names) == [f"class {label}" for label in range(len(names))]


def open_for_training(arguments: argparse.Namespace, recipe: TrainRecipe, *, fixed: bool) -> tuple[Any, TrainRecipe]:
    """Open the data set to train on, and adapt the recipe to its number of channels.

    Args:
        arguments: The parsed command line.
        recipe: The recipe.
        fixed: Whether an existing model determines the number of channels. Three-channel images are averaged into one
            channel if it takes one.

    Returns:
        The data set and the recipe.

    Raises:
        ValueError: If the command line sets fewer channels than the images have.
    """
    names = [text.partition("=")[0].strip() for text in arguments.set]
    if recipe.pretrained and not fixed:
        recipe = as_published(recipe, names)
    own = fixed or recipe.pretrained or "in_chans" in names
    data = open_joined(arguments, recipe.load_size, recipe.in_chans if own else None)
    if not own and data.in_chans > recipe.in_chans:
        recipe = dataclasses.replace(recipe, in_chans=data.in_chans)
    if not data.on_disk and data.in_chans > recipe.in_chans:
        if not fixed:
            raise ValueError(f"{data.name} has {data.in_chans}-channel images: pass --set in_chans={data.in_chans}")
        if started_first():
            print(f"{data.name}: {data.in_chans} channels are averaged into one for a grayscale model", file=sys.stderr)
    return data, recipe


@contextlib.contextmanager
def locked(folder: Path, here: World) -> Iterator[None]:
    """Hold a run's folder in the process that writes; see :func:`~policy_noise.experiments.runs.only_one`."""
    with contextlib.ExitStack() as stack:
        here.agree(lambda: stack.enter_context(only_one(folder)) if here.main else None)
        yield


def write_scores(
    folder: Path, stem: str, data: Any, positions: Any, probabilities: Any, result: dict[str, Any]
) -> None:
    """Write the scores on a test split, the predictions, and in a run's folder its page."""
    write_json(folder / f"{stem}.json", result)
    table = predictions("test", data.test, positions, probabilities, data.class_names)
    name = f"predictions{stem.removeprefix('scores')}.csv"
    write_atomic(folder / name, lambda path: table.to_csv(path, index=False))
    if (folder / "recipe.json").is_file():
        write_report(folder)


def score_line(result: dict[str, Any]) -> str:
    """The test scores in one line of text."""
    values = ", ".join(f"{name} {value:.4f}" for name, value in result["scores"].items())
    skipped = f" ({result['files_skipped']} unreadable images left out)" if result["files_skipped"] else ""
    own = result.get("medmnistc", {})
    shifted = f"; MedMNIST-C: BE {own['be']:.4f}, rBE {own['rbe']:.4f}" if own else ""
    return f"test split of {result['data']}, {result['images']} images{skipped}: {values}{shifted}"
