"""The page and the plot of the results."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gradient_quality.estimators import ESTIMATORS
from benchmarks.pages import head, row, save_plot
from policy_noise.experiments.statistics import t_interval


def _interval(rows: list[dict[str, Any]], name: str, grid: int, batch: int, score: str) -> tuple[float, float]:
    values = [r[score] for r in rows if (r["estimator"], r["grid"], r["batch"]) == (name, grid, batch)]
    if None in values:
        return float("nan"), float("nan")
    interval = t_interval(values)
    return interval.mean, interval.high - interval.mean


def table(rows: list[dict[str, Any]], grids: list[int], batches: list[int]) -> list[str]:
    lines = []
    titles = {
        "snr": "Signal-to-noise ratio of one batch's gradient",
        "cosine": "Cosine of one batch's gradient to the reference",
    }
    for score, title in titles.items():
        columns = [(grid, batch) for grid in grids for batch in batches]
        heads = [f"{grid}x{grid}, batch {batch}" for grid, batch in columns]
        lines += ["", f"## {title}", "", *head(["estimator", "extra cost", *heads])]
        for name, estimator in ESTIMATORS.items():
            cells = ["{:.3f} ± {:.3f}".format(*_interval(rows, name, *column, score)) for column in columns]
            lines.append(row([name, estimator.cost, *cells]))
    batch = max(batches)
    heads = [f"{grid}x{grid}" for grid in grids]
    lines += ["", "## Cosine of the expected gradient to the reference, of the two that are biased", ""]
    lines += head(["estimator", *heads])
    for name in (name for name, estimator in ESTIMATORS.items() if not estimator.exact):
        cells = ["{:.3f} ± {:.3f}".format(*_interval(rows, name, g, batch, "cosine_of_mean")) for g in grids]
        lines.append(row([name, *cells]))
    return lines


def plot(rows: list[dict[str, Any]], grids: list[int], batches: list[int], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        2, len(grids), figsize=(4.2 * len(grids), 7.5), sharex=True, sharey="row", squeeze=False
    )
    for column, grid in enumerate(grids):
        for line, score in enumerate(("snr", "cosine")):
            axis = axes[line][column]
            for number, name in enumerate(ESTIMATORS):
                points = [_interval(rows, name, grid, batch, score) for batch in batches]
                axis.errorbar(
                    np.array(batches) * 1.04 ** (number - len(ESTIMATORS) / 2),
                    [mean for mean, _ in points],
                    [half for _, half in points],
                    marker="o",
                    markersize=4,
                    linewidth=1,
                    color=f"C{number}",
                    label=name,
                )
            axis.set_xscale("log", base=2)
            axis.set_xticks(batches, [str(batch) for batch in batches])
            axis.grid(alpha=0.3)
        axes[0][column].set_yscale("symlog", linthresh=1e-2)
        axes[0][column].set_title(f"grid {grid}x{grid}")
        axes[1][column].set_xlabel("batch size")
    axes[0][0].set_ylabel("signal-to-noise ratio of a batch's gradient")
    axes[1][0].set_ylabel("cosine to the reference")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="lower center", ncol=5, fontsize=8)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    save_plot(figure, path)
