"""The figure of a results file."""

import math
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.overhead.ratios import added, ratio
from benchmarks.overhead.suites import Configuration

SHOWN_AS = {"learned": "learned masks", "random": "random masks", "paper": "paper preset"}
COLOURS = {"learned": "#0072b2", "random": "#e69f00", "paper": "#009e73"}
AXES = {"size": "image size, px", "batch": "images per batch", "grid": "cells along each axis"}
TICKS = (0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 4)


def plot(results: dict[str, Any], path: Path) -> None:
    """Plot ratios with their intervals, or for the scaling suite the added time on log axes."""
    import matplotlib

    matplotlib.use("Agg")
    records = [record for record in results["configurations"] if "error" not in record]
    figure = _scaling(results, records) if results["suite"] == "scaling" else _ratios(records)
    figure.suptitle(f"{results['machine']['device']}, {results['date'][:10]}", fontsize=9, color="0.4")
    figure.savefig(path, dpi=120)


def _ratios(records: list[dict[str, Any]]) -> Any:
    """One block of rows for each configuration, named above it."""
    from matplotlib import pyplot as plt

    position, ticks, names = 0.0, [], []
    blocks = []
    for record in records:
        rows = [
            (name, value)
            for name in record["arms"]
            if name != "plain" and not math.isnan((value := ratio(record, name, "plain") or (math.nan,) * 3)[0])
        ]
        blocks.append((record["label"], rows))
    height = sum(len(rows) + 1.2 for _, rows in blocks)
    figure, axis = plt.subplots(figsize=(7.5, 1.1 + 0.2 * height), layout="constrained")
    for label, rows in blocks:
        at = axis.get_yaxis_transform()
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        axis.text(0.01, position, label, transform=at, fontsize=8, weight="bold", va="center", bbox=behind)
        for name, (middle, low, high) in rows:
            position += 1
            colour = COLOURS.get(name.partition(",")[0], "0.45")
            axis.plot([low, high], [position] * 2, color=colour)
            axis.plot(middle, position, "o", color=colour, markersize=5)
            ticks.append(position)
            first, comma, rest = name.partition(",")
            names.append(SHOWN_AS.get(first, first) + comma + rest)
        position += 1.2
    axis.axvline(1, color="black", linewidth=0.8, zorder=0)
    axis.set(xscale="log", xlabel="time of a training step, relative to plain training", ylim=(position - 0.4, -0.8))
    low, high = axis.get_xlim()
    kept = [tick for tick in TICKS if low <= tick <= high]
    axis.set_xticks(kept, [f"{tick:g}" for tick in kept])
    axis.minorticks_off()
    axis.set_yticks(ticks, names, fontsize=8)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def _scaling(results: dict[str, Any], records: list[dict[str, Any]]) -> Any:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(8.5, 6), sharey=True, layout="constrained")
    base = Configuration(**{**records[0]["configuration"], "arms": ()})
    for axis, name in zip(axes.flat, ("size", "batch", "grid", "model"), strict=True):
        points = []
        for record in records:
            own = replace(Configuration(**{**record["configuration"], "arms": ()}), seconds=base.seconds)
            if own != replace(base, **{name: getattr(own, name)}):
                continue
            plain = median(record["arms"]["plain"]["seconds"])
            where = {"grid": own.grid or results["default_grid"], "model": 1e3 * plain}.get(name, getattr(own, name))
            points.append((where, 1e3 * plain, 1e3 * added(record), own.model))
        axis.set(xscale="log", yscale="log", xlabel=AXES.get(name, "plain step of the classifier, ms"))
        axis.grid(alpha=0.25)
        axis.minorticks_off()
        if not points:
            continue
        points.sort()
        columns = list(zip(*points, strict=True))
        axis.plot(columns[0], columns[1], "o-", color="0.5", label="plain step")
        # Differences below 0 are noise and cannot be shown on a logarithmic axis.
        costs = [cost if cost > 0 else math.nan for cost in columns[2]]
        axis.plot(columns[0], costs, "s:", color=COLOURS["learned"], label="added by learned masks")
        if name == "model":
            for number, (where, _, cost, model) in enumerate(points):
                offset = (0, -14 if number % 2 else 8)
                axis.annotate(model, (where, cost), offset, textcoords="offset points", fontsize=7, ha="center")
            axis.set_xticks([250, 500, 1000], ["250", "500", "1000"])
            axis.margins(x=0.15)
        else:
            axis.set_xticks(columns[0], [f"{value:.0f}" for value in columns[0]])
    for axis in axes[:, 0]:
        axis.set_ylabel("ms per step")
    axes[0, 0].legend(fontsize=8)
    return figure
