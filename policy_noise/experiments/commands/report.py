"""Write the HTML page of a run's folder again."""

import argparse
from pathlib import Path

from ..report import write_report

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("run", type=Path, nargs="+", help="folders of runs")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    for folder in arguments.run:
        print(write_report(folder))
