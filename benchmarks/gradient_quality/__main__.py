"""Command line of the gradient quality benchmark.

python -m benchmarks.gradient_quality
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import torch

from benchmarks.gradient_quality.measure import measure
from benchmarks.gradient_quality.report import plot, table
from benchmarks.study.tasks import TASKS, build_task

RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gradient_quality",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--seeds", type=int, default=5, help="classifiers, each with its own policy and samples")
    parser.add_argument("--samples", type=int, default=1536, help="samples per pool, a multiple of the batch sizes")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of the classifier's training")
    parser.add_argument("--grids", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 32, 128])
    args = parser.parse_args(arguments)
    if any(args.samples % batch or args.samples < 2 * batch or batch % 2 for batch in args.batches):
        parser.error(f"--samples {args.samples} must be at least twice, and a multiple of, each even batch size")
    torch.set_num_threads(1)
    start = time.perf_counter()
    data = build_task(TASKS["organs"], Path(), torch.device("cpu"), None)
    result = measure(data, args.seeds, args.grids, args.batches, args.samples, args.epochs)
    seconds = time.perf_counter() - start
    command = " ".join(["python -m benchmarks.gradient_quality", *(arguments or sys.argv[1:])])
    accuracies = ", ".join(f"{accuracy:.2f}" for accuracy in result["accuracies"])
    lines = [
        "# Quality of policy gradients",
        "",
        f"`{command}`: {args.seeds} seeds, {args.samples} samples a "
        f"seed and grid, {seconds:.0f} s on one thread ({platform.machine()} CPU, torch {torch.__version__}). "
        f"Classifiers after {args.epochs} epochs, training accuracy {accuracies}. ± is the 95 % t-interval over seeds. "
        "Definitions stand in the package's `__init__.py`.",
        *table(result["rows"], args.grids, args.batches),
    ]
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.md").write_text("\n".join(lines) + "\n")
    settings = {name: value for name, value in vars(args).items() if name != "output"}
    record = {**settings, "torch": torch.__version__, "seconds": round(seconds, 1), **result}
    (args.output / "results.json").write_text(json.dumps(record) + "\n")
    plot(result["rows"], args.grids, args.batches, args.output / "results.png")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
