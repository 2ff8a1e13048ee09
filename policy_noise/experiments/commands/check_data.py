"""The check of all images of a data set."""

import argparse
from pathlib import Path

from ..image_check import check, summary, write_table
from ..sources import add_source_arguments, open_sources

__all__ = ["check_data"]


def check_data(parser: argparse.ArgumentParser) -> None:
    """Read every image once and list unreadable, constant and duplicate ones, within and across splits and classes."""
    add_source_arguments(parser)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="CSV",
        help="table of the problems found, for --exclude; a journal next to it lets an interrupted check continue",
    )
    parser.set_defaults(work=_check_data)


def _check_data(arguments: argparse.Namespace) -> None:
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
