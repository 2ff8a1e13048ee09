"""Single runs of a suite, and the key that a run's record is found by."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.study.conditions import CONDITIONS, LEARNING_RATE, Condition
from benchmarks.study.suites import SUITES
from benchmarks.study.tasks import TASKS, Task

VERSION = 1
"""Raise it when a change of the code makes older results wrong: they are then run again."""
RECORDED_NAMES = {
    "pattern_std": "mask_std",
    "brightness_std": "level_std",
    "scale_about": "domain",
    "policy_lr": "lr",
    "policy_lr_ratio": "lr_ratio",
}
"""Settings that had another name when runs were first recorded. Keys are made of that name, so that these runs keep
theirs."""
RECORDED_VALUES = {"scale_about": {"zero": "normalized"}}
"""Likewise their values."""


@dataclass(frozen=True)
class Job:
    """One run."""

    task: Task
    condition: Condition
    seed: int
    splits: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """All that decides the result, as plain data: what the cache's key is made of."""
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
    """A suite's runs, seed by seed: all conditions and tasks of one seed stand before the next.

    Args:
        suite: Name.
        tasks: Instead of the suite's.
        conditions: Instead of the suite's.
        first_seed: Seeds count from here.
        seeds: Instead of the suite's.
        epochs: Instead of each task's, for smoke runs.

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
    """Hash of all that decides a run's result."""
    text = json.dumps({**job.describe(), "version": VERSION}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
