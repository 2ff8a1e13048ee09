"""Command line of the study.

    python -m benchmarks.study run --data DIR
    python -m benchmarks.study report

``run`` trains what PROTOCOL.md declares, appends one JSON line a run to the results, and skips runs that are there: it
can be stopped and called again at any time, also with other parts at once. ``report`` trains nothing: it writes the
results page, and the tables and the picture of docs/evidence.md.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.report import RESULTS, ROOT, write_pages
from benchmarks.study.results import Results, done, read_results
from benchmarks.study.rule import all_rule_jobs, taken
from benchmarks.study.suites import Job, protocol_jobs
from benchmarks.study.tasks import TaskData, build_task
from benchmarks.study.training import train

SUITES = ("rule", "test")


def declared(suites: tuple[str, ...], records: list[dict[str, Any]]) -> list[Job]:
    """The runs of suites, in their order. The rule's second stage is known once its first one is complete."""
    validation, known = Results(records, "val"), done(records)
    rule = all_rule_jobs(validation, known) if "rule" in suites else []
    return [*rule, *(protocol_jobs(taken(validation, known)) if "test" in suites else ())]


def _machine(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else []
    return names[0] if names else platform.machine()


def _run(args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    tasks: dict[tuple[str, str], TaskData] = {}
    failed: set[str] = set()
    part, parts = map(int, args.part.split("/"))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    made = {"commit": commit.stdout.strip(), "torch": torch.__version__, "machine": _machine(args.device)}
    while True:
        records = read_results(args.output)
        known = failed | done(records)
        own = [job for job in declared(args.suites, records) if not args.arms or job.arm.name in args.arms]
        missing = [job for job in own[part - 1 :: parts] if job.key not in known]
        if not missing:
            return int(bool(failed))
        job = missing[0]
        record = {"key": job.key, "split": job.split, "task": job.task.name, "arm": job.arm.name, "seed": job.seed}
        try:
            kind = (job.task.name, job.split)
            if kind not in tasks:
                tasks[kind] = build_task(job.task, args.data, torch.device(args.device), job.split)
            record |= {**train(job, tasks[kind]), "day": time.strftime("%Y-%m-%d", time.gmtime()), **made}
        except Exception:
            failed.add(job.key)
            record["error"] = traceback.format_exc()
            print(record["error"], file=sys.stderr)
        with args.output.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{len(missing) - 1} to do; {job.key}: {record.get('seconds', 'failed')}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. Returns 1 if a run failed."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.study", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and score the declared runs that are missing")
    run.add_argument("--suites", nargs="+", choices=SUITES, default=SUITES, help="instead of both, one after the other")
    run.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the npz files")
    run.add_argument("--output", type=Path, default=RESULTS, metavar="FILE", help="JSON-lines file to append to")
    run.add_argument("--part", default="1/1", metavar="K/N", help="this process is the K-th of N")
    run.add_argument("--arms", nargs="+", metavar="ARM", help="these alone")
    run.add_argument("--device", default="cpu")
    run.set_defaults(function=_run)
    report = commands.add_parser("report", help="write the pages and the picture from the results")
    report.set_defaults(function=lambda args: write_pages())
    args = parser.parse_args(arguments)
    return args.function(args) or 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
