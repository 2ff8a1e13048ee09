"""Write the HTML report of a run or a comparison again."""

import argparse
from pathlib import Path

from ..comparison.page import write_comparison
from ..comparison.results import PLAN
from ..run_page import write_report

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("run", type=Path, nargs="+", help="folders of runs or of comparisons")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    for folder in arguments.run:
        if (folder / PLAN).is_file():
            write_comparison(folder)
            print(folder / "report.html")
        else:
            print(write_report(folder))
