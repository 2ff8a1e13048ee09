"""The report of a run: one self-contained HTML page with its settings and results."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .few_shot import summarise
from .figures import confusion_matrix, few_shot_curves, training_diagnostics
from .pages import details_html, image_html, table_html, table_markdown, write_page
from .recipes import departures, name_of
from .runs import read_json, read_lines

__all__ = ["transfer_table", "write_report"]

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


# The paper's published results on RadImageNet's test split, ResNet-50, from the authors' project page.
METRICS = ("precision", "recall", "f1", "roc_auc", "balanced_accuracy")
PUBLISHED: Mapping[str, tuple[float, ...]] = {
    "published, conventional training": (0.5929, 0.5014, 0.5226, 0.9884, 0.5014),
    "published, policy noise, then fine-tuned": (0.6034, 0.5211, 0.5468, 0.9900, 0.5211),
}
# Macro F1 at 256 images, read off the authors' plots to about .005: policy noise, and conventional RadImageNet
# pretraining (several curves).
PUBLISHED_FEW_SHOT: Mapping[str, tuple[str, str]] = {
    "OrganAMNIST": ("0.61", "0.46 to 0.48"),
    "Breast Cancer US": ("0.61", "0.54 to 0.56"),
    "Brain MRI": ("0.21", "0.08 to 0.14"),
    "Brain Tumour MRI": ("0.83", "0.75 to 0.77"),
}

# What is drawn of a training without and with masks.
PLAIN = {
    "loss": "loss: training, dashed on validation",
    "lr": "learning rate",
    "val_balanced_accuracy": "validation: balanced accuracy",
    "val_f1": "validation: macro F1",
}
POLICY = {
    "loss": "loss: training, dashed on validation",
    "val_balanced_accuracy": "validation: balanced accuracy",
    "reward": "reward (minus loss), masked images",
    "entropy": "entropy of the policy, nats per image",
    "mask_std": "mask: standard deviation",
    "policy_grad_norm": "policy: gradient norm",
}
NAMED = 30
"""Most classes of which the confusion matrix is drawn; ``scores.json`` has it for any number."""

# For data with several labels per image, and for pages that may show either kind.
SEVERAL = NAMES | {"roc_auc": "ROC-AUC, mean over labels", "top1": "labels right"}
EITHER = NAMES | {"roc_auc": "ROC-AUC"}


def write_report(folder: Path) -> Path:
    """Draw the figures that the files in a run's folder allow, and write ``report.html``.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: If the folder holds no run.
    """
    folder = Path(folder)
    if not (folder / "recipe.json").is_file():
        raise FileNotFoundError(f"{folder} holds no run: recipe.json is missing")
    record = read_json(folder / "recipe.json")
    path = folder / "environment.json"
    place = read_json(path) if path.is_file() else {}
    lines = read_lines(folder / "metrics.jsonl")
    figures = folder / "figures"
    recipe = record["recipe"]
    title = f"{record['stage']}: {record['data']['name']}"
    body = [f"<h1>{html.escape(title)}</h1>"]
    for number, where in enumerate([place, *place.get("resumed", [])] if place else []):
        about = f"{where['date']} on {where['processor']}, {where['device']}, {where['processes']} process(es)"
        about = f"resumed {about}" if number else about
        body.append(f'<p class="lead">{html.escape(about)}<br><code>{html.escape(where["command"])}</code></p>')

    if record["stage"] == "transfer":
        body += _transfer(lines, recipe, figures)
    else:
        body += _ancestry(record)
        if lines:
            body += _last_validation(lines, record)
        for path in sorted(folder.glob("scores*.json"), key=lambda path: (len(path.stem), path.stem)):
            scores = read_json(path)
            body += _scores(scores, path.stem, figures)
            if path.stem in ("scores", "scores-averaged"):
                body += _published(scores, record)
        if lines:
            method = "fine-tuning" if record["stage"] == "finetune" else name_of(recipe, record["data"])
            panels = POLICY if any("reward" in line for line in lines) else PLAIN
            training_diagnostics({method: [lines]}, figures / "training.png", panels)
            body += ["<h2>Training</h2>", image_html(figures / "training.png")]
    galleries = sorted(figures.glob("gallery-*.png"))
    if galleries:
        body += ["<h2>Masks over training</h2>", *map(image_html, galleries)]
    body.append("<h2>Recipe and environment</h2>")
    body += details_html({"recipe": recipe, "data": record["data"], "environment": place})
    path = folder / "report.html"
    write_page(path, title, body)
    return path


def _method(record: Mapping[str, Any]) -> str:
    """The kind of a training, in a few words."""
    if record["stage"] == "finetune":
        return "fine-tuned on clean images"
    return name_of(record["recipe"], record["data"])


def _ancestry(record: Mapping[str, Any]) -> list[str]:
    """The earlier trainings of a fine-tuned model, from the first on."""
    if record["stage"] != "finetune":
        return []
    found = record["data"]["init"]
    steps = [
        f"{entry['stage']} on {entry['data']}, {entry['training']}"
        + (f" (preset {entry['preset']})" if entry["preset"] else "")
        for entry in found["ancestry"]
    ]
    head = "its head kept" if found["head"] == "kept" else "with a fresh head"
    text = " → ".join([*steps, f"this run: fine-tuned on {record['data']['name']}, clean images, {head}"])
    return [f"<p>{html.escape(text)}</p>"]


def _last_validation(lines: Sequence[Mapping[str, Any]], record: Mapping[str, Any]) -> list[str]:
    """Cards with the newest validation scores."""
    found = [line for line in lines if "val_f1" in line]
    if not found:
        return ["<p>No epoch has been finished yet.</p>"]
    last = found[-1]
    cards = {"training": _method(record), "epochs": f"{last['epoch']:.0f} of {record['recipe']['epochs']}"}
    for name in ("f1", "balanced_accuracy", "roc_auc"):
        cards[f"validation, {EITHER[name]}"] = f"{last[f'val_{name}']:.3f}"
    loss = [line["loss"] for line in lines if "loss" in line][-1]
    cards["loss, last training step | validation"] = f"{loss:.3f} | {last['val_loss']:.3f}"
    if last.get("files_skipped"):
        cards["unreadable files skipped"] = str(last["files_skipped"])
    inner = "".join(
        f'<div class="card"><b>{html.escape(value)}</b><span>{html.escape(name)}</span></div>'
        for name, value in cards.items()
    )
    return [f'<div class="cards">{inner}</div>']


def _scores(scores: Mapping[str, Any], stem: str, figures: Path) -> list[str]:
    names = NAMES if "confusion" in scores else SEVERAL
    ends = scores.get("intervals", {})
    rows = [
        [names.get(name, name), f"{value:.4f}", "{:.4f} to {:.4f}".format(*ends[name]) if name in ends else ""]
        for name, value in scores["scores"].items()
    ]
    skipped = f", {scores['files_skipped']} unreadable left out" if scores["files_skipped"] else ""
    what = f"Test split of {scores['data']}, {scores['model']}: {scores['images']} images{skipped}"
    parts = [f"<h2>{html.escape(what)}</h2>"]
    if ends:
        parts.append("<p>95 % bootstrap intervals over test images. They do not include variation over seeds.</p>")
        parts.append(table_html(["metric", "value", "95 % interval"], rows))
    else:
        parts.append(table_html(["metric", "value"], [row[:2] for row in rows]))
    if "medmnistc" in scores:
        own = scores["medmnistc"]
        parts.append(
            f"<h3>Under MedMNIST-C's corruptions</h3><p>Balanced error (BE) {own['be']:.3f} and relative balanced "
            f"error (rBE) {own['rbe']:.3f}, AlexNet's being 1; macro F1 {own['f1']:.3f}.</p>"
        )
        rows = [[name.replace("_", " "), f"{error:.3f}"] for name, error in own["errors"].items()]
        parts.append(table_html(["corruption", "1 - balanced accuracy, mean of 5 severities"], rows))
    columns = ["precision", "recall", "f1", "support"]
    for name, groups in scores["groups"].items():
        rows = [[entry["group"], str(entry["classes"]), *_cells(entry, columns)] for entry in groups]
        parts.append(table_html([name, "classes", *columns], rows))
    columns = ["precision", "recall", "specificity", "f1", "roc_auc", "support"]
    rows = [[entry["class"], *_cells(entry, columns)] for entry in scores["per_class"]]
    parts.append(f"<details><summary>every class</summary>{table_html(['class', *columns], rows)}</details>")
    classes = [entry["class"] for entry in scores["per_class"]]
    if "confusion" in scores and len(classes) <= NAMED:
        path = figures / f"confusion-{stem}.png"
        confusion_matrix(scores["confusion"], classes, path)
        parts.append(image_html(path))
    return parts


def _published(scores: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """The paper's results next to this run's, if the run used the paper's recipe."""
    departed = departures(record["recipe"], record["stage"])
    if departed is None:
        return []
    rows = [[name, *[f"{value:.4f}" for value in values]] for name, values in PUBLISHED.items()]
    own = [f"{scores['scores'][name]:.4f}" for name in METRICS]
    rows.append([f"this run, {_method(record)}", *own])
    notes = [f"{name} is {own}, the paper's {theirs}" for name, (own, theirs) in departed.items()]
    if len(scores["per_class"]) != 165:
        notes.insert(0, f"the data are {scores['data']}, not RadImageNet, so the results cannot be compared")
    text = "The same recipe" + (", but for this: " + "; ".join(notes) if notes else " on RadImageNet's 165 classes")
    return [
        "<h3>Beside the paper</h3>",
        table_html(["", *[NAMES[name] for name in METRICS]], rows),
        f"<p>{html.escape(text)}.</p>",
    ]


def _cells(entry: Mapping[str, Any], columns: Sequence[str]) -> list[str]:
    return [str(entry[name]) if isinstance(entry[name], int) else f"{entry[name]:.3f}" for name in columns]


def _transfer(lines: Sequence[Mapping[str, Any]], recipe: Mapping[str, Any], figures: Path) -> list[str]:
    how = "Linear probe" if recipe["mode"] == "linear" else f"Full fine-tuning, {recipe['steps']} steps"
    parts = [
        f"<p>{how}; {recipe['trials']} draws of each sample size, the same for all initialisations. Intervals are over "
        "draws, or, where a label stands for several runs, over the runs' means; they end at 0 and 1, which costs no "
        "coverage.</p>"
    ]
    for metric in ("f1", "roc_auc"):
        summary = summarise(lines, metric)
        if not summary:
            return ["<p>No trial has been finished yet.</p>"]
        path = figures / f"few-shot-{metric}.png"
        name = EITHER[metric]
        few_shot_curves(summary, path, metric=name)
        parts += [f"<h2>{name}: means with 95 % t-intervals</h2>", image_html(path)]
        for data, inits in summary.items():
            parts.append(f"<h3>{html.escape(data)}</h3>{table_html(*_by_shots(inits))}")
    if departures(recipe, "transfer") is not None:
        rows = [[name, *values] for name, values in PUBLISHED_FEW_SHOT.items()]
        header = ["macro F1 at 256 images, read off the paper's plots (± .005)", "policy noise", "conventional"]
        parts += ["<h2>Beside the paper: ResNet-50 pretrained on RadImageNet</h2>", table_html(header, rows)]
    return parts


def _by_shots(inits: Mapping[str, Mapping[int, Any]]) -> tuple[list[str], list[list[str]]]:
    """A table of the scores on one set: a row for each initialisation, a column for each sample size."""
    shots = sorted({n for points in inits.values() for n in points})
    rows = [[init, *[str(points[n]) if n in points else "" for n in shots]] for init, points in inits.items()]
    return ["initialisation", *map(str, shots)], rows


def transfer_table(lines: Sequence[Mapping[str, Any]], metric: str) -> str:
    """The same tables as one in Markdown."""
    tables = {data: _by_shots(inits) for data, inits in summarise(lines, metric).items()}
    header, _ = next(iter(tables.values()))
    return table_markdown(["set", *header], [[data, *row] for data in tables for row in tables[data][1]], texts=2)
