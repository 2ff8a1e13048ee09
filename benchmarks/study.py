"""Does learning the noise help? Runs the declared study, and analyses its results.

    python benchmarks/study.py run --suite screen --data DIR --output benchmarks/results/study-screen.jsonl
    python benchmarks/study.py analyse benchmarks/results/study-screen.jsonl --output benchmarks/results --name screen

``run`` appends one JSON line a run and leaves out the runs whose configuration is there already, so that it can be
cut off and called again; jobs are sorted by seed, so that a cut leaves every condition with nearly the same seeds.
``analyse`` reads such files and trains nothing; ``pack`` makes them small enough to keep.
"""

import argparse
import gc
import gzip
import hashlib
import json
import multiprocessing
import os
import platform
import sys
import threading
import time
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from study_conditions import SUITES, Job, jobs
from study_tasks import SHIFTS, TaskData, build_task, train_indices

__all__ = ["key_of", "main", "pack", "read_results", "run_jobs"]

VERSION = 1
"""Raise it when a change of the code makes older results wrong: they are then run again."""

_tasks: dict[tuple[Any, ...], TaskData] = {}
"""Of this worker process."""


def key_of(job: Job) -> str:
    """Hash of all that decides a run's result."""
    text = json.dumps({**job.describe(), "version": VERSION}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_results(path: Path) -> list[dict[str, Any]]:
    """The records of a results file, packed or not; a last line that was cut off is left out."""
    records = []
    if path.is_file():
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        for line in text.splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                print(f"{path}: a line that is no JSON was left out", file=sys.stderr)
    return records


def pack(records: list[dict[str, Any]]) -> bytes:
    """Records in a fifth of their size: five digits, the last look at each policy, compressed."""
    lines = []
    for record in records:
        short = {**record, "policy": record["policy"][-1:]} if "policy" in record else record
        short = json.loads(json.dumps(short), parse_float=lambda digits: float(f"{float(digits):.5g}"))
        lines.append(json.dumps(short, separators=(",", ":")) + "\n")
    return gzip.compress("".join(lines).encode(), mtime=0)


def _end_with_parent() -> None:
    """Wait for the parent's end, however it comes. A pool's workers would go on with what is queued, and then wait."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _start_worker(device: str) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    if device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def _run(job: Job, folder: str, device: str, graphs: bool, deadline: float) -> dict[str, Any] | None:
    """One run in a worker: its record, or None once the deadline has passed."""
    from study_training import train

    if time.time() > deadline:
        return None
    record = {
        "key": key_of(job),
        "task": job.task.name,
        "condition": job.condition.name,
        "family": job.condition.family,
        "seed": job.seed,
    }
    try:
        key = (job.task, job.splits)
        if key not in _tasks:
            _tasks[key] = build_task(job.task, Path(folder), torch.device(device), job.splits)
        record |= train(job, _tasks[key], graphs=graphs)
        record |= {"device": _device_name(device), "torch": torch.__version__}
    except Exception:
        record["error"] = traceback.format_exc()
    finally:
        # A graphed model and its forward refer to each other, and hold the graph's memory.
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return record


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.machine()


def run_jobs(todo: list[Job], args: argparse.Namespace, deadline: float) -> int:
    """Run jobs in worker processes, append their records as they come, and give back how many failed."""
    path: Path = args.output
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.time()
    done = steps = failed = 0
    context = multiprocessing.get_context("spawn")
    while todo:
        remaining = {key_of(job): job for job in todo}
        with (
            path.open("a") as file,
            ProcessPoolExecutor(args.workers, context, initializer=_start_worker, initargs=(args.device,)) as pool,
        ):
            futures = {pool.submit(_run, job, str(args.data), args.device, args.graphs, deadline): job for job in todo}
            try:
                for future in as_completed(futures):
                    record = future.result()
                    if record is None:
                        continue
                    del remaining[record["key"]]
                    file.write(json.dumps(record) + "\n")
                    file.flush()
                    done += 1
                    failed += "error" in record
                    steps += record.get("steps", 0)
                    _report(record, done, len(futures), failed, steps, time.time() - start)
                break
            except BrokenProcessPool:
                # A worker died (memory, a crash in native code). Nothing tells which job it was.
                print("a worker process died: starting new ones", flush=True)
        if len(remaining) == len(todo):
            raise RuntimeError("worker processes die before any run ends: try fewer --workers")
        todo = list(remaining.values())
    seconds = time.time() - start
    print(f"{done} runs, {failed} failed, {steps} steps, {seconds:.0f} s, {steps / seconds:.0f} steps/s")
    return failed


def _report(record: dict[str, Any], done: int, total: int, failed: int, steps: int, seconds: float) -> None:
    name = f"{record['task']:12s} {record['condition']:26s} seed {record['seed']}"
    if "error" in record:
        last = record["error"].strip().splitlines()[-1]
        print(f"[{done}/{total}] {seconds:5.0f} s  {name}  FAILED {last}", flush=True)
        return
    scores = next(iter(record["scores"].values()))
    shifted = [value for name_, value in scores.items() if name_.split(":")[0] in SHIFTS]
    print(
        f"[{done}/{total}] {seconds:5.0f} s  {name}  clean {scores['clean']:.3f}  "
        f"shifted {sum(shifted) / len(shifted):.3f}  {record['seconds']:5.1f} s  ({steps / seconds:.0f} steps/s, "
        f"{failed} failed)",
        flush=True,
    )


def _count_steps(todo: list[Job], folder: Path) -> int:
    per_task = {}
    for job in todo:
        if job.task not in per_task:
            data = build_task(job.task, folder, torch.device("cpu"), ())
            per_task[job.task] = job.task.epochs * (len(train_indices(data, 0)) // job.task.batch_size)
    for task, steps in per_task.items():
        print(f"{task.name}: {steps} steps a run")
    return sum(per_task[job.task] for job in todo)


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
        steps = _count_steps(todo, args.data)
        print(f"runs by task: {dict(Counter(job.task.name for job in todo))}")
        print(f"{steps} steps: {steps / args.steps_per_second:.0f} s at {args.steps_per_second:.0f} steps/s")
        return 0
    return int(run_jobs(todo, args, deadline) > 0)


def _analyse_command(args: argparse.Namespace) -> int:
    from study_analysis import analyse

    records = [record for path in args.results for record in read_results(path)]
    for option, names in (("task", args.tasks), ("condition", args.conditions)):
        if names:
            unknown = set(names) - {record[option] for record in records}
            if unknown:
                raise ValueError(f"--{option}s must be of the results' {option}s, got {sorted(unknown)} that they lack")
            records = [record for record in records if record[option] in names]
    print(analyse(records, args.split, args.output, args.name, against=args.against))
    return 0


def _pack_command(args: argparse.Namespace) -> int:
    args.output.write_bytes(pack([record for path in args.results for record in read_results(path)]))
    return 0


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def main(arguments: list[str] | None = None) -> int:
    """Command line; 1 if a run failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train and score the runs of a suite")
    run.add_argument("--suite", choices=SUITES, required=True)
    run.add_argument("--data", type=Path, required=True, metavar="DIR", help="holds the npz files")
    run.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON lines, appended to")
    run.add_argument("--workers", type=int, default=1, help="processes at a time")
    run.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    run.add_argument("--deadline", type=float, default=float("inf"), help="seconds after which no new run starts")
    run.add_argument("--tasks", type=_names, metavar="A,B", help="instead of the suite's")
    run.add_argument("--conditions", type=_names, metavar="A,B", help="instead of the suite's")
    run.add_argument("--seeds", type=int, help="how many, instead of the suite's")
    run.add_argument("--first-seed", type=int, default=0)
    run.add_argument("--epochs", type=int, help="instead of each task's, for smoke runs")
    run.add_argument("--no-graphs", dest="graphs", action="store_false", help="do without CUDA graphs")
    run.add_argument("--dry-run", action="store_true", help="count runs and steps, and start none")
    run.add_argument("--steps-per-second", type=float, default=600, help="assumed by --dry-run, all workers together")
    run.set_defaults(function=_run_command)
    analyse = commands.add_parser("analyse", help="tables, tests and plots of finished runs")
    analyse.add_argument("results", type=Path, nargs="+", metavar="FILE")
    analyse.add_argument("--split", choices=("val", "test"), default="val")
    analyse.add_argument("--tasks", type=_names, metavar="A,B", help="instead of all that the results have")
    analyse.add_argument("--conditions", type=_names, metavar="A,B", help="instead of all that the results have")
    analyse.add_argument("--against", metavar="CONDITION", help="compare all others with this one too")
    analyse.add_argument("--output", type=Path, required=True, metavar="DIR")
    analyse.add_argument("--name", default="study", help="prefix of the files")
    analyse.set_defaults(function=_analyse_command)
    packing = commands.add_parser("pack", help="finished runs in a small file, which analyse reads")
    packing.add_argument("results", type=Path, nargs="+", metavar="FILE")
    packing.add_argument("--output", type=Path, required=True, metavar="FILE.gz")
    packing.set_defaults(function=_pack_command)
    args = parser.parse_args(arguments)
    return args.function(args)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
