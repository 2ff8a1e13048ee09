"""Scores of a trained model on a test split."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from policy_noise.heated import read_heated_metadata

from ..batches import outputs, predict
from ..comparison.sites import among, site_of
from ..data import SPLITS, ImageSet, fingerprint
from ..evaluation import medmnistc_scores, score
from ..metrics import classification_metrics
from ..recipes import recorded_recipe
from ..runs import read_json, write_json
from ..shifts import ShiftedSplit
from ..sources import add_source_arguments, open_joined
from ..training import create_model
from ..world import started_first, world
from ._stages import add_shifts, check_scorable, numbered, score_line, try_medmnistc, weights_of, write_scores

__all__ = ["evaluate"]


def evaluate(parser: argparse.ArgumentParser) -> None:
    """Score a trained model on a test split: macro metrics, per class, per modality and anatomy.

    --image-folder may also be a plain folder CLASS/IMAGE. Its classes are matched by name, as those of a site of
    compare.
    """
    parser.add_argument("--model", type=Path, required=True, help="a run's folder, or a model file that a run wrote")
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file to write the scores to, and nothing else. By default the run's page and a file next to the "
        "model are written: scores.json for the run's own data, another file for any other data set",
    )
    add_shifts(parser)
    add_source_arguments(parser)
    parser.set_defaults(work=_evaluate)


def _evaluate(arguments: argparse.Namespace) -> None:
    if arguments.output and arguments.output.exists():
        raise FileExistsError(f"{arguments.output} exists: pass another --output, or remove it first")
    path = weights_of(arguments.model)
    metadata = read_heated_metadata(path)
    recipe = recorded_recipe(metadata, path)
    data, classes = _open(arguments, recipe, metadata, path)
    if arguments.shifts:
        try_medmnistc(data)
    model = create_model(recipe, len(metadata["classes"]), init=path)
    with world() as here:
        model.to(here.device)

        def scored(name: str, severity: int) -> dict[str, float]:
            split = ShiftedSplit(data.test, name, severity)
            return classification_metrics(*predict(model, split, recipe, here, multi_label=data.multi_label))

        positions, probabilities = outputs(model, data.test, recipe, here, multi_label=data.multi_label)
        probabilities = probabilities if classes is None else among(probabilities, classes, renormalise=True)
        clean = classification_metrics(data.test.labels[positions], probabilities)["balanced_accuracy"]
        about = {"medmnistc": medmnistc_scores(data, clean, scored)} if arguments.shifts else {}
        if here.main:
            result = score(data, positions, probabilities, model=path.name) | about
            if arguments.output:
                write_json(arguments.output, result)
            else:
                _beside_the_model(path, data, positions, probabilities, result)
            print(score_line(result))


def _open(arguments: argparse.Namespace, recipe: Any, metadata: Any, path: Path) -> tuple[Any, Sequence[int] | None]:
    """The data to score on. Of a folder without splits the classes are matched by name, as those of a site.

    Returns:
        The data, and the model's classes among which is predicted, or None for all.

    Raises:
        ValueError: If the classes are not the model's, or fewer than two of a folder are.
    """
    folder, names = arguments.image_folder, metadata["classes"]
    if folder and folder.is_dir() and not all((folder / split).is_dir() for split in SPLITS):
        if arguments.exclude:
            raise ValueError(
                "--exclude is for data with train, val and test: remove the images from the folder instead"
            )
        trained = argparse.Namespace(name=path.name, class_names=names, in_chans=recipe.in_chans, multi_label=False)
        site = site_of(folder.resolve().name, str(folder), arguments, trained, recipe.load_size)
        if started_first():
            print("\n".join([*site.notes, *site.lines()]), file=sys.stderr)
        shared = tuple(names[place] for place in site.classes)
        return ImageSet(site.name, site.images, site.images, site.images, shared, {}), site.classes
    data = open_joined(arguments, recipe.load_size, recipe.in_chans)
    if list(data.class_names) != names:
        raise ValueError(
            f"{path} was trained on {len(names)} classes that differ from the {data.num_classes} of {data.name}: "
            f"{names[:5]}... against {list(data.class_names)[:5]}..."
        )
    check_scorable(data)
    if numbered(data.class_names) and metadata.get("fingerprint") != fingerprint(data) and started_first():
        print(f"{data.name}: its classes have no names and are matched with the model's by number", file=sys.stderr)
    return data, None


def _beside_the_model(path: Path, data: Any, positions: Any, probabilities: Any, result: dict[str, Any]) -> None:
    """Write one file for each model and data set, and the run's page."""
    record = path.parent / "recipe.json"
    own = read_json(record)["data"].get("fingerprint") if record.is_file() else fingerprint(data)
    stem = "scores" if path.stem == "model" else f"scores-{path.stem}"
    if result["fingerprint"] != own:
        stem += f"-{re.sub(r'[^A-Za-z0-9._+-]+', '-', data.name)}-{result['fingerprint'][:8]}"
    try:
        write_scores(path.parent, stem, data, positions, probabilities, result)
    except PermissionError as error:
        raise PermissionError(f"{path.parent} cannot be written to ({error}): pass --output FILE.json") from error
