"""The tables and the picture of the results pages and of the evidence page. Nothing is trained here."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.pages import head, row, save_plot
from benchmarks.study.arms import Arm
from benchmarks.study.results import Difference, Results, correct, done, read_results
from benchmarks.study.rule import TASKS, all_rule_jobs, outcome, rule_table, second_stage, taken
from benchmarks.study.suites import (
    JITTER,
    LEARNT,
    MASKS,
    NORMALIZED,
    PLAIN,
    SETTINGS,
    SWAPPED,
    TODAY,
    arms_on_test,
    of_both,
    protocol_jobs,
)
from policy_noise.experiments.shifts import SHIFTS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results" / "runs.jsonl"
EARLIER = FOLDER / "results" / "earlier.jsonl.gz"
"""Test scores of the rounds before this protocol, of the arms that their page shows."""
PAGE = FOLDER / "RESULTS.md"
EARLIER_PAGE = FOLDER / "EARLIER.md"
EVIDENCE = ROOT / "docs" / "evidence.md"
PICTURES = ROOT / "docs" / "_static"

MEASURES = {
    "clean": "clean",
    "shifted": "mean of eight shifts",
    "bias_field": "bias field",
    "brightness": "brightness",
    "gamma": "gamma",
    "contrast": "contrast",
    "blur": "blur",
    "noise": "noise",
    "speckle": "speckle",
    "pixelate": "pixelation",
    "ct2": "unseen CT patient",
    "mr": "MR patient",
    "be": "MedMNIST-C, BE",
    "rbe": "MedMNIST-C, rBE",
}
SHOWN = ("clean", "shifted", "bias_field", "brightness", "contrast", "blur", "noise", "ct2")
"""Of the evidence page's table. The others stand in the heat map and on the results page."""
BY_TASK = ("clean", "bias_field", "brightness", "gamma", "contrast", "blur", "noise", "ct2")
OF_ORGANS = ("ct2", "mr")
OF_PNEUMONIA = ("be", "rbe")
"""Errors: lower is better."""

MADE = {"day": "Run on", "machine": "machine", "torch": "torch", "commit": "code at commit"}
"""What each record says about how it was made."""

FIRST_TASKS = ["first-joined", "first-organs", "first-tumour", "first-pneumonia"]
EARLIER_ROWS: dict[str, tuple[str, list[str]]] = {
    "random": ('random masks, `preset="random"`', TASKS),
    "mild": ("mild: pattern .05, brightness .05", TASKS),
    "pattern": ("pattern .10 alone", TASKS),
    "brightness": ("brightness .20 alone", TASKS),
    "learned": ('learned masks, `preset="learned"`', TASKS),
    "learned-swapped": ("the same, masks swapped", TASKS),
    "cooperative": ("cooperative, entropy not held", TASKS),
    "paper": ('`preset="paper"` (first round)', FIRST_TASKS),
    "color-jitter": ("ColorJitter(0.4, 0.4)", TASKS),
    "color-jitter+random": ("ColorJitter, then random masks", TASKS),
    "bias-field": ("random bias field", TASKS),
    "randaugment": ("RandAugment (first round)", FIRST_TASKS),
    "mixup": ("MixUp (first round)", FIRST_TASKS),
}
EARLIER_SHOWN = {"clean": "clean", "shifted": "mean of eight shifts", "bias_field": "bias fields"} | {
    "medmnist_c": "MedMNIST-C",
    "ct2": "unseen CT patient",
}
EARLIER_PAIRS = {
    ("learned", "random"): "learned minus random masks",
    ("learned", "learned-swapped"): "learned minus the same masks swapped",
    ("cooperative", "random"): "cooperative, entropy not held, minus random",
    ("color-jitter+random", "color-jitter"): "ColorJitter with random masks minus ColorJitter",
}
"""Comparisons that the page of the earlier rounds names."""
LONG_ROWS = {
    "mixup": "MixUp",
    "randaugment": "RandAugment",
    "color-jitter": "ColorJitter(0.4, 0.4)",
    "random": 'random masks, `preset="random"`',
    "learned": 'learned masks, `preset="learned"`',
    "cooperative": "cooperative, entropy not held",
    "color-jitter+random": "ColorJitter, then random masks",
    "color-jitter+cooperative": "ColorJitter, then cooperative",
}
LONG_TASKS = {
    "joined, 240 epochs, and pneumonia, 450, 8 seeds": ["joined-long", "pneumonia-long"],
    "CT organs, 180 epochs, 5 seeds": ["organs-long"],
}


def _tasks_of(measure: str, tasks: list[str]) -> list[str]:
    """Where a measure exists."""
    if measure in OF_ORGANS:
        return [task for task in tasks if task.endswith("organs")]
    if measure in OF_PNEUMONIA:
        return [task for task in tasks if task.endswith("pneumonia")]
    return [task for task in tasks if task in ("organs", "pneumonia")] if measure == "medmnist_c" else tasks


def _differences(
    results: Results, rows: Sequence[tuple[list[str], str, str]], measures: Sequence[str]
) -> list[tuple[Difference | None, ...]]:
    """Differences of rows (tasks, arm, control), measure by measure, Holm-corrected over the rows of each column."""
    columns = [
        [results.difference(_tasks_of(measure, tasks), arm, control, measure) for tasks, arm, control in rows]
        for measure in measures
    ]
    for column in columns:
        correct(column)
    return list(zip(*columns, strict=True))


def _cell(difference: Difference | None) -> str:
    return "" if difference is None else str(difference)


def minus_table(results: Results, arms: Sequence[Arm], control: Arm, measures: Sequence[str] = SHOWN) -> str:
    """Arms minus a control, in the mean over tasks, with their numbers of seeds."""
    titles = {arm.name: arm.title for arm in arms if arm.name != control.name}
    found = _differences(results, [(TASKS, arm, control.name) for arm in titles], measures)
    rows = [
        row([title, str(cells[0].seeds), *map(_cell, cells)])
        for title, cells in zip(titles.values(), found, strict=True)
        if cells[0] is not None
    ]
    if not rows:
        return "*No runs yet.*"
    return "\n".join([*head(["training images", "seeds", *(MEASURES[measure] for measure in measures)]), *rows])


def task_table(results: Results, masks: Arm) -> str:
    """What normalizing does on each task, and what masks do on images as they are and on normalized ones."""
    steps = {
        "normalizing": (NORMALIZED, PLAIN),
        "random masks": (masks, PLAIN),
        "the same on normalized images": (masks.on(NORMALIZED), NORMALIZED),
    }
    rows = [(title, task, arm.name, base.name) for title, (arm, base) in steps.items() for task in TASKS]
    found = _differences(results, [([task], arm, base) for _, task, arm, base in rows], BY_TASK)
    lines = head(["what", "task", *(MEASURES[measure] for measure in BY_TASK)])
    for (title, task, *_), cells in zip(rows, found, strict=True):
        lines.append(row([title, task, *map(_cell, cells)]))
    return "\n".join(lines)


ON_VALIDATION = [NORMALIZED, *(arm for setting in SETTINGS for arm in of_both(setting))]


def _chosen(records: list[dict[str, Any]]) -> Arm | None:
    """The setting that the rule took, as far as the records decide it."""
    return taken(Results(records, "val"), done(records))


def _shown_arms(chosen: Arm | None) -> list[Arm]:
    """The arms on test in the evidence page's order: the default first, under its everyday name."""
    arms = [arm for arm in arms_on_test(chosen) if arm is not PLAIN]
    if chosen is None:
        return arms
    first = [NORMALIZED, *of_both(chosen), JITTER, chosen.on(JITTER), JITTER.on(NORMALIZED)]
    arms = [*first, *(arm for arm in arms if arm not in first)]
    return [replace(arm, title=arm.title.replace(chosen.title, "random masks")) for arm in arms]


def _pairs(masks: Arm) -> dict[tuple[str, str], str]:
    """Single comparisons on test: masks on top of ColorJitter, and learned ones with their controls."""
    on_jitter, normalized = masks.on(JITTER), LEARNT.on(NORMALIZED)
    return {
        (on_jitter.name, JITTER.name): "ColorJitter with random masks minus ColorJitter",
        (LEARNT.name, SWAPPED.name): "learned masks minus the same, swapped",
        (LEARNT.name, MASKS.name): "learned masks minus random ones of their form",
        (normalized.name, SWAPPED.on(NORMALIZED).name): "on normalized images: minus the same, swapped",
        (normalized.name, MASKS.on(NORMALIZED).name): "on normalized images: minus random ones of their form",
    }


def scores_table(results: Results, arms: Sequence[Arm], task: str) -> str:
    """Mean scores of arms on one task."""
    measures = [m for m in MEASURES if results.by_seed([task], PLAIN.name, m)]
    lines = head(["training images", "seeds", *(MEASURES[measure] for measure in measures)])
    for arm in arms:
        found = [list(results.by_seed([task], arm.name, measure).values()) for measure in measures]
        if found and found[0]:
            cells = [f"{np.mean(values):.3f}".replace("0.", ".", 1) for values in found]
            lines.append(row([arm.title, str(len(found[0])), *cells]))
    return "\n".join(lines)


def progress(records: list[dict[str, Any]]) -> str:
    """How many of the declared runs exist."""
    val, known = Results(records, "val"), done(records)
    rule = all_rule_jobs(val, known)
    test = protocol_jobs(taken(val, known))
    counts = [sum(job.key in known for job in jobs) for jobs in (rule, test)]
    return (
        f"{counts[0]} of {len(rule)} validation runs of the rule and {counts[1]} of {len(test)} test runs exist. "
        f"{outcome(val, known)}"
    )


def provenance(records: list[dict[str, Any]]) -> str:
    """Days, machines, versions and commits of the runs."""
    found = {name: sorted({str(record[name]) for record in records if name in record}) for name in MADE}
    return "; ".join(f"{title} {', '.join(found[name])}" for name, title in MADE.items() if found[name])


def earlier_table(results: Results) -> str:
    """The table of the rounds before the protocol."""
    rows = [(tasks, arm, PLAIN.name) for arm, (_, tasks) in EARLIER_ROWS.items()]
    found = _differences(results, rows, list(EARLIER_SHOWN))
    lines = head(["training images", *EARLIER_SHOWN.values()])
    for (title, _), cells in zip(EARLIER_ROWS.values(), found, strict=True):
        lines.append(row([title, *map(_cell, cells)]))
    return "\n".join(lines)


def pairs_table(results: Results, pairs: Mapping[tuple[str, str], str], measures: Sequence[str]) -> str:
    """Single comparisons of two arms, without correction."""
    lines = head(["", *(MEASURES[measure] for measure in measures)])
    for pair, title in pairs.items():
        cells = [results.difference(_tasks_of(measure, TASKS), *pair, measure) for measure in measures]
        lines.append(row([title, *map(_cell, cells)]))
    return "\n".join(lines)


def long_table(results: Results) -> str:
    """The table of long trainings, before the protocol."""
    measures = list(EARLIER_SHOWN)[:3]
    lines = head(["training images", *(EARLIER_SHOWN[measure] for measure in measures)])
    for title, tasks in LONG_TASKS.items():
        lines.append(row([f"*{title}*", *("" for _ in measures)]))
        found = _differences(results, [(tasks, arm, PLAIN.name) for arm in LONG_ROWS], measures)
        for title, cells in zip(LONG_ROWS.values(), found, strict=True):
            if cells[0] is not None:
                lines.append(row([title, *map(_cell, cells)]))
    return "\n".join(lines)


def heat_map(results: Results, rows: Mapping[str, str], path: Path) -> None:
    """Draw arms minus plain under every shift, the mean over tasks.

    Args:
        results: The scores.
        rows: Arms and their titles. Those without scores are left out.
        path: Where to write the PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measures = ["clean", *SHIFTS, "ct2"]
    found = {
        title: [results.difference(_tasks_of(measure, TASKS), arm, PLAIN.name, measure) for measure in measures]
        for arm, title in rows.items()
    }
    found = {title: cells for title, cells in found.items() if cells[0] is not None}
    values = np.array([[np.nan if d is None else d.mean for d in cells] for cells in found.values()])
    seeds = sorted(cells[0].seeds for cells in found.values() if cells[0] is not None)
    figure, axis = plt.subplots(figsize=(9.2, 1.6 + 0.3 * len(found)), layout="constrained")
    image = axis.imshow(values, cmap="RdBu", vmin=-0.3, vmax=0.3, aspect="auto")
    for (place, column), value in np.ndenumerate(values):
        text, colour = f"{value:+.2f}".replace("0.", "."), "white" if abs(value) > 0.2 else "black"
        axis.text(column, place, text, ha="center", va="center", fontsize=8.5, color=colour)
    axis.set_xticks(range(len(measures)), [MEASURES[m] for m in measures], rotation=35, ha="left", fontsize=9)
    axis.set_yticks(range(len(found)), [title.replace("`", "") for title in found], fontsize=9)
    axis.tick_params(axis="x", top=True, labeltop=True, bottom=False, labelbottom=False)
    for edge in (0.5, len(SHIFTS) + 0.5):
        axis.axvline(edge, color="black", linewidth=1)
    figure.colorbar(image, label="better \N{RIGHTWARDS ARROW}", pad=0.01, shrink=0.9)
    of = f"{seeds[0]} to {seeds[-1]} seeds" if seeds[0] < seeds[-1] else f"{seeds[0]} seeds"
    figure.supxlabel(f"test macro F1 minus plain training, mean over three tasks, {of}", fontsize=9)
    save_plot(figure, path)


def put(text: str, content: str, name: str) -> str:
    """Replace the content between a page's markers of this name."""
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(first)
    _, ended, after = rest.partition(last)
    if not (found and ended):
        raise ValueError(f"the page has no markers {first} and {last}")
    return f"{before}{first}\n{content}\n{last}{after}"


def clean_by_task(results: Results) -> str:
    """What the earlier rounds' arms cost on clean images, task by task."""
    arms = {arm: title for arm, (title, tasks) in EARLIER_ROWS.items() if tasks is TASKS}
    lines = head(["training images", *TASKS])
    for arm, title in arms.items():
        cells = [_cell(results.difference([task], arm, PLAIN.name, "clean")) for task in TASKS]
        lines.append(row([title, *cells]))
    return "\n".join(lines)


def results_page(records: list[dict[str, Any]]) -> str:
    """The page of all results of the protocol."""
    val, test = Results(records, "val"), Results(records, "test")
    known, arms = done(records), arms_on_test(_chosen(records))
    parts = [
        "# Results of the protocol",
        progress(records),
        *([f"{provenance(records)}."] if records else ()),
        "[The protocol](PROTOCOL.md) says what is declared. `python -m benchmarks.study report` writes this page. "
        "Macro F1; differences are paired by seed, ± is the 95 % t-interval, given for three seeds or more; * means "
        "p < .05 after Holm's correction over the rows of a column. BE and rBE are errors: lower is better.",
        f"## Rule, validation: settings of masks minus `{TODAY}`, the default before",
        "\n".join(rule_table(val, [*SETTINGS, *second_stage(val, known)])),
    ]
    on_validation = [measure for measure in MEASURES if measure not in (*OF_ORGANS, *OF_PNEUMONIA)]
    parts += [
        "## Validation: minus plain, mean over tasks",
        minus_table(val, ON_VALIDATION, PLAIN, on_validation),
        "## Test: minus plain, mean over tasks",
        minus_table(test, arms, PLAIN, list(MEASURES)),
        "## Test: on normalized images, minus normalized images alone",
        minus_table(test, [arm for arm in arms if arm.normalize], NORMALIZED, list(MEASURES)),
    ]
    for task in TASKS:
        if test.by_seed([task], PLAIN.name, "clean"):
            parts += [f"## Test scores: {task}", scores_table(test, arms, task)]
    return "\n\n".join(parts) + "\n"


def evidence_page(text: str, records: list[dict[str, Any]]) -> str:
    """The evidence page with its tables anew."""
    test, chosen = Results(records, "test"), _chosen(records)
    arms = _shown_arms(chosen)
    parts = {
        "PROGRESS": progress(records),
        "PROTOCOL": minus_table(test, arms, PLAIN),
        "NORMALIZED": minus_table(test, [arm for arm in arms if arm.normalize], NORMALIZED),
        "TASKS": task_table(test, chosen or MASKS),
        "PAIRS": pairs_table(test, _pairs(chosen or MASKS), SHOWN),
    }
    for name, content in parts.items():
        text = put(text, content, name)
    return text


def earlier_page(text: str, earlier: list[dict[str, Any]]) -> str:
    """The page of the earlier rounds with its tables anew."""
    before = Results(earlier, "test")
    parts = {
        "EARLIER": earlier_table(before),
        "PAIRS": pairs_table(before, EARLIER_PAIRS, ["clean", "shifted", *SHIFTS]),
        "CLEAN": clean_by_task(before),
    }
    for name, content in {**parts, "LONG": long_table(before)}.items():
        text = put(text, content, name)
    return text


def write_pages() -> None:
    """Write the results page, the tables of the evidence page and of the earlier rounds, and the heat map."""
    records, earlier = read_results(RESULTS), read_results(EARLIER)
    PAGE.write_text(results_page(records), encoding="utf-8")
    EVIDENCE.write_text(evidence_page(EVIDENCE.read_text(encoding="utf-8"), records), encoding="utf-8")
    EARLIER_PAGE.write_text(earlier_page(EARLIER_PAGE.read_text(encoding="utf-8"), earlier), encoding="utf-8")
    test = Results(records, "test")
    if test.by_seed(TASKS, MASKS.name, "clean"):
        heat_map(test, {arm.name: arm.title for arm in _shown_arms(_chosen(records))}, PICTURES / "heat-map.png")
