"""One self-contained HTML page a run: a person opens it and reads what was done and what came out."""

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .figures import LABELS, confusion_matrix, few_shot_curves, training_diagnostics
from .runs import read_lines, write_atomic
from .transfer import summarise

__all__ = ["transfer_table", "write_report"]

CSS = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto; max-width: 1120px;
  padding: 24px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 32px 0 8px; border-bottom: 1px solid #ddd; }
p.lead { color: #666; margin: 0 0 16px; overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 8px 0 16px; font-size: 13.5px; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
th, td { text-align: left; padding: 4px 14px 4px 0; border-bottom: 1px solid #eee; vertical-align: top; }
th { font-weight: 600; border-bottom-color: #bbb; } td + td, th + th { white-space: nowrap; }
img { max-width: 100%; height: auto; display: block; margin: 12px 0; }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 16px 0; }
.card { border: 1px solid #ddd; border-radius: 8px; padding: 8px 16px; min-width: 110px; }
.card b { display: block; font-size: 22px; } .card span { color: #666; font-size: 13px; }
details { margin: 8px 0; } summary { cursor: pointer; color: #0072b2; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
"""

NAMES = {
    "f1": "macro F1",
    "balanced_accuracy": "balanced accuracy",
    "roc_auc": "ROC-AUC, one-vs-one",
    "precision": "macro precision",
    "recall": "macro recall",
    "top1": "top-1",
    "top5": "top-5",
    "medmnist_auc": "AUC (MedMNIST)",
    "medmnist_acc": "ACC (MedMNIST)",
}


# Of sets with several labels an image, and where there may be either.
SEVERAL = NAMES | {"roc_auc": "ROC-AUC, mean over labels", "top1": "labels right"}
EITHER = NAMES | {"roc_auc": "ROC-AUC"}


def write_report(folder: Path) -> Path:
    """Draw a run's pictures that can be drawn from its files, and write ``report.html``.

    Args:
        folder: The run's folder.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: If the folder holds no run.
    """
    folder = Path(folder)
    if not (folder / "recipe.json").is_file():
        raise FileNotFoundError(f"{folder} holds no run: recipe.json is missing")
    record = json.loads((folder / "recipe.json").read_text(encoding="utf-8"))
    place = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    lines = read_lines(folder / "metrics.jsonl")
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    recipe = record["recipe"]
    title = f"{record['stage']}: {record['data']['name']}"
    body = [f"<h1>{html.escape(title)}</h1>"]
    about = f"{place['date']} on {place['processor']}, {place['device']}, {place['processes']} process(es)"
    body.append(f'<p class="lead">{html.escape(about)}<br><code>{html.escape(place["command"])}</code></p>')

    if record["stage"] == "transfer":
        body += _transfer(lines, recipe, figures)
    else:
        if lines:
            method = recipe.get("noise", "conventional")
            panels = None if any("reward" in line for line in lines) else _PLAIN
            training_diagnostics({method: [lines]}, figures / "training.png", panels=panels)
            body += _last_validation(lines, recipe)
        for path in sorted(folder.glob("scores*.json")):
            body += _scores(json.loads(path.read_text(encoding="utf-8")), path.stem, figures)
    shown = {
        "training.png": "Training",
        "classes.png": "Training images of each class",
        "intensities.png": "Grey values of the training images",
    }
    for name, heading in shown.items():
        if (figures / name).is_file():
            body += [f"<h2>{heading}</h2>", _image(figures / name)]
    galleries = sorted(figures.glob("gallery-*.png"))
    if galleries:
        body += ["<h2>Masks over training</h2>", *map(_image, galleries)]
    body.append("<h2>Recipe and environment</h2>")
    for heading, value in (("recipe", recipe), ("data", record["data"]), ("environment", place)):
        text = html.escape(json.dumps(value, indent=2))
        body.append(f"<details><summary>{heading}</summary><pre>{text}</pre></details>")
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{CSS}</style></head><body>{''.join(body)}</body></html>"
    )
    path = folder / "report.html"
    write_atomic(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return path


_PLAIN = {
    "loss": "training loss",
    "lr": "learning rate",
    "val_balanced_accuracy": "validation: balanced accuracy",
    "val_f1": "validation: macro F1",
}


def _last_validation(lines: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any]) -> list[str]:
    """Cards with the newest validation scores."""
    found = [line for line in lines if "val_f1" in line]
    if not found:
        return ["<p>No epoch has been finished yet.</p>"]
    last = found[-1]
    cards = {
        f"validation, {EITHER[name]}": f"{last[f'val_{name}']:.3f}" for name in ("f1", "balanced_accuracy", "roc_auc")
    }
    cards = {"training": LABELS[recipe["noise"]], "epochs": f"{last['epoch']:.0f} of {recipe['epochs']}", **cards}
    if last.get("files_skipped"):
        cards["unreadable files skipped"] = str(last["files_skipped"])
    inner = "".join(
        f'<div class="card"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
        for name, value in cards.items()
    )
    return [f'<div class="cards">{inner}</div>']


def _scores(scores: Mapping[str, Any], stem: str, figures: Path) -> list[str]:
    names = NAMES if "confusion" in scores else SEVERAL
    rows = [[names.get(name, name), f"{value:.4f}"] for name, value in scores["scores"].items()]
    parts = [
        f"<h2>Test split of {html.escape(scores['data'])}: {scores['images']} images</h2>",
        _table(["metric", "value"], rows),
    ]
    columns = ["precision", "recall", "f1", "support"]
    for name, groups in scores["groups"].items():
        rows = [[entry["group"], str(entry["classes"]), *_cells(entry, columns)] for entry in groups]
        parts.append(_table([name, "classes", *columns], rows))
    rows = [[entry["class"], *_cells(entry, columns)] for entry in scores["per_class"]]
    parts.append(f"<details><summary>every class</summary>{_table(['class', *columns], rows)}</details>")
    if "confusion" in scores:
        path = figures / f"confusion-{stem}.png"
        confusion_matrix(scores["confusion"], [entry["class"] for entry in scores["per_class"]], path)
        parts.append(_image(path))
    return parts


def _cells(entry: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    return [str(entry[name]) if isinstance(entry[name], int) else f"{entry[name]:.3f}" for name in columns]


def _transfer(lines: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any], figures: Path) -> list[str]:
    how = "Linear probe" if recipe["mode"] == "linear" else f"Full fine-tuning, {recipe['steps']} steps"
    parts = [
        f"<p>{how}; {recipe['trials']} draws of each sample size, the same for all initialisations. Intervals are over "
        "draws, or, where a label stands for several runs, over the runs' means.</p>"
    ]
    for metric in ("f1", "roc_auc"):
        summary = summarise(lines, metric)
        if not summary:
            return ["<p>No trial has been finished yet.</p>"]
        path = figures / f"few-shot-{metric}.png"
        name = EITHER[metric]
        few_shot_curves(summary, path, metric=name)
        parts += [f"<h2>{name}: means with 95 % t-intervals</h2>", _image(path)]
        for data, inits in summary.items():
            shots = sorted({n for points in inits.values() for n in points})
            rows = [
                [LABELS.get(init, init), *[str(points[n]) if n in points else "" for n in shots]]
                for init, points in inits.items()
            ]
            parts.append(f"<h3>{html.escape(data)}</h3>{_table(['initialisation', *map(str, shots)], rows)}")
    return parts


def transfer_table(lines: Sequence[Mapping[str, Any]], metric: str) -> str:
    """The same table as Markdown."""
    rows: list[list[str]] = []
    for data, inits in summarise(lines, metric).items():
        shots = sorted({n for points in inits.values() for n in points})
        if not rows:
            rows += [["set", "initialisation", *map(str, shots)], ["---"] * (2 + len(shots))]
        rows += [[data, LABELS.get(init, init), *[str(points[n]) for n in shots]] for init, points in inits.items()]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in header)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'


def _image(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'
