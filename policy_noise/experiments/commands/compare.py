"""A comparison of training methods on the user's data, and a first one on data that come with the package."""

import argparse
import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..batches import epoch_batches
from ..comparison.jobs import run_all
from ..comparison.methods import METHODS, REFERENCE, SETTINGS, Method, choose_methods, recipe_for
from ..comparison.overlap import find_overlaps
from ..comparison.page import write_comparison
from ..comparison.plan import Plan, listing
from ..comparison.results import PLAN
from ..comparison.sites import FORMS, open_site
from ..data import ImageSet, require_classes
from ..images import read_header
from ..processes import usable_cores
from ..recipes import RECIPES, TrainRecipe, TransferRecipe, override
from ..rivals import Augmentation
from ..runs import Run, read_json, require_free, write_json
from ..sources import NAMED, add_source_arguments, open_source
from ..statistics import MIN_PAIRS
from ..training import check_mask, create_model
from ..world import World, world
from ._stages import (
    add_recipe,
    add_shifts,
    check_scorable,
    locked,
    open_for_training,
    record_of,
    require_different,
    try_medmnistc,
)

__all__ = ["compare", "quickstart"]

EMBEDDED = Path(__file__).resolve().parents[1] / "embedded" / "organpatches.npz"
DEFAULT = ("plain", "normalize", "random", "color-jitter", "normalize+random")
CLEAN_SHARE = 0.25
"""Share of the epochs, at the end, without masks and intensity changes. The project's own study uses the same."""


def compare(parser: argparse.ArgumentParser) -> None:
    """Does it help on my data? Train by several methods and seeds, and report what differs, with the tests' power.

    All methods of a seed have equal epochs, initial weights, order and geometric augmentation. Each model is scored on
    the test split, on the test images under eight shifts, and on every site, other data that are only tested on.
    Differences are paired by seed. report.html says in plain sentences what was found. --resume continues runs where
    they stopped, and adds methods and seeds.
    """
    group = parser.add_argument_group("comparison")
    group.add_argument(
        "--methods",
        nargs="+",
        default=list(DEFAULT),
        metavar="NAME",
        help=f"any of {', '.join(METHODS)}, or several joined by + (default: {' '.join(DEFAULT)})",
    )
    group.add_argument(
        "--method",
        action="append",
        default=[],
        metavar="NAME=JSON",
        help='a method of your own: a transform, mine={"transform": "package.module:build"}, or any of '
        f"{', '.join(SETTINGS)}, for example "
        'mild={"noise": "random", "preset": "random", "noise_options": {"pattern_std": 0.05}}',
    )
    group.add_argument(
        "--reference", default=REFERENCE, metavar="NAME", help="the method to compare with (default: %(default)s)"
    )
    group.add_argument(
        "--site",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=SOURCE",
        help=f"other data of the same classes, matched by name and only tested on: {FORMS}",
    )
    group.add_argument(
        "--target",
        nargs="+",
        action="extend",
        default=[],
        metavar="SOURCE",
        help=f"sets for few-shot transfer: each {NAMED}",
    )
    add_shifts(group)
    group.add_argument("--seeds", type=int, default=5, help="runs of each method, with seeds 0, 1, ... (default: 5)")
    group.add_argument(
        "--looks",
        type=int,
        default=1,
        help="how often you may look, with more seeds each time; the level is divided by it (default: 1)",
    )
    group.add_argument(
        "--jobs", type=int, default=1, help="runs at the same time, each in its own process (default: 1)"
    )
    group.add_argument("--dry-run", action="store_true", help="print what would run, and stop")
    add_recipe(parser)
    add_source_arguments(parser)
    parser.set_defaults(work=_compare)


def quickstart(parser: argparse.ArgumentParser) -> None:
    """A first comparison, on CT patches that come with the package: a few minutes on two CPU cores.

    Organs of one CT patient are trained on. Another CT patient is a site that is only tested on. The arms are plain
    training, each image normalized, random masks, and both, with five seeds. It is ``compare`` with these options, and
    writes the same page. Add learned masks with ``--methods plain normalize random learned``.
    """
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"), help="folder for the page")
    parser.add_argument(
        "--methods", nargs="+", default=["normalize", "random", "normalize+random"], metavar="NAME", help="see compare"
    )
    parser.add_argument("--seeds", type=int, default=5, help="repeats, with seeds 0, 1, ... (default: 5)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each training (default: 5)")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="trainings at a time (default: one a core)")
    parser.add_argument("--resume", action="store_true", help="continue the comparison in that folder")
    parser.set_defaults(work=_quickstart)


def _quickstart(arguments: argparse.Namespace) -> None:
    parser = argparse.ArgumentParser()
    compare(parser)
    words = ["--npz", str(EMBEDDED), "--site", f"patient2={EMBEDDED}:ct2", "--set", f"epochs={arguments.epochs}"]
    words += ["--methods", *arguments.methods, "--seeds", str(arguments.seeds), "--jobs", str(arguments.jobs)]
    words += ["--output", str(arguments.output), *(["--resume"] if arguments.resume else [])]
    _compare(parser.parse_args(words))


def _compare(arguments: argparse.Namespace) -> None:
    with world() as here:
        _check_numbers(arguments, here)
        if not (arguments.resume or arguments.dry_run):
            here.agree(lambda: require_free(arguments.output))  # before data are read
        before = here.agree(lambda: _planned(arguments))
        plan = here.agree(lambda: _plan(arguments, here, before))
        overlaps = here.agree(
            lambda: find_overlaps(plan.data, plan.sites, plan.targets, plan.recipe.load_size) if here.main else {}
        )
        if here.main:
            lines = listing(plan, overlaps)
            print("\n".join(lines), file=sys.stdout if arguments.dry_run else sys.stderr)
        if arguments.dry_run:
            return
        record = {
            **plan.record,
            "sites": [site.describe(plan.data.class_names) for site in plan.sites],
            "targets": [record_of(target, arguments) for target in plan.targets],
            "transfer": dataclasses.asdict(plan.transfer) if plan.targets else None,
            **({"shifts": arguments.shifts} if arguments.shifts else {}),
        }
        with locked(arguments.output, here):
            here.agree(
                lambda: Run(arguments.output, "compare", plan.recipe, record, resume=arguments.resume, writes=here.main)
            )
            if here.main:
                methods = [dataclasses.asdict(method) for method in plan.methods]
                found = {key: overlap._asdict() for key, overlap in overlaps.items()}
                own = {"methods": methods, "seeds": list(plan.seeds), "overlaps": found}
                own |= {"reference": arguments.reference, "looks": arguments.looks}
                write_json(arguments.output / PLAN, own | {"looked": before.get("looked", [])})
            here.barrier()  # before the folders of runs are looked at
            run_all(plan, here, jobs=arguments.jobs)
            if here.main:
                verdict = write_comparison(arguments.output)
                if len(plan.seeds) >= MIN_PAIRS:
                    looked = sorted({*before.get("looked", []), len(plan.seeds)})
                    write_json(arguments.output / PLAN, own | {"looked": looked})
                print("\n".join(["", *verdict, "", f"{arguments.output / 'report.html'}: the report"]))


def _planned(arguments: argparse.Namespace) -> dict[str, Any]:
    """The plan of the comparison in the folder. What it planned may grow, but not shrink or change.

    Raises:
        ValueError: If the command line asks for less than was planned, for another reference, or for more looks.
    """
    path = arguments.output / PLAN
    if not (arguments.resume and path.is_file()):
        return {}
    plan = read_json(path)
    seeds, looked = len(plan["seeds"]), plan["looked"]
    for name in ("reference", "looks"):
        if getattr(arguments, name) != plan[name]:
            raise ValueError(
                f"--{name} was {plan[name]} when this comparison was planned, got {getattr(arguments, name)}"
            )
    if arguments.seeds < seeds:
        raise ValueError(f"--seeds must be at least the {seeds} that were planned, got {arguments.seeds}")
    if looked and arguments.seeds > seeds and len(looked) >= arguments.looks:
        raise ValueError(
            f"--seeds {arguments.seeds}: the verdict of {looked[-1]} seeds was the last planned look. Adding seeds "
            "until a difference shows finds differences that are not there. Plan another one in another --output, "
            "with more --seeds, or with --looks 2"
        )
    return plan


def _check_numbers(arguments: argparse.Namespace, here: World) -> None:
    for name in ("seeds", "jobs", "looks"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if arguments.jobs > 1 and here.size > 1:
        raise ValueError(f"--jobs must be 1 under torchrun, whose {here.size} processes share each run")


def _recipe(arguments: argparse.Namespace) -> TrainRecipe:
    """The settings that all methods share. By default the last quarter of the epochs is clean."""
    names = [text.partition("=")[0].strip() for text in arguments.set]
    own = [name for name in names if name in SETTINGS and name != "clean_epochs"]
    if own:
        raise ValueError(f"--set {own[0]}: methods may differ in this setting; set it with --method NAME=JSON")
    if "seed" in names:
        raise ValueError("--set seed: the runs use the seeds 0, 1, ...; give their number with --seeds")
    recipe = dataclasses.replace(RECIPES[arguments.recipe]["pretrain"], noise="plain", preset="learned", policy_lr=None)
    recipe = override(recipe, arguments.set)
    if "clean_epochs" not in names:
        recipe = dataclasses.replace(
            recipe, clean_epochs=round(CLEAN_SHARE * recipe.epochs) if recipe.epochs > 1 else 0
        )
    return recipe


def _plan(arguments: argparse.Namespace, here: World, before: Mapping[str, Any]) -> Plan:
    """Open all data and check everything that can be checked before training."""
    methods = choose_methods(arguments.methods, arguments.method, arguments.reference)
    earlier = {method["name"]: Method(**method) for method in before.get("methods", [])}
    for method in methods:
        if method.name in earlier and earlier[method.name] != method:
            raise ValueError(f"--method {method.name} differs from the one that was planned: give it another name")
    methods = list((earlier | {method.name: method for method in methods}).values())
    data, recipe = open_for_training(arguments, _recipe(arguments), fixed=False)
    check_scorable(data)
    if arguments.shifts:
        try_medmnistc(data)
    epoch_batches(len(data.train), recipe, 0, here)
    for method in methods:
        own = recipe_for(method, recipe, 0)
        try:
            _check_augmentation(own, data)
            model = create_model(own, data.num_classes)
            check_mask(model, own, multi_label=data.multi_label)
        except ValueError as error:
            raise ValueError(f"method {method.name}: {error}") from error
    sites = tuple(open_site(text, arguments, data, recipe.load_size) for text in arguments.site)
    require_different("--site: names", [site.name for site in sites])
    alone = argparse.Namespace(**{**vars(arguments), "group": None})  # of targets all images are drawn from
    targets = tuple(open_source(text, alone, recipe.image_size, recipe.in_chans) for text in arguments.target)
    require_different("--target: names", [target.name for target in targets])
    for target in targets:
        require_classes(target)
    notes = [note for site in sites for note in site.notes]
    if notes and here.main:
        print("\n".join(notes), file=sys.stderr)
    return Plan(
        output=arguments.output,
        data=data,
        record={
            **record_of(data, arguments),
            "original_size": _original_size(data),
            "weights": sum(parameter.numel() for parameter in model.parameters()),
        },
        sites=sites,
        targets=targets,
        recipe=recipe,
        transfer=_transfer(arguments, recipe, targets),
        methods=tuple(methods),
        seeds=tuple(range(arguments.seeds)),
        medmnistc=arguments.shifts == "medmnistc",
    )


def _check_augmentation(recipe: TrainRecipe, data: Any) -> None:
    """Try the augmentation on two images, so that a transform of the user's own is found wrong before anything runs."""
    if recipe.extra_augmentation != "none":
        augmentation = Augmentation(recipe.extra_augmentation, data.num_classes, torch.device("cpu"), 0)
        try:
            labels = torch.from_numpy(data.train.labels[:2])
            augmentation(torch.rand(2, recipe.in_chans, recipe.image_size, recipe.image_size), labels)
        except Exception as error:  # whatever a transform of the user's own raises
            raise ValueError(f"{recipe.extra_augmentation} fails on images: {error!r}") from error


def _original_size(data: ImageSet) -> int | None:
    """The larger side in pixels of a training image as it is stored, of the first source."""
    if not data.on_disk:
        return data.stored_side
    with contextlib.suppress(OSError, ValueError):
        return max(read_header(data.train.images.path(0)).size)
    return None


def _transfer(arguments: argparse.Namespace, recipe: TrainRecipe, targets: tuple[Any, ...]) -> TransferRecipe:
    """The recipe's transfer settings, with only the sample sizes that every target is large enough for."""
    transfer: TransferRecipe = RECIPES[arguments.recipe]["transfer"]
    largest = min((len(target.train) for target in targets), default=max(transfer.shots))
    shots = tuple(shots for shots in transfer.shots if shots <= largest)
    if not shots:
        raise ValueError(f"--target: at least {min(transfer.shots)} training images are needed, got {largest}")
    own: dict[str, Any] = {"image_size": recipe.image_size, "mean": recipe.mean, "std": recipe.std}
    return dataclasses.replace(transfer, shots=shots, **own)
