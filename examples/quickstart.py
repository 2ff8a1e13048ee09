"""A first real run: a classifier of organs under a learned noise mask, against its controls.

Trains on CT patches of one patient: conventionally, under frozen noise (masks from the same policy, which never
learns) and under policy noise, from equal weights, on equal batches, for equally many epochs. Each model is then
fine-tuned on clean images and taken to another patient and to MR. Prints one table and writes pictures. A few
minutes on 2 CPU cores:

    python examples/quickstart.py --output outputs/quickstart
"""

import argparse
import datetime
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import timm
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score
from torch import nn
from tqdm import tqdm

import policy_noise
from policy_noise.experiments.data import ImageSet, Split, to_tensor
from policy_noise.experiments.figures import LABELS, training_diagnostics
from policy_noise.experiments.npz import load_npz
from policy_noise.experiments.statistics import paired_difference, t_interval
from policy_noise.experiments.transfer import draw_few_shot, embed, linear_probe
from policy_noise.plotting import plot_masks

DATA = Path(__file__).resolve().parent / "data" / "organpatches.npz"
MODEL = "test_resnet"  # timm's smallest ResNet, 0.4 M parameters
METHODS = ("conventional", "frozen", "policy")
MEAN, STD = 0.5, 0.25
BATCH, LR = 32, 4e-3
SHOTS, TRIALS = 32, 5
LOG_EVERY = 13

Scores = dict[str, float]


def shift(images: torch.Tensor, generator: torch.Generator, pixels: int = 3) -> torch.Tensor:
    """Move a batch by a few pixels: the augmentation that all methods share."""
    size = images.shape[-1]
    top, left = torch.randint(0, 2 * pixels + 1, (2,), generator=generator).tolist()
    return nn.functional.pad(images, (pixels,) * 4, mode="reflect")[:, :, top : top + size, left : left + size]


def train(
    model: nn.Module,
    organs: ImageSet,
    epochs: int,
    lr: float,
    batches: torch.Generator,
    noise: dict | None,
    history: list[Scores],
    bar: tqdm,
) -> policy_noise.StochasticAugmentation | None:
    """An ordinary loop, with one added line where noise is asked for. Gives back the mask, for a picture of it."""
    images, targets = to_tensor(organs.train.images, MEAN, STD), torch.from_numpy(organs.train.labels)
    steps = len(images) // BATCH
    start = history[-1]["epoch"] if history else 0.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * steps)
    criterion = nn.CrossEntropyLoss()
    hook = None if noise is None else policy_noise.attach(model, optimizer, criterion, **noise)  # the one added line
    for epoch in range(epochs):
        model.train()
        order = torch.randperm(len(images), generator=batches)[: steps * BATCH]
        for step, indices in enumerate(order.split(BATCH), start=1):
            loss = criterion(model(shift(images[indices], batches)), targets[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if step % LOG_EVERY == 0:
                diagnostics = {} if hook is None else hook.metrics
                history.append({"epoch": start + epoch + step / steps, "loss": loss.item(), **diagnostics})
        score = scores(organs.val.labels, predict(model, organs.val.images))["balanced_accuracy"]
        history[-1]["val_balanced_accuracy"] = score
        bar.set_postfix_str(f"loss {loss.item():.2f}, validation {score:.2f}")
        bar.update()
    if hook is None:
        return None
    hook.remove()  # the model is now the heated model
    return hook.augmentation


@torch.no_grad()
def predict(model: nn.Module, images: np.ndarray) -> np.ndarray:
    """Logits of clean images."""
    model.eval()
    return torch.cat([model(batch) for batch in to_tensor(images, MEAN, STD).split(256)]).numpy()


def scores(labels: np.ndarray, outputs: np.ndarray) -> Scores:
    """The two figures of the table, from logits or probabilities."""
    predicted = outputs.argmax(1)
    f1 = f1_score(labels, predicted, average="macro", zero_division=0)
    return {"f1": float(f1), "balanced_accuracy": float(balanced_accuracy_score(labels, predicted))}


def few_shot(model: nn.Module, target: ImageSet, seed: int) -> Scores:
    """A linear probe on a few images of another set, mean over draws."""
    features = embed(model, to_tensor(target.train.images, MEAN, STD))
    test_features = embed(model, to_tensor(target.test.images, MEAN, STD))
    trials = []
    for trial in range(TRIALS):
        drawn = draw_few_shot(target.train.labels, SHOTS, np.random.default_rng([seed, trial]))
        labels = target.train.labels[drawn]
        probabilities = linear_probe(features[drawn], labels, test_features, target.num_classes)
        trials.append(scores(target.test.labels, probabilities))
    return {name: float(np.mean([trial[name] for trial in trials])) for name in trials[0]}


def assess(model: nn.Module, organs: ImageSet, patient: ImageSet, mr: ImageSet, seed: int) -> dict[str, Scores]:
    """Score a finished model on all four tasks."""
    unseen = Split(
        np.concatenate([patient.train.images, patient.val.images, patient.test.images]),
        np.concatenate([patient.train.labels, patient.val.labels, patient.test.labels]),
    )
    shared = [organs.class_names.index(name) for name in patient.class_names]
    return {
        f"CT patient 1, test slices ({organs.num_classes} organs)": scores(
            organs.test.labels, predict(model, organs.test.images)
        ),
        f"CT patient 2, no training ({patient.num_classes} organs)": scores(
            unseen.labels, predict(model, unseen.images)[:, shared]
        ),
        f"CT patient 2, probe on {SHOTS} images ({patient.num_classes} organs)": few_shot(model, patient, seed),
        f"MR patient, probe on {SHOTS} images ({mr.num_classes} organs)": few_shot(model, mr, seed),
    }


def table(results: dict[str, dict[str, list[Scores]]]) -> str:
    """One Markdown table: means over seeds with 95 % t-intervals, and paired differences."""

    def cell(values: list[float]) -> str:
        return str(t_interval(values, bounds=(0, 1))) if len(values) > 1 else f"{values[0]:.3f}"

    def difference(values: list[float], others: list[float]) -> str:
        result = paired_difference(values, others)
        return str(result) if len(values) > 1 else f"{result.mean:+.3f}"

    rows = [("task", "training", "macro F1", "balanced accuracy", "F1, policy minus this")]
    for task, methods in results.items():
        columns = {
            name: {m: [run[name] for run in runs] for m, runs in methods.items()}
            for name in ("f1", "balanced_accuracy")
        }
        for method in METHODS:
            f1, balanced = columns["f1"], columns["balanced_accuracy"]
            gain = "" if method == "policy" else difference(f1["policy"], f1[method])
            first = task if method == METHODS[0] else ""
            rows.append((first, LABELS[method], cell(f1[method]), cell(balanced[method]), gain))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/quickstart"), help="folder for table and pictures")
    parser.add_argument("--seeds", type=int, default=3, help="repeats, with seeds 0, 1, ...")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of pretraining; a third is added to fine-tune")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs: only to see it run")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.epochs = 1, 2
    if arguments.seeds < 1 or arguments.epochs < 1:
        parser.error(f"--seeds and --epochs must be at least 1, got {arguments.seeds} and {arguments.epochs}")
    begun = time.perf_counter()
    torch.set_num_threads(1)  # layers this small gain nothing from more, and lose much where cores are busy
    arguments.output.mkdir(parents=True, exist_ok=True)
    organs, patient, mr = (load_npz(DATA, prefix) for prefix in ("", "ct2_", "mr_"))
    finetune_epochs = max(1, arguments.epochs // 3)

    results: dict[str, dict[str, list[Scores]]] = defaultdict(lambda: defaultdict(list))
    histories: dict[str, list[list[Scores]]] = {method: [] for method in METHODS}
    mask = None
    total = arguments.seeds * len(METHODS) * (arguments.epochs + finetune_epochs)
    with tqdm(total=total, unit="epoch") as bar:
        for seed in range(arguments.seeds):
            for method in METHODS:
                bar.set_description(f"seed {seed}, {LABELS[method]}")
                torch.manual_seed(seed)
                model = timm.create_model(MODEL, num_classes=organs.num_classes, in_chans=1)
                model.to(memory_format=torch.channels_last)
                batches = torch.Generator().manual_seed(seed)  # of its own, so that masks don't change the batches
                noise = {"conventional": None, "frozen": {"frozen": True}, "policy": {}}[method]
                history: list[Scores] = []
                trained = train(model, organs, arguments.epochs, LR, batches, noise, history, bar)
                train(model, organs, finetune_epochs, LR / 10, batches, None, history, bar)
                histories[method].append(history)
                mask = trained if method == "policy" else mask
                for task, score in assess(model, organs, patient, mr, seed).items():
                    results[task][method].append(score)

    chosen = [int(np.flatnonzero(organs.test.labels == label)[0]) for label in (0, 2, 4, 8, 9, 10, 12, 14)]
    figure = plot_masks(
        mask,
        to_tensor(organs.test.images[chosen], MEAN, STD),
        [organs.class_names[organs.test.labels[index]].replace("_", " ") for index in chosen],
        mean=MEAN,
        std=STD,
    )
    figure.suptitle(f"What the policy learned in {arguments.epochs} epochs (seed {arguments.seeds - 1}, unseen slices)")
    figure.savefig(arguments.output / "gallery.png", dpi=110)
    training_diagnostics(
        histories,
        arguments.output / "training.png",
        heading=f"Training and fine-tuning ({arguments.epochs} + {finetune_epochs} epochs), {arguments.seeds} seeds",
    )
    interval = "means [95 % t-intervals] over" if arguments.seeds > 1 else "no interval from"
    text = (
        f"{table(results)}\n\n"
        f"{interval} {arguments.seeds} seeds; {arguments.epochs} + {finetune_epochs} epochs of {MODEL}; CPU, torch "
        f"{torch.__version__}, timm {timm.__version__}, {datetime.date.today()}; "
        f"`python examples/quickstart.py --seeds {arguments.seeds} --epochs {arguments.epochs}`\n"
    )
    (arguments.output / "table.md").write_text(text, encoding="utf-8")
    print(f"\n{text}")
    print(f"{time.perf_counter() - begun:.0f} s; table and pictures are in {arguments.output}/")


if __name__ == "__main__":
    main()
