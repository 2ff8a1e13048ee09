"""Results files, and their scores by task, condition and seed."""

import gzip
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from policy_noise.experiments.shifts import SHIFTS

GROUPED = (*SHIFTS, "medmnist_c", "few_shot")
"""Measures that are the mean of several sets' scores."""
MEASURES = ("clean", "shifted", *GROUPED, "ct2", "mr")


def read_results(path: Path) -> list[dict[str, Any]]:
    """Read the records of a results file, packed or not. An incomplete last line is skipped."""
    records = []
    if path.is_file():
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text()
        for line in text.splitlines():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                print(f"{path}: a line that is not JSON was skipped", file=sys.stderr)
    return records


def pack(records: list[dict[str, Any]]) -> bytes:
    """Compress records to a fifth of their size: five digits, only the last diagnostics of each policy, gzip."""
    lines = []
    for record in records:
        short = {**record, "policy": record["policy"][-1:]} if "policy" in record else record
        short = json.loads(json.dumps(short), parse_float=lambda digits: float(f"{float(digits):.5g}"))
        lines.append(json.dumps(short, separators=(",", ":")) + "\n")
    return gzip.compress("".join(lines).encode(), mtime=0)


class Results:
    """Scores of one split by task, condition and seed.

    Args:
        records: Records written by ``run``. Failed runs and other splits are skipped. Of a repeated run the last
            counts. Seeds that some condition of a task lacks are skipped, so that all use the same seeds.
        split: ``"val"`` or ``"test"``.
    """

    def __init__(self, records: Iterable[dict[str, Any]], split: str) -> None:
        kept = {record["key"]: record for record in records if split in record.get("scores", {})}
        seeds: dict[str, dict[str, set[int]]] = {}
        for record in kept.values():
            seeds.setdefault(record["task"], {}).setdefault(record["condition"], set()).add(record["seed"])
        complete = {task: set.intersection(*own.values()) for task, own in seeds.items()}
        self.records = [record for record in kept.values() if record["seed"] in complete[record["task"]]]
        self.incomplete = len(kept) - len(self.records)
        self.split = split
        self.family = {record["condition"]: record["family"] for record in self.records}
        self._values: dict[tuple[str, str, str], dict[int, float]] = {}
        for record in self.records:
            for measure, value in _measures(record["scores"][split]).items():
                self._values.setdefault((record["task"], record["condition"], measure), {})[record["seed"]] = value

    @property
    def tasks(self) -> list[str]:
        """The tasks, in order of appearance."""
        return list(dict.fromkeys(record["task"] for record in self.records))

    def conditions(self, task: str) -> list[str]:
        """The conditions of a task, in order of appearance."""
        return list(dict.fromkeys(record["condition"] for record in self.records if record["task"] == task))

    def by_seed(self, task: str, condition: str, measure: str) -> dict[int, float]:
        """Scores by seed; empty where there are none."""
        return self._values.get((task, condition, measure), {})

    def values(self, task: str, condition: str, measure: str) -> np.ndarray:
        """Scores of all seeds."""
        return np.array(list(self.by_seed(task, condition, measure).values()))

    def mean(self, task: str, condition: str, measure: str) -> float:
        """Mean over seeds."""
        return float(self.values(task, condition, measure).mean())


def _measures(scores: dict[str, float]) -> dict[str, float]:
    """Average shifts over severities, and ``shifted`` over shifts. The same for corruptions and numbers of shots."""
    result = {name: value for name, value in scores.items() if ":" not in name}
    for group in GROUPED:
        levels = [value for name, value in scores.items() if name.split(":")[0] == group and ":" in name]
        if levels:
            result[group] = float(np.mean(levels))
    shifts = [result[shift] for shift in SHIFTS if shift in result]
    return result | ({"shifted": float(np.mean(shifts))} if shifts else {})
