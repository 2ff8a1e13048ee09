"""Fine-tune a trained model on unmasked images. The classes may be other ones."""

import argparse
import dataclasses
from pathlib import Path

from policy_noise.heated import read_heated_metadata

from ..recipes import RECIPES, override
from ..sources import add_source_arguments
from ._stages import add_recipe, train_stage, weights_of

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "--init",
        type=Path,
        required=True,
        help="a run's folder, or a model file that a run wrote. Model, image size, normalization and augmentation are "
        "kept; the last layer is kept if the classes are the same",
    )
    add_source_arguments(parser)
    add_recipe(parser, "finetune")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
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
    train_stage("finetune", arguments, recipe, init)
