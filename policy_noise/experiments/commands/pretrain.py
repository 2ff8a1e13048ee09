"""Train a classifier from scratch: without masks, with random masks, or with learned masks."""

import argparse

from ..recipes import NOISES, RECIPES, override
from ..sources import add_source_arguments
from ._stages import add_recipe, train_stage

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_source_arguments(parser)
    add_recipe(parser)
    parser.add_argument(
        "--noise",
        choices=NOISES,
        default="learned",
        help="plain: no masks; random: random masks; learned: learned masks (default: learned)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    recipe = override(RECIPES[arguments.recipe]["pretrain"], [f"noise={arguments.noise}", *arguments.set])
    train_stage("pretrain", arguments, recipe, None)
