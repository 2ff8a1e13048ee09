"""Command lines of the stages; the scripts under ``examples/`` call nothing else."""

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from policy_noise.heated import average_checkpoints, read_heated_metadata, save_heated

from .batches import epoch_batches, predict
from .data import ImageSet
from .distributed import world
from .evaluation import score
from .figures import class_histogram, intensity_histogram
from .initialisation import parse_initialisation
from .recipes import NOISES, RECIPES, TrainRecipe, override
from .report import transfer_table, write_report
from .runs import Run, write_json
from .sources import add_source_arguments, describe, open_joined, open_sources
from .training import create_model, train
from .transfer import compare

__all__ = ["average", "evaluate", "finetune", "pretrain", "report", "transfer"]


def _parser(description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(description=description, allow_abbrev=False)


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--recipe", choices=sorted(RECIPES), default="small", help="the declared numbers (default: small)"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="change the recipe, as in epochs=3 seed=1; any unknown name lists them all",
    )
    parser.add_argument("--output", type=Path, required=True, help="the run's folder")
    parser.add_argument("--resume", action="store_true", help="go on with the run in that folder")


def _clearly(stage: Callable[[], None]) -> Callable[[], None]:
    """Bad input ends a script with one line, not with a traceback; all else keeps it."""

    def main() -> None:
        try:
            stage()
        except (ValueError, FileNotFoundError, FileExistsError) as error:
            sys.exit(f"error: {error}")

    main.__name__, main.__doc__ = stage.__name__, stage.__doc__
    return main


def _train_stage(stage: str, arguments: argparse.Namespace, recipe: TrainRecipe, init: Path | None) -> None:
    data = open_joined(arguments, recipe.load_size, recipe.in_chans)
    if isinstance(data, ImageSet) and data.in_chans > recipe.in_chans:
        raise ValueError(f"{data.name} has images of {data.in_chans} channels: pass --set in_chans={data.in_chans}")
    create_model(recipe, data.num_classes, init=init)  # what does not fit is found before anything is written
    with world() as here:
        epoch_batches(len(data.train), recipe, 0, here)
        record = describe(data, arguments) | ({"init": str(init)} if init else {})
        world_size = {"processes": here.size}
        options = {"resume": arguments.resume, "writes": here.main}
        run = here.agree(lambda: Run(arguments.output, stage, recipe, record | world_size, **options))
        if here.main:
            class_histogram(data, run.figures / "classes.png")
            intensity_histogram(data, run.figures / "intensities.png")
        model = train(run, recipe, data, here, init=init)
        targets, probabilities = predict(model, data.test, recipe, here, multi_label=data.multi_label)
        if here.main:
            result = score(data, targets, probabilities)
            write_json(run.folder / "scores.json", result)
            write_report(run.folder)
            print(_line(result))


def _line(result: dict[str, Any]) -> str:
    values = ", ".join(f"{name} {value:.4f}" for name, value in result["scores"].items())
    return f"test split of {result['data']}, {result['images']} images: {values}"


@_clearly
def pretrain() -> None:
    """Train a classifier from scratch: conventionally, under frozen noise or under policy noise."""
    parser = _parser(pretrain.__doc__ or "")
    add_source_arguments(parser)
    _add_recipe(parser)
    parser.add_argument(
        "--noise", choices=NOISES, default="policy", help="what the images are multiplied by (default: policy)"
    )
    arguments = parser.parse_args()
    recipe = override(RECIPES[arguments.recipe]["pretrain"], [f"noise={arguments.noise}", *arguments.set])
    _train_stage("pretrain", arguments, recipe, None)


@_clearly
def finetune() -> None:
    """Fine-tune a heated model on clean images; the number of classes may change."""
    parser = _parser(finetune.__doc__ or "")
    parser.add_argument(
        "--init",
        type=Path,
        required=True,
        help="a run's folder, or a heated model's file; its model, image size, normalisation and augmentation are kept",
    )
    add_source_arguments(parser)
    _add_recipe(parser)
    arguments = parser.parse_args()
    init = arguments.init / "model.safetensors" if arguments.init.is_dir() else arguments.init
    saved = read_heated_metadata(init).get("recipe", {})
    names = ("model", "model_options", "in_chans", "mean", "std", "image_size", "load_size", "augmentation")
    inherited = {name: saved[name] for name in names if name in saved}
    recipe = dataclasses.replace(RECIPES[arguments.recipe]["finetune"], **inherited)
    _train_stage("finetune", arguments, override(recipe, arguments.set), init)


@_clearly
def average() -> None:
    """Average the weights of a run's last epochs into averaged.safetensors."""
    parser = _parser(average.__doc__ or "")
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument("--last", type=int, default=3, help="epochs to average (default: 3)")
    arguments = parser.parse_args()
    paths = sorted((arguments.run / "checkpoints").glob("weights-*.pt"))
    if not paths:
        raise FileNotFoundError(f"{arguments.run} holds no checkpoints/weights-*.pt: --run must be a training's folder")
    if not 1 <= arguments.last <= len(paths):
        raise ValueError(
            f"--last must lie in 1 to {len(paths)}, the weights kept in {arguments.run}, got {arguments.last}"
        )
    chosen = paths[-arguments.last :]
    metadata = read_heated_metadata(arguments.run / "model.safetensors")
    recipe = TrainRecipe(**metadata["recipe"])
    model = create_model(recipe, len(metadata["classes"]))
    model.load_state_dict(average_checkpoints(chosen))
    own = {name: value for name, value in metadata.items() if name in ("stage", "data", "classes", "recipe")}
    path = arguments.run / "averaged.safetensors"
    save_heated(model, path, {**own, "averaged": [file.name for file in chosen]})
    print(f"{path}: the mean of {', '.join(file.name for file in chosen)}")


@_clearly
def evaluate() -> None:
    """Score a heated model on a test split: macro metrics, per class, per modality and anatomy."""
    parser = _parser(evaluate.__doc__ or "")
    parser.add_argument("--model", type=Path, required=True, help="a run's folder, or a heated model's file")
    parser.add_argument("--output", type=Path, help="JSON to write; default scores.json beside the model")
    add_source_arguments(parser)
    arguments = parser.parse_args()
    path = arguments.model / "model.safetensors" if arguments.model.is_dir() else arguments.model
    metadata = read_heated_metadata(path)
    recipe = TrainRecipe(**metadata["recipe"])
    data = open_joined(arguments, recipe.load_size, recipe.in_chans)
    if list(data.class_names) != metadata["classes"]:
        raise ValueError(f"{path} was trained on {len(metadata['classes'])} other classes than {data.name}'s")
    model = create_model(recipe, data.num_classes, init=path)
    with world() as here:
        model.to(here.device)
        targets, probabilities = predict(model, data.test, recipe, here, multi_label=data.multi_label)
        if here.main:
            result = score(data, targets, probabilities)
            stem = "scores" if path.stem == "model" else f"scores-{path.stem}"
            write_json(arguments.output or path.parent / f"{stem}.json", result)
            if (path.parent / "recipe.json").is_file():
                write_report(path.parent)
            print(_line(result))


@_clearly
def transfer() -> None:
    """Compare initialisations on few images of other sets."""
    parser = _parser(transfer.__doc__ or "")
    parser.add_argument(
        "--init",
        nargs="+",
        required=True,
        metavar="LABEL=RUN",
        help="runs; 'random'; 'imagenet' (timm's weights, fetched) or imagenet=FILE (the same, a safetensors file); a "
        "label may come again",
    )
    parser.add_argument("--model", help="timm model for 'random' and 'imagenet' (default: the first run's)")
    add_source_arguments(parser)
    _add_recipe(parser)
    arguments = parser.parse_args()
    recipe = override(RECIPES[arguments.recipe]["transfer"], arguments.set)
    ordered = sorted(arguments.init, key=lambda text: "=" not in text)  # runs first: they name the model
    inits: list[Any] = []
    for text in ordered:
        inits.append(parse_initialisation(text, arguments.model, inits[0] if inits else None))
    sets = open_sources(arguments, recipe.image_size, inits[0].in_chans)
    for init in inits:
        if init.normalization not in (None, (recipe.mean, recipe.std)):
            mean, std = init.normalization
            raise ValueError(f"{init.source} was trained with another normalisation: pass --set mean={mean} std={std}")
        init.create(sets[0].num_classes, 0)
    for name, given in (("--init", [(i.label, i.source) for i in inits]), ("sets", [data.name for data in sets])):
        if len(set(given)) < len(given):
            raise ValueError(f"{name} must differ from one another, got {given}")
    for data in sets:
        if max(recipe.shots) > len(data.train):
            raise ValueError(
                f"shots {max(recipe.shots)} is more than the {len(data.train)} training images of {data.name}"
            )
    with world() as here:
        record = {
            "name": ", ".join(data.name for data in sets),
            "split_seed": arguments.split_seed,
            "init": [dataclasses.asdict(init) for init in inits],
        }
        options = {"resume": arguments.resume, "writes": here.main}
        run = here.agree(lambda: Run(arguments.output, "transfer", recipe, record, **options))
        lines = compare(run, recipe, sets, inits, here)
        if here.main:
            for metric in ("f1", "roc_auc"):
                print(f"\n{metric}, mean [95 % t-interval]\n\n{transfer_table(lines, metric)}")
            write_report(run.folder)


@_clearly
def report() -> None:
    """Write the HTML page of a run's folder anew."""
    parser = _parser(report.__doc__ or "")
    parser.add_argument("run", type=Path, nargs="+", help="folders of runs")
    for folder in parser.parse_args().run:
        print(write_report(folder))
