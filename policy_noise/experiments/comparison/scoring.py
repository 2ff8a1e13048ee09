"""The scores of a run: on clean test images, under shifts, at each site, and in few-shot transfer."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..batches import outputs
from ..evaluation import medmnistc_scores, predictions
from ..few_shot import compare
from ..initialisation import Initialisation
from ..metrics import classification_metrics
from ..recipes import TrainRecipe
from ..runs import Run, read_lines, write_atomic
from ..shifts import SEVERITIES, SHIFTS
from ..world import World
from .plan import Job, Plan
from .sites import among

__all__ = ["METRICS", "score_run", "transfer_lines"]

METRICS = {"f1": "macro F1", "roc_auc": "ROC-AUC"}


def score_run(plan: Plan, job: Job, model: nn.Module, recipe: TrainRecipe, here: World) -> dict[str, dict[str, float]]:
    """Score a trained model on all test data of the plan.

    Returns:
        Macro ``f1`` and ``roc_auc`` under the keys ``"clean"``, ``"site:NAME"``, ``"shift:NAME:SEVERITY"`` and
        ``"few-shot:SET:IMAGES"``; the last are means over draws. ``"medmnistc"``, if asked for, is that of
        :func:`~policy_noise.experiments.evaluation.medmnistc_scores`.
    """
    import pandas as pd

    tables = []
    names = (*METRICS, "balanced_accuracy") if plan.medmnistc else tuple(METRICS)

    def scored(key: str, split: Any, classes: tuple[int, ...] | None = None) -> dict[str, Any]:
        positions, probabilities = outputs(model, split, recipe, here, multi_label=plan.data.multi_label)
        if classes is not None:
            probabilities = among(probabilities, classes, renormalise=not plan.data.multi_label)
        found = classification_metrics(split.labels[positions], probabilities)
        if not key.startswith("shift:"):
            named = [plan.data.class_names[place] for place in classes or range(plan.data.num_classes)]
            tables.append(predictions(key, split, positions, probabilities, named))
        skipped = len(split) - len(positions)
        return {name: found[name] for name in names} | ({"files_skipped": skipped} if skipped else {})

    scores = {"clean": scored("clean", plan.data.test)}
    scores |= {f"site:{site.name}": scored(f"site:{site.name}", site.images, site.classes) for site in plan.sites}
    for name in SHIFTS:
        for severity in SEVERITIES:
            key = f"shift:{name}:{severity}"
            scores[key] = scored(key, plan.shifted(name, severity))
    if plan.medmnistc:
        scores["medmnistc"] = medmnistc_scores(
            plan.data,
            scores["clean"]["balanced_accuracy"],
            lambda name, severity: scored("shift:", plan.shifted(name, severity)),
        )
    if here.main:
        whole = pd.concat(tables, ignore_index=True)
        write_atomic(
            plan.folder(job) / "predictions.csv",
            lambda path: whole.to_csv(path, index=False, float_format="%.5f"),
        )
    return scores | (_few_shot(plan, job, recipe, here) if plan.targets else {})


def transfer_lines(folder: Path) -> list[dict[str, Any]]:
    """A run's few-shot trials. Trials from before the folder was moved are skipped, because they were run again."""
    lines = read_lines(folder / "transfer" / "metrics.jsonl")
    return [line for line in lines if line["source"] == lines[-1]["source"]]


def _few_shot(plan: Plan, job: Job, recipe: TrainRecipe, here: World) -> dict[str, dict[str, float]]:
    """Run the few-shot transfer of ``policy-noise transfer`` from this run. Finished trials are not repeated."""
    folder = plan.folder(job)
    init = Initialisation(
        job.method.name,
        str(folder / "model.safetensors"),
        recipe.model,
        recipe.in_chans,
        recipe.model_options,
        (recipe.mean, recipe.std),
        normalize_images=recipe.normalize_images,
    )
    sizes = {target.name: [len(part) for part in target.parts.values()] for target in plan.targets}
    record = {"name": ", ".join(sizes), "sets": sizes, "init": job.name}
    place = folder / "transfer"
    run = here.agree(lambda: Run(place, "transfer", plan.transfer, record, resume=True, writes=here.main))
    compare(run, plan.transfer, plan.targets, [init], here)
    here.barrier()
    lines = transfer_lines(folder)
    scores = {}
    for target in plan.targets:
        for shots in plan.transfer.shots:
            mine = [line for line in lines if line["data"] == target.name and line["shots"] == shots]
            means = {name: float(np.mean([line[name] for line in mine])) for name in METRICS}
            scores[f"few-shot:{target.name}:{shots}"] = means
    return scores
