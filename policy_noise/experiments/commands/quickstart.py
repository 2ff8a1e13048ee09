"""Compare plain training, frozen and learned masks on CT patches: one table, two pictures.

The patches are organs of one CT patient. Three methods start from equal weights and see equal batches: conventional
training, frozen noise (masks of a policy that never learns) and policy noise (learned masks). Each model is fine-tuned
on clean images, and tested on that patient, on another patient and on an MR scan. Several trainings run at a time. The
table does not depend on how many. It takes about a minute on two CPU cores.
"""

import argparse
import datetime
import multiprocessing
import time
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import closing
from functools import partial
from importlib.metadata import version
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch

from ...utils.files import write_atomic
from ..figures import LABELS, training_diagnostics
from ..processes import usable_cores, worker_pool
from ..quickstart import METHODS, MODEL, Outcome, Training, table, train_and_assess

__all__ = ["add_arguments", "run"]

DATA = Path(__file__).resolve().parents[3] / "examples" / "data" / "organpatches.npz"

_reports: "SimpleQueue[Any]"
"""The queue to which a worker process reports its progress."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"), help="folder for table and pictures")
    parser.add_argument("--seeds", type=int, default=3, help="repeats, with seeds 0, 1, ...")
    parser.add_argument(
        "--epochs", type=int, default=5, help="epochs of training; a third as many follow for fine-tuning"
    )
    parser.add_argument(
        "--jobs", type=int, default=usable_cores(), help="trainings to run at a time (default: one per core)"
    )
    parser.add_argument("--quick", action="store_true", help="one seed and two epochs, just to see it run")


def run(arguments: argparse.Namespace) -> None:
    """Run the command."""
    if arguments.quick:
        arguments.seeds, arguments.epochs = 1, 2
    seeds, epochs = arguments.seeds, arguments.epochs
    for name in ("seeds", "epochs", "jobs"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}")
    if not DATA.is_file():
        raise FileNotFoundError(
            f"{DATA} does not exist: run the quickstart from a clone of the repository, which contains it"
        )
    begun = time.perf_counter()
    finetune_epochs = max(1, epochs // 3)
    arguments.output.mkdir(parents=True, exist_ok=True)
    trainings = [
        Training(
            DATA,
            seed,
            method,
            epochs,
            finetune_epochs,
            arguments.output / "gallery.png" if (seed, method) == (seeds - 1, "policy") else None,
        )
        for seed in range(seeds)
        for method in METHODS
    ]
    jobs = min(arguments.jobs, len(trainings))
    print(f"{len(trainings)} trainings of {epochs} + {finetune_epochs} epochs, {jobs} at a time", flush=True)
    with closing(_Progress(trainings)) as progress:
        found = _in_turn(trainings, progress) if jobs == 1 else _side_by_side(trainings, jobs, progress)
    outcomes: dict[str, list[Outcome]] = {method: [] for method in METHODS}
    for training, outcome in zip(trainings, found, strict=True):
        outcomes[training.method].append(outcome)
    training_diagnostics(
        {method: [outcome.history for outcome in several] for method, several in outcomes.items()},
        arguments.output / "training.png",
        heading=f"Training and fine-tuning ({epochs} + {finetune_epochs} epochs), {seeds} seeds",
    )
    interval = f"means [95 % t-intervals] over {seeds} seeds" if seeds > 1 else "one seed, so no intervals"
    text = (
        f"{table(outcomes)}\n\n"
        f"{interval}; {epochs} + {finetune_epochs} epochs of {MODEL}; CPU, torch {torch.__version__}, "
        f"timm {version('timm')}, {datetime.date.today()}; "
        f"`python examples/quickstart.py --seeds {seeds} --epochs {epochs}`\n"
    )
    write_atomic(arguments.output / "table.md", lambda temporary: temporary.write_text(text, encoding="utf-8"))
    print(f"\n{text}")
    print(f"{time.perf_counter() - begun:.0f} s; table and pictures are in {arguments.output}/")


class _Progress:
    """A progress bar for all epochs and one for each training in progress."""

    def __init__(self, trainings: list[Training]) -> None:
        from tqdm import tqdm

        self._trainings, self._tqdm = trainings, tqdm
        self._bars: dict[int, Any] = {}
        self._all = tqdm(total=sum(t.epochs + t.finetune_epochs for t in trainings), unit="epoch", desc="all")

    def show(self, index: int, epoch: int, text: str) -> None:
        """Show that a training has started (epoch 0) or finished an epoch."""
        training = self._trainings[index]
        epochs = training.epochs + training.finetune_epochs
        if epoch == 0:
            name = f"seed {training.seed}, {LABELS[training.method]}"
            self._bars[index] = self._tqdm(total=epochs, unit="epoch", desc=name, leave=False)
            return
        self._bars[index].set_postfix_str(text, refresh=False)
        self._bars[index].update()
        self._all.update()
        if epoch == epochs:
            self._bars.pop(index).close()

    def close(self) -> None:
        for bar in (*self._bars.values(), self._all):
            bar.close()


def _in_turn(trainings: list[Training], progress: _Progress) -> list[Outcome]:
    outcomes = []
    for index, training in enumerate(trainings):
        progress.show(index, 0, "")
        outcomes.append(train_and_assess(training, partial(progress.show, index)))
    return outcomes


def _side_by_side(trainings: list[Training], jobs: int, progress: _Progress) -> list[Outcome]:
    reports = multiprocessing.get_context("spawn").SimpleQueue()
    with worker_pool(jobs, _start, reports) as pool:
        futures = [pool.submit(_work, *task) for task in enumerate(trainings)]
        pending = set(futures)
        while pending or not reports.empty():
            while not reports.empty():
                progress.show(*reports.get())
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()  # raises if the training failed, which stops the others
        return [future.result() for future in futures]


def _start(reports: "SimpleQueue[Any]") -> None:
    global _reports
    _reports = reports


def _work(index: int, training: Training) -> Outcome:
    _reports.put((index, 0, ""))
    return train_and_assess(training, lambda epoch, text: _reports.put((index, epoch, text)))
