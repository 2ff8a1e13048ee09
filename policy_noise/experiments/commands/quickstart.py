"""A first comparison, on CT patches that come with the package: a few minutes on two CPU cores.

Organs of one CT patient are trained on. Another CT patient is a site that is only tested on. The
arms are plain training, each image normalized, random masks, and both, with five seeds. It is ``compare`` with these
options, and writes the same page. Add learned masks with ``--methods plain normalize random learned``.
"""

import argparse
from pathlib import Path

from ..processes import usable_cores
from . import compare

__all__ = ["DATA", "add_arguments", "run"]

DATA = Path(__file__).resolve().parents[1] / "embedded" / "organpatches.npz"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"), help="folder for the page")
    parser.add_argument(
        "--methods", nargs="+", default=["normalize", "random", "normalize+random"], metavar="NAME", help="see compare"
    )
    parser.add_argument("--seeds", type=int, default=5, help="repeats, with seeds 0, 1, ... (default: 5)")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each training (default: 5)")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="trainings at a time (default: one a core)")
    parser.add_argument("--resume", action="store_true", help="continue the comparison in that folder")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser()
    compare.add_arguments(parser)
    words = ["--npz", str(DATA), "--site", f"patient2={DATA}:ct2", "--set", f"epochs={arguments.epochs}"]
    words += ["--methods", *arguments.methods, "--seeds", str(arguments.seeds), "--jobs", str(arguments.jobs)]
    words += ["--no-estimate", "--output", str(arguments.output), *(["--resume"] if arguments.resume else [])]
    compare.run(parser.parse_args(words))
