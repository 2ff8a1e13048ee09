"""Read every image once and list the unreadable, constant and duplicate ones, within and across splits and classes."""

import argparse
from pathlib import Path

from ..image_check import check, summary, write_table
from ..sources import add_source_arguments, open_sources

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    add_source_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="CSV",
        help="table of the problems found, for --exclude; a journal next to it lets an interrupted check continue",
    )


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if arguments.output.suffix.lower() != ".csv":
        raise ValueError(f"--output must end in .csv, got {arguments.output}")
    arguments.skip_bad_files = True  # the check looks for them
    findings = []
    for data in open_sources(arguments, 1, 1, look=False):
        found = check(data, journal=arguments.output.with_suffix(".jsonl"))
        print(f"\n{summary(data, found)}")
        findings += found
    write_table(findings, arguments.output)
    print(f"\n{arguments.output}: {len(findings)} rows. Review the column exclude, then train with --exclude.")
