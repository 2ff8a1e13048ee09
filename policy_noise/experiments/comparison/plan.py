"""The runs of a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data import Split
from ..recipes import TrainRecipe, TransferRecipe
from ..shifts import ShiftedSplit
from .methods import Method
from .overlap import Overlap, sentence
from .sites import Site, names_of

__all__ = ["SCORES", "Job", "Plan", "in_words", "listing"]

SCORES = "comparison.json"
"""Name of the file, in a finished run's folder, that holds its scores."""
LARGEST = 2**28
"""Bytes of shifted images that a process keeps."""


@dataclass(frozen=True)
class Job:
    """One run: a method with a seed."""

    method: Method
    seed: int

    @property
    def name(self) -> str:
        """The name of the run's folder."""
        return f"{self.method.name}-{self.seed}"


@dataclass(frozen=True)
class Plan:
    """Everything that a process needs to run a comparison.

    Args:
        output: The comparison's folder; each run has a folder in ``runs/``.
        data: The data set to train on.
        record: The description of the data in each run's record.
        sites: Data that are only tested on.
        targets: Data sets for few-shot transfer.
        recipe: The recipe that all methods share.
        transfer: The settings of few-shot transfer.
        methods: The methods, the reference first.
        seeds: The seeds of the runs.
        medmnistc: Whether test images are also scored under MedMNIST-C's corruptions.
        kept: Shifted test images, by shift and severity.
    """

    output: Path
    data: Any
    record: Mapping[str, Any]
    sites: tuple[Site, ...]
    targets: tuple[Any, ...]
    recipe: TrainRecipe
    transfer: TransferRecipe
    methods: tuple[Method, ...]
    seeds: tuple[int, ...]
    medmnistc: bool = False
    kept: dict[tuple[str, int], Split] = field(default_factory=dict)

    def folder(self, job: Job) -> Path:
        """The folder of a run."""
        return self.output / "runs" / job.name

    def jobs(self) -> list[Job]:
        """All runs, seed by seed, so that a comparison stopped early has complete seeds."""
        return [Job(method, seed) for seed in self.seeds for method in self.methods]

    def todo(self) -> list[Job]:
        """The runs that have no scores yet."""
        return [job for job in self.jobs() if not (self.folder(job) / SCORES).is_file()]

    def shifted(self, name: str, severity: int) -> Any:
        """Shifted test images. Those of a set in memory are kept while they are few, for this process's next runs."""
        split = ShiftedSplit(self.data.test, name, severity)
        if (name, severity) in self.kept:
            return self.kept[name, severity]
        if not self.data.test.in_memory or self.data.test.images.nbytes * (len(self.kept) + 1) > LARGEST:
            return split
        self.kept[name, severity] = Split(split.read(np.arange(len(split)))[0], split.labels)
        return self.kept[name, severity]


def in_words(seconds: float) -> str:
    """A duration as text, rounded."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def listing(plan: Plan, overlaps: Mapping[str, Overlap]) -> list[str]:
    """Lines that say what would run, on which data, and which images are training images."""

    def warn(key: str) -> list[str]:
        return [f"  warning: {sentence(key, overlaps[key], example=True)}"] if key in overlaps else []

    todo = plan.todo()
    recipe = plan.recipe
    data = plan.data
    clean = f", the last {recipe.clean_epochs} without masks and changes of intensities" if recipe.clean_epochs else ""
    lines = [
        f"{data.name}: {len(data.train)} training, {len(data.val)} validation and {len(data.test)} test images of "
        f"{data.num_classes} classes",
        f"{recipe.model}, {recipe.epochs} epoch{'s' * (recipe.epochs > 1)}{clean}; {_seeds(plan.seeds)}",
    ]
    lines[1:1] = warn("val") + warn("clean")
    for site in plan.sites:
        lines += site.lines()
        lines += warn(f"site:{site.name}")
    for target in plan.targets:
        lines.append(
            f"few-shot transfer to {target.name}, {target.num_classes} classes: {names_of(plan.transfer.shots)} images"
        )
        lines += warn(f"few-shot:{target.name}")
    for method in plan.methods:
        mine = [job.seed for job in todo if job.method.name == method.name]
        what = f"{_seeds(mine)} to run" if mine else "all runs finished"
        lines.append(f"{method.name} ({method.about}): {what}")
    return [*lines, f"{len(todo)} of {len(plan.jobs())} runs to go"]


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {names_of(seeds)}"
