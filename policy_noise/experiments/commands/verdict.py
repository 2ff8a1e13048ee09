"""Pages: of anybody's scores, and again of runs and comparisons."""

import argparse
from pathlib import Path

from ..comparison.external import judge, read_nnunet, read_runs
from ..comparison.page import write_comparison, write_results
from ..comparison.results import PLAN
from ..run_page import write_report
from ..runs import environment, only_one

__all__ = ["report", "verdict"]


def verdict(parser: argparse.ArgumentParser) -> None:
    """A verdict from anybody's runs: scores in a CSV file, of any framework and task, with the statistics of compare.

    The file has the columns method, seed and one for each measure (dice, auc, error ...), and set and patient if there
    are several. Differences are paired by seed, so equal seeds should mean equal conditions. report.html says what was
    found.
    """
    parser.add_argument("runs", nargs="?", type=Path, help="CSV file of scores")
    parser.add_argument(
        "--nnunet",
        nargs="+",
        default=[],
        metavar="METHOD=FOLDER",
        help="instead of a file: nnU-Net's folders with summary.json, one for each training; repeat a method for "
        "another seed",
    )
    parser.add_argument("--reference", help="the method to compare with (default: plain, or else the first one)")
    parser.add_argument(
        "--lower-is-better", nargs="+", default=[], metavar="MEASURE", help="measures such as an error or a distance"
    )
    parser.add_argument("--looks", type=int, default=1, help="how often you look at these runs in all; see compare")
    parser.add_argument("--output", type=Path, default=Path("outputs/verdict"), help="folder for the page")
    parser.set_defaults(work=_verdict)


def _verdict(arguments: argparse.Namespace) -> None:
    if (arguments.runs is None) == (not arguments.nnunet):
        raise ValueError("give a CSV file of scores, or --nnunet METHOD=FOLDER")
    if arguments.looks < 1:
        raise ValueError(f"--looks must be at least 1, got {arguments.looks}")
    runs = read_nnunet(arguments.nnunet) if arguments.nnunet else read_runs(arguments.runs)
    own = {"reference": arguments.reference, "lower": arguments.lower_is_better, "looks": arguments.looks}
    results = judge(runs, **own)
    better = [f"{name} ({'lower' if name in own['lower'] else 'higher'} is better)" for name in results["tables"]]
    place = environment()
    with only_one(arguments.output):
        title = f"What differs in {arguments.runs.name if arguments.runs else 'these trainings'}?"
        sentences = write_results(arguments.output, results, title, (place["date"], place["command"]))
    sentences = [*sentences, f"Judged by {', '.join(better)}."]
    print("\n".join([*sentences, "", f"{arguments.output / 'report.html'}: the report"]))


def report(parser: argparse.ArgumentParser) -> None:
    """Write the HTML report of a run or a comparison again."""
    parser.add_argument("run", type=Path, nargs="+", help="folders of runs or of comparisons")
    parser.set_defaults(work=_report)


def _report(arguments: argparse.Namespace) -> None:
    for folder in arguments.run:
        if (folder / PLAN).is_file():
            write_comparison(folder)
            print(folder / "report.html")
        else:
            print(write_report(folder))
