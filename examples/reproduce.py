"""The whole comparison: every stage for every training and seed, then one page with tables, curves and the machine.

For the embedded set:

    python examples/reproduce.py --npz examples/data/organpatches.npz \
        --target examples/data/organpatches.npz:ct2 examples/data/organpatches.npz:mr --output outputs/embedded

Runs are resumed where they stopped. Each is also a folder with its own report.html.
"""

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tqdm import tqdm

from policy_noise.experiments.figures import LABELS, few_shot_curves, training_diagnostics
from policy_noise.experiments.recipes import NOISES
from policy_noise.experiments.report import transfer_table
from policy_noise.experiments.runs import environment, read_lines
from policy_noise.experiments.statistics import holm, paired_difference, t_interval
from policy_noise.experiments.transfer import summarise

HERE = Path(__file__).resolve().parent
METRICS = {"f1": "macro F1", "balanced_accuracy": "balanced accuracy", "roc_auc": "ROC-AUC"}


def call(stage: str, *arguments: str) -> None:
    """Run a stage as a person would; its output is shown only if it fails."""
    command = [sys.executable, str(HERE / f"{stage}.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")


def classification(output: Path, seeds: int, stage: str) -> list[str]:
    """Test scores after a stage: means over seeds, and differences paired by seed."""
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for noise in NOISES:
        for seed in range(seeds):
            scores = json.loads((output / f"{stage}-{noise}-{seed}" / "scores.json").read_text())["scores"]
            for metric in METRICS:
                values[metric][noise].append(scores[metric])
    lines = [f"| training | {' | '.join(METRICS.values())} |", "|---" * (1 + len(METRICS)) + "|"]
    for noise in NOISES:
        lines.append(f"| {LABELS[noise]} | {' | '.join(str(t_interval(values[m][noise])) for m in METRICS)} |")
    for other in ("conventional", "frozen"):
        cells = " | ".join(str(paired_difference(values[m]["policy"], values[m][other])) for m in METRICS)
        lines.append(f"| policy noise minus {LABELS[other]} | {cells} |")
    return lines


def few_shot_differences(lines: list[dict], metric: str) -> list[str]:
    """Policy noise against each control at each sample size, paired by seed (means over trials), with Holm's p.

    Says in words where it is better, worse, or not shown to be either.
    """
    means: dict[tuple, dict[int, float]] = defaultdict(dict)
    collected: dict[tuple, list[float]] = defaultdict(list)
    for line in lines:
        if "-" in Path(line["source"]).parent.name:
            seed = int(Path(line["source"]).parent.name.rpartition("-")[2])
            collected[line["data"], line["shots"], line["init"], seed].append(line[metric])
    for (data, shots, init, seed), values in collected.items():
        means[data, shots, init][seed] = sum(values) / len(values)
    rows, p_values = [], []
    for data, shots in dict.fromkeys(key[:2] for key in means):
        for other in ("conventional", "frozen"):
            policy, control = means[data, shots, "policy"], means[data, shots, other]
            seeds = sorted(policy)
            result = paired_difference([policy[seed] for seed in seeds], [control[seed] for seed in seeds])
            rows.append([data, str(shots), LABELS[other], str(result), f"{result.p_value:.3f}"])
            p_values.append(result.p_value)
    adjusted = holm(p_values)
    verdict = []
    for other in ("conventional", "frozen"):
        mine = [
            (row[3].startswith("+"), value)
            for row, value in zip(rows, adjusted, strict=True)
            if row[2] == LABELS[other]
        ]
        better, worse = (sum(value < 0.05 and up is sign for up, value in mine) for sign in (True, False))
        verdict += [
            f"Against {LABELS[other]}, policy noise is better in {better} and worse in {worse} of {len(mine)} "
            "comparisons (p by Holm below 0.05); in the others no difference is shown.",
            "",
        ]
    header = ["set", "images", "policy noise minus", "difference [95 % t-interval]", "p", "p by Holm"]
    body = [[*row, f"{value:.3f}"] for row, value in zip(rows, adjusted, strict=True)]
    return [*verdict, *["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *body]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--npz", nargs="+", required=True, help="sets to pretrain on, joined; PATH or PATH:PREFIX")
    parser.add_argument("--target", nargs="+", required=True, help="sets to transfer to")
    parser.add_argument("--output", type=Path, required=True, help="folder of all runs and of results.md")
    parser.add_argument("--seeds", type=int, default=5, help="pretraining seeds 0, 1, ...")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="change the pretraining recipe")
    arguments = parser.parse_args()
    if arguments.seeds < 2:
        parser.error(f"--seeds must be at least 2 for intervals, got {arguments.seeds}")
    output: Path = arguments.output
    place = environment()
    runs = [(noise, seed) for seed in range(arguments.seeds) for noise in NOISES]
    for noise, seed in tqdm(runs, unit="run"):
        first, second = (output / f"{stage}-{noise}-{seed}" for stage in ("pretrain", "finetune"))
        settings = ["--set", f"seed={seed}", *arguments.set]
        call("pretrain", "--npz", *arguments.npz, "--noise", noise, "--output", str(first), "--resume", *settings)
        call("finetune", "--init", str(first), "--npz", *arguments.npz, "--output", str(second), "--resume",
             "--set", f"seed={seed}")  # fmt: skip
    inits = [f"{noise}={output / f'pretrain-{noise}-{seed}'}" for noise, seed in runs]
    shared = ["--init", *inits, "random", "--npz", *arguments.target]
    call("transfer", *shared, "--output", str(output / "transfer"), "--resume")

    lines = read_lines(output / "transfer" / "metrics.jsonl")
    few_shot_curves(summarise(lines, "f1"), output / "few-shot.png", metric="macro F1")
    histories = {
        noise: [read_lines(output / f"pretrain-{noise}-{s}" / "metrics.jsonl") for s in range(arguments.seeds)]
        for noise in NOISES
    }
    training_diagnostics(histories, output / "training.png", heading=f"Pretraining, {arguments.seeds} seeds")
    names = ", ".join(Path(path).name for path in arguments.npz)
    page = [
        f"# Pretraining on {names}",
        "",
        f"Printed by `{' '.join(_short(place['command'].split()))}` on {place['date']}; {place['processor']}; "
        f"{place['device']}; seeds 0 to {arguments.seeds - 1}; revision {place['git_revision']}; "
        + ", ".join(f"{name} {version}" for name, version in place["packages"].items()) + ".",
        "Means over seeds with 95 % t-intervals; differences are paired by seed.",
        "",
        "## Test split after pretraining",
        "",
        *classification(output, arguments.seeds, "pretrain"),
        "",
        "## Test split after fine-tuning on clean images",
        "",
        *classification(output, arguments.seeds, "finetune"),
        "",
        "## Few-shot transfer from the pretrained models, linear probe, macro F1",
        "",
        "10 draws a sample size and seed, the same for all. Intervals over seeds; for random weights over draws.",
        "",
        transfer_table(lines, "f1"),
        "",
        *few_shot_differences(lines, "f1"),
        "",
        "![few-shot curves](few-shot.png)",
        "",
        "![training](training.png)",
    ]  # fmt: skip
    (output / "results.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    print("\n".join(page))


def _short(words: list[str]) -> list[str]:
    """File names without the folders of this machine, unless they belong to the project."""
    return [Path(word).name if Path(word).is_absolute() else word for word in words]


if __name__ == "__main__":
    main()
