"""Run jobs in worker processes and append their records to a results file."""

import argparse
import gc
import json
import multiprocessing
import platform
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.jobs import Job, key_of
from benchmarks.study.tasks import TaskData, build_task, train_indices
from benchmarks.study.training import train
from policy_noise.experiments.processes import end_with_parent
from policy_noise.experiments.shifts import SHIFTS

_tasks: dict[tuple[Any, ...], TaskData] = {}
"""The tasks that this worker process has loaded."""


def _start_worker(device: str) -> None:
    end_with_parent()
    torch.set_num_threads(1)
    if device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True


def _run(job: Job, folder: str, device: str, graphs: bool, deadline: float) -> dict[str, Any] | None:
    """One run in a worker: its record, or None once the deadline has passed."""
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
    """Run jobs in worker processes and append their records as they finish. Returns the number of failures."""
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
                # A worker died (out of memory, a crash in native code). It is unknown which job it ran.
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


def count_steps(todo: list[Job], folder: Path) -> int:
    per_task = {}
    for job in todo:
        if job.task not in per_task:
            data = build_task(job.task, folder, torch.device("cpu"), ())
            per_task[job.task] = job.task.epochs * (len(train_indices(data, 0)) // job.task.batch_size)
    for task, steps in per_task.items():
        print(f"{task.name}: {steps} steps a run")
    return sum(per_task[job.task] for job in todo)
