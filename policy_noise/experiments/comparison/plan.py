"""The runs of a comparison and how long they may take."""

import dataclasses
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..batches import outputs
from ..data import Split, match_channels, resize, to_tensor
from ..few_shot import draw_few_shot, embed, fine_tune, linear_probe
from ..gallery import one_of_each_class
from ..recipes import TrainRecipe, TransferRecipe
from ..runs import Run, read_json
from ..shifts import MEDMNISTC_SEVERITIES, SEVERITIES, SHIFTS, ShiftedSplit, medmnistc_shifts
from ..training import create_model, train
from ..world import World
from .methods import Method, recipe_for
from .overlap import Overlap, sentence
from .sites import Site, names_of

__all__ = ["SCORES", "Job", "Plan", "estimate", "in_words", "listing"]

SCORES = "comparison.json"
"""Name of the file, in a finished run's folder, that holds its scores."""
LARGEST = 2**28
"""Bytes of shifted images that a process keeps."""
PROBE_STEPS = 6
PROBE_IMAGES = 256


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

    def test_images(self) -> tuple[int, int, int]:
        """The number of images that a run is scored on: as they are, under the eight shifts, and under MedMNIST-C's."""
        clean = len(self.data.test) + sum(len(site.images) for site in self.sites)
        others = len(medmnistc_shifts(self.data.name)) * len(MEDMNISTC_SEVERITIES) if self.medmnistc else 0
        return clean, len(SHIFTS) * len(SEVERITIES) * len(self.data.test), others * len(self.data.test)

    def shifted(self, name: str, severity: int) -> Any:
        """Shifted test images. Those of a set in memory are kept while they are few, for this process's next runs."""
        split = ShiftedSplit(self.data.test, name, severity)
        if (name, severity) in self.kept:
            return self.kept[name, severity]
        if not self.data.test.in_memory or self.data.test.images.nbytes * (len(self.kept) + 1) > LARGEST:
            return split
        self.kept[name, severity] = Split(split.read(np.arange(len(split)))[0], split.labels)
        return self.kept[name, severity]


def estimate(plan: Plan, here: World) -> dict[str, float]:
    """Estimate the duration of a run from a few training steps and a few scored images.

    Few-shot transfer takes the same time after every method, so it is measured once. Nothing is written into the
    comparison's folder.
    """
    seconds, here = {}, dataclasses.replace(here, quiet=True)
    few_shot = sum(_few_shot_seconds(plan, target, here) for target in plan.targets)
    data, seed = plan.data, plan.seeds[0]
    rows = min(len(data.train), PROBE_STEPS * plan.recipe.batch_size * here.size)
    whole = data.multi_label or data.val.skip_corrupt  # then every class must be present
    val = np.arange(len(data.val)) if whole else one_of_each_class(data.val, data.num_classes)
    small = dataclasses.replace(data, train=data.train.take(np.arange(rows)), val=data.val.take(val))
    test = data.test.take(np.arange(min(len(data.test), PROBE_IMAGES)))
    for method in plan.methods:
        recipe = recipe_for(method, plan.recipe, seed)
        probe = dataclasses.replace(recipe, epochs=2, clean_epochs=0, checkpoint_steps=0, keep_checkpoints=1)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the runs themselves will warn
            run = Run(folder, "pretrain", probe, {"name": data.name}, resume=False, writes=here.main)
            model = train(run, probe, small, here)
            path = Path(folder) / "speed.json"
            rate = here.gather(read_json(path)[-1]["images_per_s"] if here.main else None)[0]
            kinds = [test, ShiftedSplit(test, next(iter(SHIFTS)), 1)]
            kinds += [ShiftedSplit(test, medmnistc_shifts(data.name)[0], 1)] if plan.medmnistc else []
            paces = [_seconds_an_image(model, split, recipe, here, data.multi_label) for split in kinds]
        scored = sum(count * pace for count, pace in zip(plan.test_images(), paces, strict=False))
        scored += recipe.epochs * len(data.val) * paces[0]
        seconds[method.name] = recipe.epochs * len(data.train) / rate + scored + few_shot
    return seconds


def _seconds_an_image(model: Any, split: Any, recipe: TrainRecipe, here: World, multi_label: bool) -> float:
    begun = time.perf_counter()
    outputs(model, split, recipe, here, multi_label=multi_label)
    return (time.perf_counter() - begun) / len(split)


def _few_shot_seconds(plan: Plan, target: Any, here: World) -> float:
    """Seconds of all trials on one target, from a few images and one probe of each size, or a few steps of fine-tuning.

    Weights do not matter here, so those of a new model serve.
    """
    recipe, train_split = plan.transfer, target.train
    model = create_model(plan.recipe, target.num_classes).to(here.device)
    drawn = draw_few_shot(train_split.labels, max(recipe.shots), np.random.default_rng(recipe.seed))
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the runs themselves will warn
        images, kept = train_split.read(drawn)
    batch = to_tensor(resize(images, recipe.image_size), recipe.mean, recipe.std)
    batch = match_channels(batch.to(here.device), plan.recipe.in_chans)
    features, labels = embed(model, batch), train_split.labels[kept]
    an_image = (time.perf_counter() - begun) / len(images)
    linear_probe(features[:2], labels[:2], features, target.num_classes)  # the first one also imports
    begun = time.perf_counter()
    if recipe.mode == "linear":  # features are made once, each draw has its own probe
        for shots in recipe.shots:
            linear_probe(features[:shots], labels[:shots], features, target.num_classes, c=recipe.c)
        probes = recipe.trials * (time.perf_counter() - begun) / here.size
        return (len(target.test) + min(len(train_split), recipe.trials * sum(recipe.shots))) * an_image + probes
    few = dataclasses.replace(recipe, steps=PROBE_STEPS)
    fine_tune(model, batch, torch.from_numpy(labels).to(here.device), few, seed=0)
    steps = recipe.steps / PROBE_STEPS * (time.perf_counter() - begun)
    return recipe.trials * len(recipe.shots) * (steps + len(target.test) * an_image) / here.size


def in_words(seconds: float) -> str:
    """A duration as text, rounded."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def listing(plan: Plan, seconds: Mapping[str, float], jobs: int, overlaps: Mapping[str, Overlap]) -> list[str]:
    """Lines that say what would run, on which data, about how long it takes, and which images are training images."""

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
        time_ = f", about {in_words(seconds[method.name])} per run" if method.name in seconds else ""
        lines.append(f"{method.name} ({method.about}): {what}{time_}")
    if seconds:
        total = sum(seconds[job.method.name] for job in todo) / jobs
        what = ", few-shot transfer included" if plan.targets else ""
        together = f", {jobs} at a time if they do not slow one another" if jobs > 1 else ""
        lines.append(f"{len(todo)} of {len(plan.jobs())} runs to go, about {in_words(total)} in all{what}{together}")
    return lines


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) > 1)} {names_of(seeds)}"
