"""The study in two tables and one picture, from the committed results.

Usage: python -m benchmarks.study.evidence

Writes the tables between the markers of docs/evidence.md, and docs/_static/evidence.png. Nothing is trained.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pages import head
from benchmarks.pages import row as row_of
from benchmarks.study.comparisons import Comparison, compare
from benchmarks.study.results import Results, read_results
from benchmarks.study.suites import HALF_TASKS, MAIN_TASKS
from policy_noise.experiments.statistics import holm

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
PAGE = ROOT / "docs" / "evidence.md"
PICTURE = ROOT / "docs" / "_static" / "evidence.png"
MARKERS = "EVIDENCE"
LONG_MARKERS = "LONG"

MAIN = (
    "entropy",
    "fixed-std",
    "broad-cells",
    "brightness-alone",
    "augment",
    "milder-noise",
    "learned-augment",
    "jitter",
)
"""Suites on three tasks, on CPU. ``entropy`` repeats runs of the others, whose records count: it stands first."""
FIRST = ("free-strength",)
"""The first round: four tasks, on one GPU."""
MEASURES = {
    "clean": "clean",
    "shifted": "mean of eight shifts",
    "bias_field": "bias fields",
    "medmnist_c": "MedMNIST-C",
    "ct2": "unseen CT patient",
}
SHOWN = ("clean", "shifted", "bias_field")


HELD = "adv-2x2-dose10-level20-entropy075-centred"
"""The condition that preset="learned" has."""


@dataclass(frozen=True)
class Row:
    """A row of the table: a condition and its name for readers."""

    group: str
    condition: str
    name: str
    suites: tuple[str, ...] = MAIN


ROWS = (
    Row("random", "frozen-2x2-dose10-level20", 'random masks, `preset="random"`'),
    Row("random", "frozen-2x2-dose5-level", "mild: pattern .05, brightness .05"),
    Row("random", "frozen-2x2-dose10", "pattern .10 alone"),
    Row("random", "frozen-1x1-dose20-level", "brightness .20 alone"),
    Row("learned", HELD, 'learned masks, `preset="learned"`'),
    Row("learned", f"{HELD}-shuffled", "the same, masks swapped"),
    Row("learned", "coop-2x2-dose10-level20", "cooperative, entropy not held"),
    Row("learned", "paper", '`preset="paper"` (first round)', FIRST),
    Row("by hand", "color-jitter", "ColorJitter(0.4, 0.4)"),
    Row("by hand", "color-jitter-2x2-dose10-level20", "ColorJitter, then random masks"),
    Row("by hand", "bias-field", "random bias field"),
    Row("by hand", "randaugment", "RandAugment (first round)", FIRST),
    Row("by hand", "mixup", "MixUp (first round)", FIRST),
)

LONG = {"long": ("all",), "long-ct": ()}
"""Suites of five times the epochs, and the mean over tasks where it is shown."""
LONG_ROWS = {
    "mixup": "MixUp",
    "randaugment": "RandAugment",
    "color-jitter": "ColorJitter(0.4, 0.4)",
    "frozen-2x2-dose10-level20": 'random masks, `preset="random"`',
    HELD: 'learned masks, `preset="learned"`',
    "coop-2x2-dose10-level20": "cooperative, entropy not held",
    "color-jitter-2x2-dose10-level20": "ColorJitter, then random masks",
    "color-jitter-coop-2x2-dose10-level20": "ColorJitter, then cooperative",
}
LONG_TASKS = {
    "all": "mean of the next two tasks",
    "joined-half-long": "joined, 240 epochs",
    "pneumonia-half-long": "pneumonia, 450 epochs",
    "organs-half-long": "CT organs, 180 epochs",
}
FEWEST_SEEDS = 3
"""Fewest seeds for an interval."""


def collect() -> dict[tuple[str, str], Comparison]:
    """Differences from plain training by condition and measure, Holm-corrected over the rows of each measure."""
    found: dict[tuple[str, str], Comparison] = {}
    for suites, tasks in ((MAIN, HALF_TASKS), (FIRST, MAIN_TASKS)):
        wanted = {"plain", *(row.condition for row in ROWS if row.suites == suites)}
        records = [record for suite in suites for record in read_results(RESULTS / suite / "runs.jsonl.gz")]
        kept = [record for record in records if record["condition"] in wanted and record["task"] in tasks]
        results = Results(kept, "test")
        for row in ROWS:
            for measure in MEASURES if row.suites == suites else ():
                comparison = compare(results, "all", row.condition, "plain", measure)
                if comparison is not None:
                    found[row.condition, measure] = comparison
    for measure in MEASURES:
        _correct([comparison for (_, name), comparison in found.items() if name == measure])
    return found


def _correct(column: list[Comparison]) -> None:
    """Holm's correction over a table's column."""
    for comparison, adjusted in zip(column, holm([c.p_value for c in column]), strict=True):
        comparison.p_holm = float(adjusted)


def collect_long() -> dict[tuple[str, str, str], Comparison]:
    """Differences from plain training in long trainings by task, condition and measure, Holm-corrected by column."""
    found: dict[tuple[str, str, str], Comparison] = {}
    for suite, means in LONG.items():
        results = Results(read_results(RESULTS / suite / "runs.jsonl.gz"), "test")
        enough = [task for task in results.tasks if len(results.values(task, "plain", "clean")) >= FEWEST_SEEDS]
        for task in (*means, *enough):
            for measure in SHOWN:
                column = {name: compare(results, task, name, "plain", measure) for name in LONG_ROWS}
                found |= {(task, name, measure): c for name, c in column.items() if c is not None}
                _correct([c for c in column.values() if c is not None])
    return found


def long_table(found: dict[tuple[str, str, str], Comparison]) -> str:
    """The table of long trainings in Markdown, one group of rows per task, with its number of seeds."""
    lines = head(["training images", *(MEASURES[measure] for measure in SHOWN)])
    for task in dict.fromkeys(task for task, _, _ in found):
        seeds = next(comparison for (named, _, _), comparison in found.items() if named == task).seeds
        lines.append(row_of([f"*{LONG_TASKS[task]}, {seeds} seeds*", *("" for _ in SHOWN)]))
        for name, title in ((name, title) for name, title in LONG_ROWS.items() if (task, name, "clean") in found):
            lines.append(row_of([title, *(_cell(found.get((task, name, measure))) for measure in SHOWN)]))
    return "\n".join(lines)


def _cell(comparison: Comparison | None) -> str:
    if comparison is None:
        return ""
    star = "*" if comparison.p_holm < 0.05 else ""
    text = f"{comparison.mean:+.3f}\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}{comparison.high - comparison.mean:.3f}{star}"
    return text.replace("0.", ".")


def table(found: dict[tuple[str, str], Comparison]) -> str:
    """The table in Markdown."""
    lines = [f"| training images | {' | '.join(MEASURES.values())} |", "|---" * (1 + len(MEASURES)) + "|"]
    group = ""
    for row in ROWS:
        if row.group != group:
            group = row.group
            lines.append(f"| *{group}* |{' |' * len(MEASURES)}")
        cells = " | ".join(_cell(found.get((row.condition, measure))) for measure in MEASURES)
        lines.append(f"| {row.name} | {cells} |")
    return "\n".join(lines)


def plot(found: dict[tuple[str, str], Comparison], path: Path) -> None:
    """Plot dots with 95 % intervals, one panel per measure on a common scale. Hollow dots are from the first round."""
    from matplotlib.figure import Figure

    colours = {"random": "#e69f00", "learned": "#0072b2", "by hand": "#6b6b6b"}
    places: dict[str, float] = {}
    place = 0.0
    for number, row in enumerate(ROWS):
        place += 1.6 if number and row.group != ROWS[number - 1].group else 1.0
        places[row.condition] = place
    figure = Figure(figsize=(9.2, 4.6), layout="constrained")
    panels: Any = figure.subplots(1, len(SHOWN), sharex=True, sharey=True)
    for axes, measure in zip(panels, SHOWN, strict=True):
        axes.axvline(0, color="#222222", linewidth=0.8)
        for row in ROWS:
            comparison = found[row.condition, measure]
            axes.errorbar(
                comparison.mean,
                places[row.condition],
                xerr=comparison.high - comparison.mean,
                fmt="o",
                color=colours[row.group],
                markerfacecolor="white" if row.suites == FIRST else colours[row.group],
                markersize=6,
                elinewidth=1.4,
            )
        axes.set_xticks([0.0, 0.1, 0.2], ["0", "+.10", "+.20"])
        axes.set_title(MEASURES[measure], fontsize=10, loc="left", fontweight="bold")
        axes.grid(axis="x", color="#e5e5e5", linewidth=0.7)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(labelsize=8.5)
    panels[0].set_yticks([places[row.condition] for row in ROWS], [row.name.replace("`", "") for row in ROWS])
    for label, row in zip(panels[0].get_yticklabels(), ROWS, strict=True):
        label.set_color(colours[row.group])
    panels[0].invert_yaxis()
    figure.supxlabel("test macro F1 minus plain training, mean over tasks, 95 % interval", fontsize=9)
    figure.savefig(path, dpi=110)


def put(text: str, content: str, name: str = MARKERS) -> str:
    """Replace the content between a page's markers of this name."""
    first, last = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, _, rest = text.partition(first)
    _, _, after = rest.partition(last)
    return f"{before}{first}\n{content}\n{last}{after}"


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    comparisons = collect()
    page = put(PAGE.read_text(encoding="utf-8"), table(comparisons))
    page = put(page, long_table(collect_long()), LONG_MARKERS)
    print(page)
    PAGE.write_text(page, encoding="utf-8")
    plot(comparisons, PICTURE)
