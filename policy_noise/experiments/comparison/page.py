"""The report page of a comparison: the verdict, a picture, a table, and what they are based on."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..few_shot import summarise
from ..figures import few_shot_curves, forest, rows_of_images, training_diagnostics
from ..pages import details_html, image_html, table_html, write_page
from ..runs import read_lines, write_json
from .overlap import Overlap
from .plan import in_words
from .results import POINT, results_of
from .scoring import transfer_lines
from .sentences import ends, signed, size, verdict

__all__ = ["write_comparison", "write_results"]

CURVES = {
    "loss": "loss: training, dashed on validation",
    "val_f1": "validation: macro F1",
    "val_roc_auc": "validation: ROC-AUC",
    "lr": "learning rate",
}


def write_comparison(folder: Path) -> list[str]:
    """Write ``results.json``, figures and ``report.html`` from the finished runs in a comparison's folder.

    Returns:
        The verdict, in sentences.

    Raises:
        FileNotFoundError: If the folder holds no comparison.
        ValueError: If no seed has the scores of all methods.
    """
    folder = Path(folder)
    results = results_of(folder)
    place = results["environment"]
    last = place.get("resumed", [place])[-1]  # which names all methods and seeds
    lead = (f"{place['date']} on {place['processor']}, {place['device']}", last["command"])
    title = f"Does it help on {results['record']['data']['name']}?"
    gallery, *others = _pictures(folder, results, folder / "figures")
    return write_results(folder, results, title, lead, gallery, [*_data(results), *others, *_recipes(results)])


def write_results(
    folder: Path,
    results: Mapping[str, Any],
    title: str,
    lead: Sequence[str] = (),
    gallery: str = "",
    others: Sequence[str] = (),
) -> list[str]:
    """Write ``results.json``, the forest plot and ``report.html``: verdict and pictures first, then tables.

    Args:
        folder: Where to write.
        results: See :func:`~policy_noise.experiments.comparison.sentences.verdict`.
        title: Of the page.
        lead: When and where, and by which command.
        gallery: HTML to show after the first table.
        others: HTML to show last.

    Returns:
        The verdict, in sentences.
    """
    sentences = verdict(results)
    write_json(folder / "results.json", {"verdict": sentences, **results})
    figures = folder / "figures"
    first, *folded = results["tables"].values()
    reference = results["settings"]["reference"]
    _forest(first, reference, figures / "forest.png")
    body = [
        f"<h1>{html.escape(title)}</h1>",
        *(f'<p class="lead">{html.escape(text)}</p>' for text in lead),
        f"<p><b>{html.escape(sentences[0])}</b></p>",
        image_html(figures / "forest.png", "differences with their intervals"),
        _arms(results, first),
        "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in sentences[1:-1]) + "</ul>",
        f"<p><b>{html.escape(sentences[-1])}</b></p>",
        gallery,
        "<h2>Differences</h2>",
        f"<p>{html.escape(_how(first, reference, len(results['seeds'])))}</p>",
        _differences(first, reference),
        *_over_patients(results),
        "<h2>Means</h2>",
        f"<p>{html.escape(first['metric'])}, means with 95 % t-intervals over seeds.</p>",
        _means(first),
        "<h2>What these seeds could have shown</h2>",
        f"<p>The smallest true difference that would be found with 80 % power at the strictest step of Holm's "
        f"correction, and the number of seeds needed to find a difference of {POINT}. Both are computed from the "
        f"spread over {len(results['seeds'])} seeds, which is itself an estimate.</p>",
        _power(first, reference),
    ]
    for table in folded:
        heading = f"{table['metric']} under each shift" if table is results["tables"].get("shifts") else table["metric"]
        body.append(
            f"<details><summary>{html.escape(heading)}</summary>"
            f"<p>{html.escape(_how(table, reference, len(results['seeds'])))}</p>"
            f"{_differences(table, reference)}{_means(table)}</details>"
        )
    write_page(folder / "report.html", title, [*body, *others])
    return sentences


def _arms(results: Mapping[str, Any], table: Mapping[str, Any]) -> str:
    """One line for each arm: what it does, and its means."""
    keys = [measure["key"] for measure in table["measures"]]
    rows = []
    for method in results["methods"]:
        means = table["means"][method["name"]]
        cells = [f"{means[key][0]:.3f}" for key in keys]
        rows.append([method["name"], *cells, method["about"]])
    head = ["arm", *[measure["label"] for measure in table["measures"]], "what it does"]
    return table_html(head, rows, prose=True)


def _how(table: Mapping[str, Any], reference: str, seeds: int) -> str:
    stars = (
        f"A star marks p < {table['level']:.3g} after Holm's correction for all {table['tests']} tests of this table."
        if table["tests"]
        else "There are too few seeds for a test, or no spread over them."
    )
    return (
        f"{table['metric']} of each arm minus that of {reference}, or of the arm named in the row. {seeds} seeds, "
        f"paired, with 95 % t-intervals. {stars} A spread counts as at least that of the column. Intervals are not "
        "corrected for multiplicity."
    )


def _over_patients(results: Mapping[str, Any]) -> list[str]:
    """The table of intervals over patients."""
    found = results["patients"]
    if not found:
        return []
    pairs = list(dict.fromkeys((row["method"], row["versus"]) for row in found))
    sets = {row["measure"]: row["patients"] for row in found}
    cells = {(row["method"], row["versus"], row["measure"]): ends(row) for row in found}
    names = {m["key"]: m["label"] for table in results["tables"].values() for m in table["measures"]}
    rows = [
        [_name(pair, results["settings"]["reference"]), *[cells.get((*pair, key), "") for key in sets]]
        for pair in pairs
    ]
    head = ["", *[f"{names[key]}, {count} patients" for key, count in sets.items()]]
    return [
        "<p>The same differences, averaged over seeds, with 95 % bootstrap intervals over patients, not corrected.</p>",
        table_html(head, rows),
    ]


def _pairs(table: Mapping[str, Any]) -> list[tuple[str, str]]:
    return list(dict.fromkeys((row["method"], row["versus"]) for row in table["differences"]))


def _of(table: Mapping[str, Any], pair: tuple[str, str], key: str) -> Mapping[str, Any]:
    return next(row for row in table["differences"] if (row["method"], row["versus"]) == pair and row["measure"] == key)


def _name(pair: tuple[str, str], reference: str) -> str:
    """A row's name. It names the second arm only if that is not the reference."""
    return pair[0] if pair[1] == reference else f"{pair[0]} minus {pair[1]}"


def _rows(table: Mapping[str, Any], reference: str, cell: Any) -> str:
    keys = [measure["key"] for measure in table["measures"]]
    rows = [[_name(pair, reference), *[cell(_of(table, pair, key)) for key in keys]] for pair in _pairs(table)]
    return table_html(["", *[measure["label"] for measure in table["measures"]]], rows)


def _differences(table: Mapping[str, Any], reference: str) -> str:
    def cell(row: Mapping[str, Any]) -> str:
        return signed(row) + {"better": "*", "worse": "*", "near chance": " (near chance)"}.get(row["finding"], "")

    return _rows(table, reference, cell)


def _power(table: Mapping[str, Any], reference: str) -> str:
    def cell(row: Mapping[str, Any]) -> str:
        if row["smallest"] is None:
            return "not tested"
        return f"{size(row['smallest'])}; {row['seeds_needed'] or 'over 10000'} seeds for {POINT}"

    return _rows(table, reference, cell)


def _means(table: Mapping[str, Any]) -> str:
    def cell(mean: float, low: float | None, high: float | None) -> str:
        return f"{mean:.3f}" if low is None else f"{mean:.3f} [{low:.3f}, {high:.3f}]"

    measures = table["measures"]
    rows = [[name, *[cell(*means[m["key"]]) for m in measures]] for name, means in table["means"].items()]
    return table_html(["", *[measure["label"] for measure in measures]], rows)


def _forest(table: Mapping[str, Any], reference: str, path: Path) -> None:
    pairs = _pairs(table)
    panels = {m["label"]: [_of(table, pair, m["key"]) for pair in pairs] for m in table["measures"]}
    better = "more" if table["higher"] else "less"
    xlabel = f"{table['metric']} minus {reference}'s, 95 % interval; filled: significant after Holm; {better} is better"
    forest(panels, [_name(pair, reference) for pair in pairs], path, xlabel=xlabel)


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
    if data.get("shifts"):
        words = "the test images under 5 severities of each of its corruptions, made at 224 pixels; F1 and ROC-AUC are "
        rows.append(["MedMNIST-C", f"{data['test']} each", f"{words}the mean of all"])
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
    return ["<h2>Data</h2>", table_html(["", "images", ""], rows, prose=True)]


def _pictures(folder: Path, results: Mapping[str, Any], figures: Path) -> list[str]:
    """The sections on masked images (always the first entry), training curves and few-shot transfer."""
    from PIL import Image

    runs, names = folder / "runs", [method["name"] for method in results["methods"]]
    first = results["seeds"][0]
    strips = {}
    for name in names:
        path = runs / f"{name}-{first}" / "figures" / "seen.png"
        if path.is_file():
            with Image.open(path) as picture:
                strips[name] = np.asarray(picture)
    parts = [""]
    if strips:
        rows_of_images(strips, figures / "gallery.png")
        parts = [
            "<h2>What each arm does to images</h2>"
            f"<p>The same validation images as the classifier would see them in training with seed {first}, in the "
            "last epoch in which the arm is active. Masks leave some images unchanged by design. Normalization of each "
            f"image is not drawn.</p>{image_html(figures / 'gallery.png', 'images under each arm')}"
        ]
    histories = {
        name: [read_lines(runs / f"{name}-{seed}" / "metrics.jsonl") for seed in results["seeds"]] for name in names
    }
    training_diagnostics(histories, figures / "curves.png", CURVES)
    clean = results["record"]["recipe"]["clean_epochs"]
    note = f"The last {clean} epochs have no masks and no intensity changes. " if clean else ""
    parts += [
        "<h2>Training</h2>",
        f"<p>{note}Thin lines are seeds, thick lines their mean.</p>",
        image_html(figures / "curves.png", "training curves"),
    ]
    lines = [
        line | {"init": name}
        for name in names
        for seed in results["seeds"]
        for line in transfer_lines(runs / f"{name}-{seed}")
    ]
    if lines:
        few_shot_curves(summarise(lines, "f1"), figures / "few-shot.png", metric="macro F1")
        parts += ["<h2>Few-shot transfer</h2>", image_html(figures / "few-shot.png", "few-shot curves")]
    return parts


def _recipes(results: Mapping[str, Any]) -> list[str]:
    recipe, place = results["record"]["recipe"], results["environment"]
    equal = ", ".join(
        f"{name} {recipe[name]}"
        for name in ("model", "image_size", "epochs", "batch_size", "optimizer", "lr", "schedule")
    )
    rows = []
    for method in results["methods"]:
        seconds = [run["seconds"] for run in results["runs"] if run["method"] == method["name"]]
        changes = json.dumps(method["changes"]) if method["changes"] else ""
        rows.append([method["name"], changes, in_words(float(np.mean(seconds)))])
    parts = [
        "<h2>Arms and recipe</h2>",
        f"<p>The same for all arms: {html.escape(equal)}. Runs of one seed also share the initial weights, the order "
        "of images and their geometric augmentation.</p>",
        table_html(["arm", "changes to the recipe", "time per run"], rows, prose=True),
    ]
    return [*parts, *details_html({"recipe": recipe, "data": results["record"]["data"], "environment": place})]
