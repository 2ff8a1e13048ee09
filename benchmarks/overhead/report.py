"""The page of a results file."""

import json
import math
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.overhead.peers import tables
from benchmarks.overhead.plot import plot
from benchmarks.overhead.ratios import added, law, memory_ratio, ratio, ratio_by_hooks, the_rest
from benchmarks.overhead.suites import PEERS
from policy_noise.utils.files import write_atomic

PEERS_READ_AS = (
    "CPU time of one thread, medians over rounds in which all take turns. Images lie in [0, 1], and every transform "
    "changes all of them, with its own defaults but for the strengths of ColorJitter and RandomBrightness, 0.4."
)
GOALS = {
    ("resnet50", "time"): 1.03,
    ("resnet18", "time"): 1.05,
    ("resnet50", "memory"): 1.03,
    ("resnet18", "memory"): 1.03,
}


def to_markdown(results: dict[str, Any]) -> str:
    """The tables of a results file."""
    if results["suite"] == PEERS:
        return "\n".join([*opening(results), "", PEERS_READ_AS, *tables(results)]).rstrip() + "\n"
    variants = [variant for record in results["configurations"] for variant in record.get("arms", {}).values()]
    clocked = any("seconds_in_hooks" in variant for variant in variants)
    lines = [
        *opening(results),
        "",
        "`plain` is training without the package, and `plain again` the same once more, which shows how much the "
        "machine varies. `random`, `learned` and `paper` are the presets.",
        "",
        "Ratios are medians over paired repetitions, with the 95 % interval of the median.",
        *(
            [
                "`ms in hooks` is the package's own work in a step. `x the rest` is the step divided by the same step "
                "without that work."
            ]
            * clocked
        ),
        "",
        "| configuration | training | ms per step | x plain | interval | n | peak memory MB | x plain |"
        + " ms in hooks | x the rest | interval |" * clocked,
        "|---|---|---:|---:|---|---:|---:|---:|" + "---:|---:|---|" * clocked,
    ]
    notes: list[str] = []
    for record in results["configurations"]:
        if "error" in record:
            notes.append(f"- {record['label']}: {record['error'].splitlines()[-1]}")
            continue
        for name, variant in record["arms"].items():
            value = ratio(record, name, "plain")
            assert value is not None
            memory, share = variant["peak_memory_bytes"], memory_ratio(record, name)
            interval = "" if name == "plain" else in_words(value)
            lines.append(
                f"| {record['label']} | {name} | {1e3 * median(variant['seconds']):.2f} | {value[0]:.3f} | {interval} "
                f"| {len(variant['seconds'])} | {'' if memory is None else f'{memory / 2**20:.0f}'} "
                f"| {'' if share is None else f'{share:.3f}'} |" + by_hooks(record, name) * clocked
            )
        notes += [f"- {record['label']}, {name} failed: {words}" for name, words in record["failures"].items()]
        notes += goals(record)
        if "launches" in record:
            beside = {name: added(record, name) for name in record["arms"] if name != "plain"}
            notes.append(f"- {record['label']}, added to the plain step, ms: {listed(beside, 1e3)}")
            notes += [
                f"- {record['label']}, {name}, operations of the hooks on the device: {listed(counts, 1)}"
                for name, counts in record["launches"].items()
            ]
        if record.get("kernels"):
            notes.append(f"- {record['label']}, kernels per step: {listed(record['kernels'], 1)}")
        notes += [f"- {record['label']}, {name}: {words}" for name, words in record.get("checks", {}).items()]
    notes += the_rest(results) if clocked else []
    if results["suite"] == "scaling":
        notes.append(law(results))
    beside = ["", "Augmentations alone, until the device has finished.", *tables(results)] if PEERS in results else []
    return "\n".join([*lines, "", *notes, *beside, ""])


def opening(results: dict[str, Any]) -> list[str]:
    """The head of a page: the command, the date and the machine."""
    machine = results["machine"]
    return [
        f"# Overhead: the {results['suite']} suite",
        "",
        f"`{results['command']}`",
        "",
        f"{results['date']} · {machine['device']} · {machine['threads']} threads · torch {machine['torch']}, "
        f"timm {machine['timm']}, kornia {machine['kornia']} · load at the start {machine['load_at_start']:.2f}"
        + (f" · TF32 in convolutions {machine['tf32_convolution']}" if machine["cudnn"] else ""),
    ]


def by_hooks(record: dict[str, Any], variant: str) -> str:
    """The last cells of a table row: time in hooks and the ratio to the rest of the step."""
    value = ratio_by_hooks(record, variant)
    if value is None:
        return " | | |"
    inside = 1e3 * median(record["arms"][variant]["seconds_in_hooks"])
    return f" {inside:.2f} | {value[0]:.4f} | {in_words(value, 4)} |"


def in_words(ratio_and_interval: tuple[float, float, float], digits: int = 3) -> str:
    """The interval of a ratio."""
    _, low, high = ratio_and_interval
    return "too few" if math.isnan(low) or math.isnan(high) else f"{low:.{digits}f} to {high:.{digits}f}"


def listed(values: Any, unit: float) -> str:
    if not isinstance(values, dict):
        return str(values)
    return ", ".join(
        f"{name} {value if isinstance(value, str) else f'{unit * value:.{0 if unit == 1 else 3}f}'}"
        for name, value in values.items()
    )


def goals(record: dict[str, Any]) -> list[str]:
    """The declared goals and the results."""
    notes = []
    model = record["configuration"]["model"]
    if record["configuration"]["size"] != 224:
        return notes
    middle, low, _ = ratio_by_hooks(record, "learned") or ratio(record, "learned", "plain") or (None, math.nan, 0)
    found = {"time": None if math.isnan(low) else middle, "memory": memory_ratio(record, "learned")}
    for kind, value in found.items():
        goal = GOALS.get((model, kind))
        if goal is not None and value is not None:
            verdict = "met" if value <= goal else "missed"
            notes.append(f"- {record['label']}, learned, {kind}: {value:.3f} of at most {goal}: {verdict}")
    return notes


def write(results: dict[str, Any], path: Path) -> None:
    """Replace the file atomically, so that an interruption leaves the last complete one."""
    write_atomic(path, lambda file: file.write_text(json.dumps(results, indent=1) + "\n"))


def report(results: dict[str, Any], path: Path) -> None:
    table = to_markdown(results)
    path.with_suffix(".md").write_text(table)
    if any("error" not in record for record in results["configurations"]):
        plot(results, path.with_suffix(".png"))
    print(table)
