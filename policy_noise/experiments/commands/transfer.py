"""Few-shot transfer from pretrained weights."""

import argparse
import dataclasses
from pathlib import Path

from ..few_shot import compare
from ..initialisation import Initialisation, parse_initialisation
from ..recipes import RECIPES, TransferRecipe, override
from ..run_page import transfer_table, write_report
from ..runs import Run, digest
from ..sources import add_source_arguments, open_sources
from ..world import world
from ._stages import add_recipe, check_scorable, locked, record_of, require_different

__all__ = ["transfer"]


def transfer(parser: argparse.ArgumentParser) -> None:
    """Compare pretrained weights by training on a few images of other data sets."""
    parser.add_argument(
        "--init",
        nargs="+",
        required=True,
        metavar="LABEL=RUN",
        help="the weights to start from: runs; 'scratch'; 'imagenet' (downloads timm's weights); imagenet=FILE (reads "
        "them from a safetensors file). Repeat a label for another seed of the same method",
    )
    parser.add_argument("--model", help="timm model for 'scratch' and 'imagenet' (default: the first run's)")
    add_source_arguments(parser)
    add_recipe(parser, "transfer")
    parser.set_defaults(work=_transfer)


def _transfer(arguments: argparse.Namespace) -> None:
    recipe: TransferRecipe = override(RECIPES[arguments.recipe]["transfer"], arguments.set)
    ordered = sorted(arguments.init, key=lambda text: "=" not in text)  # runs first: they name the model
    inits: list[Initialisation] = []
    for text in ordered:
        inits.append(parse_initialisation(text, arguments.model, inits[0] if inits else None))
    sets = open_sources(arguments, recipe.image_size, inits[0].in_chans)
    for init in inits:
        if init.normalization not in (None, (recipe.mean, recipe.std)):
            mean, std = init.normalization
            raise ValueError(f"{init.source} was trained with another normalization: pass --set mean={mean} std={std}")
        init.create(sets[0].num_classes, 0)
    hashes = [digest(init.source) if Path(init.source).is_file() else init.source for init in inits]
    require_different("--init", [(init.label, init.source) for init in inits])
    require_different("--init: the weights of one label", [(i.label, h) for i, h in zip(inits, hashes, strict=True)])
    require_different("sets", [data.name for data in sets])
    for data in sets:
        check_scorable(data)
        if max(recipe.shots) > len(data.train):
            raise ValueError(
                f"shots {max(recipe.shots)} is more than the {len(data.train)} training images of {data.name}"
            )
    with world() as here:
        record = {
            "name": ", ".join(data.name for data in sets),
            "sets": [record_of(data, arguments) for data in sets],
            "init": [dataclasses.asdict(i) | {"sha256": h} for i, h in zip(inits, hashes, strict=True)],
        }
        options = {"resume": arguments.resume, "writes": here.main}
        with locked(arguments.output, here):
            folder = here.agree(lambda: Run(arguments.output, "transfer", recipe, record, **options))
            lines = compare(folder, recipe, sets, inits, here)
            if here.main:
                for metric in ("f1", "roc_auc"):
                    print(f"\n{metric}, mean [95 % t-interval]\n\n{transfer_table(lines, metric)}")
                write_report(folder.folder)
