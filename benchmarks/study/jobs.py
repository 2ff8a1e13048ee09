"""Single runs of a suite, and the keys of their records."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.study.conditions import CONDITIONS, LEARNING_RATE, Condition
from benchmarks.study.suites import SUITES
from benchmarks.study.tasks import TASKS, Task

VERSION = 1
"""Raise this when a code change invalidates older results. They are then run again."""
RECORDED_NAMES = {
    "pattern_std": "mask_std",
    "brightness_std": "level_std",
    "scale_about": "domain",
    "policy_lr": "lr",
    "policy_lr_ratio": "lr_ratio",
}
"""Settings that had another name when runs were first recorded. Keys use the old name, so that those of old runs do not
change."""
RECORDED_VALUES = {"scale_about": {"zero": "normalized"}}
"""The same for values of settings."""


@dataclass(frozen=True)
class Job:
    """One run."""

    task: Task
    condition: Condition
    seed: int
    splits: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Everything that determines the result, as plain data for the key."""
        return {
            "task": self.task.describe(),
            "condition": _as_recorded(vars(self.condition)),
            "seed": self.seed,
            "splits": list(self.splits),
            "learning_rate": LEARNING_RATE,
        }


def _as_recorded(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        RECORDED_NAMES.get(name, name): _as_recorded(value)
        if isinstance(value, Mapping)
        else RECORDED_VALUES.get(name, {}).get(value, value)
        for name, value in settings.items()
    }


def jobs(
    suite: str,
    *,
    tasks: tuple[str, ...] | None = None,
    conditions: tuple[str, ...] | None = None,
    first_seed: int = 0,
    seeds: int | None = None,
    epochs: int | None = None,
) -> list[Job]:
    """The runs of a suite, seed by seed: all conditions and tasks of one seed come before the next seed.

    Args:
        suite: Name of the suite.
        tasks: Names of tasks, instead of the suite's.
        conditions: Names of conditions, instead of the suite's.
        first_seed: The first seed.
        seeds: Number of seeds, instead of the suite's.
        epochs: Number of epochs, instead of each task's, for smoke runs.

    Raises:
        ValueError: If a name is unknown.
    """
    declared = SUITES[suite]
    for names, known in ((tasks, TASKS), (conditions, CONDITIONS)):
        unknown = set(names or ()) - known.keys()
        if unknown:
            raise ValueError(f"unknown {sorted(unknown)}; known are {list(known)}")
    chosen = [TASKS[name] for name in tasks or declared.tasks]
    if epochs is not None:
        chosen = [replace(task, epochs=epochs) for task in chosen]
    return [
        Job(task, CONDITIONS[name], seed, declared.splits)
        for seed in range(first_seed, first_seed + (seeds or declared.seeds))
        for name in conditions or declared.conditions
        for task in chosen
    ]


def key_of(job: Job) -> str:
    """Hash of everything that determines a run's result."""
    text = json.dumps({**job.describe(), "version": VERSION}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
