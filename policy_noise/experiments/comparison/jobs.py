"""The runs of a comparison, one after the other or several at a time in separate processes."""

import dataclasses
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import as_completed
from typing import Any

import torch

from ..processes import usable_cores, worker_pool
from ..runs import Run, write_json
from ..training import train
from ..world import World, world
from .methods import recipe_for
from .plan import SCORES, Job, Plan, in_words
from .scoring import score_run

__all__ = ["run_all", "run_job"]

_plan: Plan
"""The comparison that this worker process runs a part of."""


def run_job(plan: Plan, job: Job, here: World) -> dict[str, Any]:
    """Train and score one run. An interrupted run continues where it stopped.

    Returns:
        The content of the run's file of scores: ``method``, ``seed``, ``seconds`` and ``scores``.

    Raises:
        ValueError: As in :func:`~policy_noise.experiments.training.train`, with the run's name in front.
    """
    recipe = recipe_for(job.method, plan.recipe, job.seed)
    begun = time.perf_counter()
    try:
        folder, record = plan.folder(job), {**plan.record, "arm": job.method.name}
        run = here.agree(lambda: Run(folder, "pretrain", recipe, record, resume=True, writes=here.main))
        model = train(run, recipe, plan.data, here)
        scores = score_run(plan, job, model, recipe, here)
    except ValueError as error:
        raise ValueError(f"{job.method.name}, seed {job.seed}: {error}") from error
    result = {
        "method": job.method.name,
        "seed": job.seed,
        "seconds": round(time.perf_counter() - begun, 1),
        "scores": scores,
    }
    if here.main:
        write_json(folder / SCORES, result)
        shutil.rmtree(run.checkpoints, ignore_errors=True)  # only an unfinished run needs them
    here.barrier()
    return result


def run_all(plan: Plan, here: World, *, jobs: int) -> None:
    """Run everything that is not finished.

    Args:
        plan: The comparison.
        here: The processes that share each run under torchrun, or this single process.
        jobs: Runs at a time, each in its own process.

    Raises:
        ValueError: If a run fails. The others are stopped and can be resumed.
        OSError: If a process dies.
    """
    todo = plan.todo()
    note = _progress(len(todo)) if here.main else (lambda job, result: None)
    if jobs == 1:
        for job in todo:
            note(job, run_job(plan, job, here))
        return
    counter, threads = multiprocessing.get_context("spawn").Value("i", 0), max(1, usable_cores() // jobs)
    with worker_pool(jobs, _start, plan, counter, threads) as pool:
        futures = {pool.submit(_work, job): job for job in todo}
        for future in as_completed(futures):
            note(futures[future], future.result())


def _progress(total: int) -> Callable[[Job, Mapping[str, Any]], None]:
    """A function that prints a finished run and the estimated time for the remaining ones."""
    begun, left = time.perf_counter(), total

    def note(job: Job, result: Mapping[str, Any]) -> None:
        nonlocal left
        left -= 1
        remaining = (time.perf_counter() - begun) * left / (total - left)
        ahead = f"; about {in_words(remaining)} to go" if left else ""
        print(
            f"[{total - left}/{total}] {job.method.name}, seed {job.seed}: clean F1 "
            f"{result['scores']['clean']['f1']:.3f}, {in_words(result['seconds'])}{ahead}",
            file=sys.stderr,
            flush=True,
        )

    return note


def _start(plan: Plan, counter: Any, threads: int) -> None:
    """Give a worker process the plan, its share of the cores, and its GPU."""
    global _plan
    _plan = plan
    torch.set_num_threads(threads)
    with counter.get_lock():
        number, counter.value = counter.value, counter.value + 1
    os.environ["LOCAL_RANK"] = str(number % max(1, torch.cuda.device_count()))


def _work(job: Job) -> dict[str, Any]:
    with world() as here:
        return run_job(_plan, job, dataclasses.replace(here, quiet=True))
