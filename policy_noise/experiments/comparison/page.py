"""The report page of a comparison: the verdict, a picture, a table, and what they are based on."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..figures import few_shot_curves, forest, rows_of_images, training_diagnostics
from ..pages import image_html, table_html, write_page
from ..runs import read_lines, write_json
from ..transfer import summarise
from .methods import REFERENCE
from .overlap import Overlap
from .plan import in_words
from .results import ALPHA, POINT, results_of
from .scoring import transfer_lines
from .verdict import finding, signed, size, verdict

__all__ = ["write_comparison"]

CURVES = {
    "loss": "loss: training, dashed on validation",
    "val_f1": "validation: macro F1",
    "val_roc_auc": "validation: ROC-AUC",
    "lr": "learning rate",
}


def write_comparison(folder: Path) -> list[str]:
    """Write ``results.json``, figures and ``report.html`` from the finished runs of a comparison.

    Args:
        folder: The comparison's folder.

    Returns:
        The verdict, in sentences.

    Raises:
        FileNotFoundError: If the folder holds no comparison.
        ValueError: If no seed has the scores of all methods.
    """
    folder = Path(folder)
    results = results_of(folder)
    sentences = verdict(results)
    write_json(folder / "results.json", {"verdict": sentences, **results})
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    labels = {method["name"]: method["name"] for method in results["methods"]}
    data, place = results["record"]["data"], results["environment"]
    last = place.get("resumed", [place])[-1]  # which names all methods and seeds
    title = f"Does it help on {data['name']}?"
    about = f"{place['date']} on {place['processor']}, {place['device']}"
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="lead">{html.escape(about)}<br><code>{html.escape(last["command"])}</code></p>',
        "<h2>Verdict</h2>",
        f"<p><b>{html.escape(sentences[0])}</b></p>",
        "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in sentences[1:]) + "</ul>",
    ]
    if results["missing"]:
        left = f"{len(results['missing'])} runs are not finished; only seeds with all methods count."
        body.append(f"<p>{html.escape(left)}</p>")
    table = results["tables"]["f1"]
    _forest(table, labels, figures / "forest.png")
    body += [
        "<h2>Differences</h2>",
        "<p>Macro F1 is the mean of the F1 scores of all classes, between 0 and 1.</p>",
        f"<p>{html.escape(_how(table, len(results['seeds'])))}</p>",
        image_html(figures / "forest.png", "differences with their intervals"),
        _differences(table, labels),
        "<h2>What these seeds could have shown</h2>",
        f"<p>The smallest true difference that would be found with 80 % power at the strictest step of Holm's "
        f"correction, and the number of seeds needed to find a difference of {POINT}. Both are computed from the "
        f"spread over {len(results['seeds'])} seeds, which is itself an estimate.</p>",
        _power(table, labels),
        "<h2>Means of macro F1</h2>",
        "<p>Means with 95 % t-intervals over seeds.</p>",
        _means(table, labels),
        *_data(results),
    ]
    for key, heading in (("shifts", "Macro F1 under each shift"), ("roc_auc", "ROC-AUC")):
        other = results["tables"][key]
        body.append(
            f"<details><summary>{heading}</summary><p>{html.escape(_how(other, len(results['seeds'])))}</p>"
            f"{_differences(other, labels)}{_means(other, labels)}</details>"
        )
    body += _pictures(folder, results, labels, figures)
    body += _recipes(results, labels)
    write_page(folder / "report.html", title, body)
    return sentences


def _how(table: Mapping[str, Any], seeds: int) -> str:
    stars = (
        f"A star marks p < {ALPHA} after Holm's correction for all {table['tests']} tests of this table."
        if any(row["p"] is not None for row in table["differences"])
        else "There are too few seeds for a test."
    )
    return (
        f"Mean {table['metric_label']} of each method minus that of {REFERENCE}, or of the method named in "
        f"the row. {seeds} seeds, paired, with 95 % t-intervals. {stars} Intervals are not corrected for multiplicity."
    )


def _pairs(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["method"], row["versus"]) for row in table["differences"]))


def _of(table: Mapping[str, Any], pair: tuple[str, str], key: str) -> Mapping[str, Any]:
    return next(row for row in table["differences"] if (row["method"], row["versus"]) == pair and row["measure"] == key)


def _name(pair: tuple[str, str], labels: Mapping[str, str]) -> str:
    """A row's name. It names the second method only if that is not the reference."""
    return labels[pair[0]] if pair[1] == REFERENCE else f"{labels[pair[0]]} minus {labels[pair[1]]}"


def _rows(table: Mapping[str, Any], labels: Mapping[str, str], cell: Any) -> str:
    keys = [measure["key"] for measure in table["measures"]]
    rows = [[_name(pair, labels), *[cell(_of(table, pair, key)) for key in keys]] for pair in _pairs(table)]
    return table_html(["", *[measure["label"] for measure in table["measures"]]], rows)


def _differences(table: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    return _rows(table, labels, lambda row: signed(row) + "*" * (finding(row) in ("better", "worse")))


def _power(table: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    def cell(row: Mapping[str, Any]) -> str:
        if row["smallest"] is None:
            return "too few seeds" if row["p"] is None else "unknown: no spread over seeds"
        return f"{size(row['smallest'])}; {row['seeds_for_a_point'] or 'over 10000'} seeds for {POINT}"

    return _rows(table, labels, cell)


def _means(table: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    def cell(values: Sequence[float | None]) -> str:
        mean, low, high = values
        return f"{mean:.3f}" if low is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]"

    measures = table["measures"]
    rows = [[labels[name], *[cell(means[m["key"]]) for m in measures]] for name, means in table["means"].items()]
    return table_html(["", *[measure["label"] for measure in measures]], rows)


def _forest(table: Mapping[str, Any], labels: Mapping[str, str], path: Path) -> None:
    pairs = _pairs(table)
    panels = {m["label"]: [_of(table, pair, m["key"]) for pair in pairs] for m in table["measures"]}
    xlabel = f"difference of {table['metric_label']}, 95 % interval; filled: p < {ALPHA} after Holm's correction"
    forest(panels, [_name(pair, labels) for pair in pairs], path, xlabel=xlabel, alpha=ALPHA)


def _data(results: Mapping[str, Any]) -> list[str]:
    """The section on the training and test data."""
    data = results["record"]["data"]

    def shared(key: str) -> str:
        if key not in results["overlaps"]:
            return ""
        found = Overlap(**results["overlaps"][key])
        return f"; {found.shared} of {found.images} images are training images too, {found.instance}"

    rows = [
        ["training", str(data["train"]), f"{data['classes']} classes of {data['name']}"],
        ["validation", str(data["val"]), f"the same; only for curves, nothing is chosen by it{shared('val')}"],
        ["clean test images", str(data["test"]), f"the same{shared('clean')}"],
        [
            "eight shifts",
            f"{data['test']} each",
            "the test images under 3 severities of each shift; scores are the mean of all",
        ],
    ]
    for site in data["sites"]:
        words = f"{len(site['classes'])} shared classes; predictions are made among these"
        words += f"; left out, as not trained on: {', '.join(site['unknown'])}" if site["unknown"] else ""
        words += f"; not there: {', '.join(site['absent'])}" if site["absent"] else ""
        words += shared(f"site:{site['name']}")
        rows.append([f"site {site['name']}, only tested on", str(site["images"]), words])
    for target in data["targets"]:
        shots = ", ".join(map(str, data["transfer"]["shots"]))
        how = "a linear probe" if data["transfer"]["mode"] == "linear" else "fine-tuning"
        words = (
            f"{how} on {shots} of {target['train']} images, {data['transfer']['trials']} draws each; scores are the "
            "mean of all"
        )
        words += shared(f"few-shot:{target['name']}")
        rows.append([f"few-shot, {target['name']}", str(target["test"]), words])
    # The last column holds sentences, which may wrap.
    return ["<h2>Data</h2>", '<div class="prose">', table_html(["", "images", ""], rows), "</div>"]


def _pictures(folder: Path, results: Mapping[str, Any], labels: Mapping[str, str], figures: Path) -> list[str]:
    """The sections on masked images, training curves and few-shot transfer."""
    from PIL import Image

    runs = folder / "runs"
    first = results["seeds"][0]
    strips = {}
    for name, label in labels.items():
        path = runs / f"{name}-{first}" / "figures" / "seen.png"
        if path.is_file():
            with Image.open(path) as picture:
                strips[label] = np.asarray(picture)
    parts = []
    if strips:
        rows_of_images(strips, figures / "gallery.png")
        parts += [
            "<h2>What each method does to images</h2>",
            f"<p>The same validation images as the classifier would see them in training with seed {first}, in the "
            "last epoch in which the method is active. Masks leave some images unchanged by design.</p>",
            image_html(figures / "gallery.png", "images under each method"),
        ]
    histories = {
        label: [read_lines(runs / f"{name}-{seed}" / "metrics.jsonl") for seed in results["seeds"]]
        for name, label in labels.items()
    }
    training_diagnostics(histories, figures / "curves.png", panels=CURVES)
    clean = results["record"]["recipe"]["clean_epochs"]
    note = f"The last {clean} epochs have no masks and no intensity changes. " if clean else ""
    parts += [
        "<h2>Training</h2>",
        f"<p>{note}Thin lines are seeds, thick lines their mean.</p>",
        image_html(figures / "curves.png", "training curves"),
    ]
    lines = [
        line | {"init": labels[name]}
        for name in labels
        for seed in results["seeds"]
        for line in transfer_lines(runs / f"{name}-{seed}")
    ]
    if lines:
        few_shot_curves(summarise(lines, "f1"), figures / "few-shot.png", metric="macro F1")
        parts += ["<h2>Few-shot transfer</h2>", image_html(figures / "few-shot.png", "few-shot curves")]
    return parts


def _recipes(results: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    recipe, place = results["record"]["recipe"], results["environment"]
    equal = ", ".join(
        f"{name} {recipe[name]}"
        for name in ("model", "image_size", "epochs", "batch_size", "optimizer", "lr", "schedule")
    )
    seconds = {name: [run["seconds"] for run in results["runs"] if run["method"] == name] for name in labels}
    rows = [
        [method["name"], method["about"], json.dumps(method["changes"]) if method["changes"] else ""]
        for method in results["methods"]
    ]
    rows = [[*row, in_words(float(np.mean(seconds[row[0]])))] for row in rows]
    parts = [
        "<h2>Methods and recipes</h2>",
        f"<p>The same for all methods: {html.escape(equal)}. Runs of one seed also share the initial weights, the "
        f"order of images and their geometric augmentation. All are compared with {labels[REFERENCE]}.</p>",
        '<div class="prose">',
        table_html(["method", "what it does", "changes to the recipe", "time per run"], rows),
        "</div>",
    ]
    shown = {"recipe": recipe, "data": results["record"]["data"], "environment": place}
    for heading, value in shown.items():
        text = html.escape(json.dumps(value, indent=2))
        parts.append(f"<details><summary>{heading}</summary><pre>{text}</pre></details>")
    return parts
