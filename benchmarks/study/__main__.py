"""Command line of the study.

    python -m benchmarks.study run --suite free-strength-screen --data DIR --output runs.jsonl
    python -m benchmarks.study pack runs.jsonl --output runs.jsonl.gz
    python -m benchmarks.study analyse runs.jsonl.gz --output benchmarks/study/results/free-strength-screen
    python -m benchmarks.study choose runs.jsonl.gz
    python -m benchmarks.study explain runs.jsonl.gz

``run`` appends one JSON line per run and skips runs that are already in the file, so it can be interrupted and called
again. Jobs are sorted by seed, so that after an interruption all conditions have nearly the same seeds.
``analyse`` reads such files and trains nothing. ``pack`` makes them small enough to keep.
``choose`` applies the selection rule of suite entropy-screen. ``explain`` prints possible reasons why learning does not
help.
"""

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

import torch

from benchmarks.study.jobs import jobs, key_of
from benchmarks.study.results import Results, pack, read_results
from benchmarks.study.runner import count_steps, run_jobs
from benchmarks.study.suites import SUITES


def _run_command(args: argparse.Namespace) -> int:
    deadline = time.time() + args.deadline
    declared = jobs(
        args.suite,
        tasks=args.tasks,
        conditions=args.conditions,
        first_seed=args.first_seed,
        seeds=args.seeds,
        epochs=args.epochs,
    )
    finished = {record["key"] for record in read_results(args.output) if "error" not in record}
    todo = [job for job in declared if key_of(job) not in finished]
    conditions = len({job.condition.name for job in todo})
    print(
        f"suite {args.suite}: {len(declared)} runs, {len(todo)} to do, {conditions} conditions, device {args.device}, "
        f"{args.workers} workers, deadline {args.deadline:.0f} s",
        flush=True,
    )
    if args.dry_run:
        steps = count_steps(todo, args.data)
        print(f"runs by task: {dict(Counter(job.task.name for job in todo))}")
        print(f"{steps} steps: {steps / args.steps_per_second:.0f} s at {args.steps_per_second:.0f} steps/s")
        return 0
    return int(run_jobs(todo, args, deadline) > 0)


def _analyse_command(args: argparse.Namespace) -> int:
    from benchmarks.study.report import analyse

    records = [record for path in args.results for record in read_results(path)]
    for option, names in (("task", args.tasks), ("condition", args.conditions)):
        if names:
            unknown = set(names) - {record[option] for record in records}
            if unknown:
                raise ValueError(f"--{option}s must be of the results' {option}s, got {sorted(unknown)} that they lack")
            records = [record for record in records if record[option] in names]
    print(analyse(records, args.split, args.output, against=args.against))
    return 0


def _choose_command(args: argparse.Namespace) -> int:
    from benchmarks.study.choice import choice_table

    print(choice_table(Results([record for path in args.results for record in read_results(path)], "val")))
    return 0


def _explain_command(args: argparse.Namespace) -> int:
    from benchmarks.study.explanations import drift_table, encoding_table, gap_table

    records = [record for path in args.results for record in read_results(path)]
    print("\n".join([*drift_table(records), "", *gap_table(records), "", *encoding_table(records)]))
    return 0


def _pack_command(args: argparse.Namespace) -> int:
    args.output.write_bytes(pack([record for path in args.results for record in read_results(path)]))
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns 1 if a run failed."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and score the runs of a suite")
    run.add_argument("--suite", choices=SUITES, required=True)
    run.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the npz files")
    run.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON-lines file to append to")
    run.add_argument("--workers", type=int, default=1, help="processes at a time")
    run.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    run.add_argument("--deadline", type=float, default=float("inf"), help="seconds after which no new run starts")
    run.add_argument("--tasks", type=_names, metavar="A,B", help="instead of the suite's")
    run.add_argument("--conditions", type=_names, metavar="A,B", help="instead of the suite's")
    run.add_argument("--seeds", type=int, help="number of seeds, instead of the suite's")
    run.add_argument("--first-seed", type=int, default=0)
    run.add_argument("--epochs", type=int, help="instead of each task's, for smoke runs")
    run.add_argument("--no-graphs", dest="graphs", action="store_false", help="do not use CUDA graphs")
    run.add_argument("--dry-run", action="store_true", help="only count runs and steps")
    run.add_argument("--steps-per-second", type=float, default=600, help="assumed by --dry-run, all workers together")
    run.set_defaults(function=_run_command)
    analyse = commands.add_parser("analyse", help="tables, tests and plots of finished runs")
    analyse.add_argument("results", type=Path, nargs="+", metavar="FILE")
    analyse.add_argument("--split", choices=("val", "test"), default="val")
    analyse.add_argument("--tasks", type=_names, metavar="A,B", help="instead of all that the results have")
    analyse.add_argument("--conditions", type=_names, metavar="A,B", help="instead of all that the results have")
    analyse.add_argument("--against", metavar="CONDITION", help="also compare all other conditions with this one")
    analyse.add_argument("--output", type=Path, required=True, metavar="DIR", help="its name is the page's title")
    analyse.set_defaults(function=_analyse_command)
    for name, function, text in (
        ("choose", _choose_command, "the condition selected by the rule of suite entropy-screen"),
        ("explain", _explain_command, "final states of the policies, and whether their masks encode the class"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("results", type=Path, nargs="+", metavar="FILE")
        command.set_defaults(function=function)
    packing = commands.add_parser("pack", help="finished runs in a small file, which analyse reads")
    packing.add_argument("results", type=Path, nargs="+", metavar="FILE")
    packing.add_argument("--output", type=Path, required=True, metavar="FILE.gz")
    packing.set_defaults(function=_pack_command)
    args = parser.parse_args(arguments)
    return args.function(args)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
