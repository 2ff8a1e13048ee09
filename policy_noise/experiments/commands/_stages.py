"""Options and steps that the training commands share."""

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from policy_noise.heated import read_heated_metadata

from ..batches import epoch_batches, outputs
from ..data import fingerprint, require_classes
from ..evaluation import draw_mistakes, predictions, score
from ..figures import class_histogram, intensity_histogram
from ..image_check import look_before_training
from ..recipes import RECIPES, TrainRecipe, as_published, name_of
from ..run_page import write_report
from ..runs import Run, digest, only_one, write_atomic, write_json
from ..shifts import ShiftedSplit, medmnistc_shifts
from ..sources import describe, open_joined
from ..training import check_mask, create_model, train
from ..world import World, started_first, world

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
    "train_stage",
    "try_medmnistc",
    "weights_of",
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


def _ancestor(path: Path, data: Any) -> dict[str, Any]:
    """Describe, for a run's record, the model that the run starts from."""
    metadata = read_heated_metadata(path)
    recipe = metadata.get("recipe", {})
    clean = metadata.get("stage") == "finetune"
    own = {
        "stage": metadata.get("stage", "training"),
        "data": metadata.get("data", "unnamed data"),
        "training": "clean images" if clean else name_of(recipe) if recipe else "unknown training",
        "preset": recipe.get("preset") if recipe.get("noise", "plain") != "plain" else None,
    }
    return {
        "file": str(path),
        "sha256": digest(path),
        "head": "kept" if _same_classes(metadata, data) else "fresh",
        "ancestry": [*metadata.get("ancestry", []), own],
    }


def numbered(names: Sequence[str]) -> bool:
    """Whether classes have no names, only numbers, which mean the same only within one data set."""
    return list(names) == [f"class {label}" for label in range(len(names))]


def _same_classes(metadata: Mapping[str, Any], data: Any) -> bool:
    """Whether a model has the classes of this data set. If they are only numbered, the images decide."""
    names = list(data.class_names)
    if metadata.get("classes") != names or not numbered(names):
        return metadata.get("classes") == names
    return metadata.get("fingerprint") == fingerprint(data)


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


def train_stage(stage: str, arguments: argparse.Namespace, recipe: TrainRecipe, init: Path | None) -> None:
    """Train, score and report. All input is checked before anything is written."""
    data, recipe = open_for_training(arguments, recipe, fixed=init is not None)
    check_scorable(data)
    start: dict[str, Any] = {} if init is None else {"init": _ancestor(init, data)}
    fresh = bool(start) and start["init"]["head"] == "fresh"
    if start and started_first():
        print(f"the last layer of {init} is {'new' if fresh else 'kept'}", file=sys.stderr)
    check_mask(
        create_model(recipe, data.num_classes, init=init, fresh_head=fresh), recipe, multi_label=data.multi_label
    )
    with world() as here, contextlib.ExitStack() as stack:
        epoch_batches(len(data.train), recipe, 0, here)
        for note in here.agree(lambda: look_before_training(data) if here.main else []):
            print(note, file=sys.stderr)
        record = record_of(data, arguments) | start | {"processes": here.size}
        options = {"resume": arguments.resume, "writes": here.main}
        stack.enter_context(locked(arguments.output, here))
        run = here.agree(lambda: Run(arguments.output, stage, recipe, record, **options))
        if here.main:
            class_histogram(data, run.figures / "classes.png")
            intensity_histogram(data, run.figures / "intensities.png")
        ancestry = start["init"]["ancestry"] if start else ()
        model = train(run, recipe, data, here, init=init, fresh_head=fresh, ancestry=ancestry)
        positions, probabilities = outputs(model, data.test, recipe, here, multi_label=data.multi_label)
        if here.main:
            result = score(data, positions, probabilities, model="model.safetensors")
            write_json(run.folder / "scores.json", result)
            table = predictions("test", data.test, positions, probabilities, data.class_names)
            write_atomic(run.folder / "predictions.csv", lambda path: table.to_csv(path, index=False))
            draw_mistakes(data, positions, probabilities, run.figures / "mistakes-scores.png")
            write_report(run.folder)
            print(score_line(result))


def score_line(result: dict[str, Any]) -> str:
    """The test scores in one line of text."""
    values = ", ".join(f"{name} {value:.4f}" for name, value in result["scores"].items())
    skipped = f" ({result['files_skipped']} unreadable images left out)" if result["files_skipped"] else ""
    own = result.get("medmnistc", {})
    shifted = f"; MedMNIST-C: BE {own['be']:.4f}, rBE {own['rbe']:.4f}" if own else ""
    return f"test split of {result['data']}, {result['images']} images{skipped}: {values}{shifted}"
