"""Trainings: from scratch, from a trained model, and the average of a training's last weights."""

import argparse
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from policy_noise.heated import average_checkpoints, read_heated_metadata, save_heated

from ..batches import epoch_batches, outputs
from ..data import fingerprint
from ..evaluation import score
from ..image_check import look_before_training
from ..recipes import NOISES, RECIPES, TrainRecipe, name_of, override, recorded_recipe
from ..runs import Run, digest
from ..sources import add_source_arguments
from ..training import check_mask, create_model, train
from ..world import started_first, world
from ._stages import (
    add_recipe,
    check_scorable,
    locked,
    numbered,
    open_for_training,
    record_of,
    score_line,
    weights_of,
    write_scores,
)

__all__ = ["average", "finetune", "pretrain"]


def pretrain(parser: argparse.ArgumentParser) -> None:
    """Train a classifier from scratch: without masks, with random masks, or with learned masks."""
    add_source_arguments(parser)
    add_recipe(parser)
    parser.add_argument(
        "--noise",
        choices=NOISES,
        default="learned",
        help="plain: no masks; random: random masks; learned: learned masks (default: learned)",
    )
    parser.set_defaults(work=_pretrain)


def _pretrain(arguments: argparse.Namespace) -> None:
    recipe = override(RECIPES[arguments.recipe]["pretrain"], [f"noise={arguments.noise}", *arguments.set])
    _train("pretrain", arguments, recipe, None)


def finetune(parser: argparse.ArgumentParser) -> None:
    """Fine-tune a trained model on unmasked images. The classes may be other ones."""
    parser.add_argument(
        "--init",
        type=Path,
        required=True,
        help="a run's folder, or a model file that a run wrote. Model, image size, normalization and augmentation are "
        "kept; the last layer is kept if the classes are the same",
    )
    add_source_arguments(parser)
    add_recipe(parser, "finetune")
    parser.set_defaults(work=_finetune)


def _finetune(arguments: argparse.Namespace) -> None:
    init = weights_of(arguments.init)
    saved = read_heated_metadata(init).get("recipe", {})
    names = ("model", "model_options", "in_chans", "mean", "std", "image_size", "load_size", "augmentation")
    inherited = {name: saved[name] for name in names if name in saved}
    recipe = dataclasses.replace(RECIPES[arguments.recipe]["finetune"], **inherited)
    recipe = override(recipe, arguments.set)
    if recipe.in_chans != inherited.get("in_chans", recipe.in_chans):
        raise ValueError(
            f"in_chans must be {inherited['in_chans']}, the number of channels of {init}, got {recipe.in_chans}: leave "
            "it out, images are converted"
        )
    _train("finetune", arguments, recipe, init)


def average(parser: argparse.ArgumentParser) -> None:
    """Average the weights of a run's last epochs into averaged.safetensors."""
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--last", type=int, default=3, help="epochs to average (default: 3)")
    parser.set_defaults(work=_average)


def _average(arguments: argparse.Namespace) -> None:
    paths = sorted((arguments.run / "checkpoints").glob("weights-*.pt"))
    if not paths:
        raise FileNotFoundError(f"{arguments.run} holds no checkpoints/weights-*.pt: --run must be a training's folder")
    if not 1 <= arguments.last <= len(paths):
        raise ValueError(
            f"--last must be between 1 and {len(paths)}, the number of weights kept in {arguments.run}, "
            f"got {arguments.last}"
        )
    chosen = paths[-arguments.last :]
    source = arguments.run / "model.safetensors"
    metadata = read_heated_metadata(source)
    model = create_model(recorded_recipe(metadata, source), len(metadata["classes"]))
    model.load_state_dict(average_checkpoints(chosen))
    kept = ("stage", "data", "classes", "fingerprint", "recipe", "ancestry")
    own = {name: metadata[name] for name in kept if name in metadata}
    path = arguments.run / "averaged.safetensors"
    save_heated(model, path, {**own, "averaged": [file.name for file in chosen]})
    print(f"{path}: the mean of {', '.join(file.name for file in chosen)}")


def _train(stage: str, arguments: argparse.Namespace, recipe: TrainRecipe, init: Path | None) -> None:
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
    with world() as here:
        epoch_batches(len(data.train), recipe, 0, here)
        for note in here.agree(lambda: look_before_training(data) if here.main else []):
            print(note, file=sys.stderr)
        record = record_of(data, arguments) | start | {"processes": here.size}
        with locked(arguments.output, here):
            run = here.agree(
                lambda: Run(arguments.output, stage, recipe, record, resume=arguments.resume, writes=here.main)
            )
            ancestry = start["init"]["ancestry"] if start else ()
            model = train(run, recipe, data, here, init=init, fresh_head=fresh, ancestry=ancestry)
            positions, probabilities = outputs(model, data.test, recipe, here, multi_label=data.multi_label)
            if here.main:
                result = score(data, positions, probabilities, model="model.safetensors")
                write_scores(run.folder, "scores", data, positions, probabilities, result)
                print(score_line(result))


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


def _same_classes(metadata: Mapping[str, Any], data: Any) -> bool:
    """Whether a model has the classes of this data set. If they are only numbered, the images decide."""
    names = list(data.class_names)
    if metadata.get("classes") != names or not numbered(names):
        return metadata.get("classes") == names
    return metadata.get("fingerprint") == fingerprint(data)
