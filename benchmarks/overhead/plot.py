"""The picture of a results file."""

import math
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.overhead.ratios import added, ratio
from benchmarks.overhead.suites import Configuration


def plot(results: dict[str, Any], path: Path) -> None:
    """Ratios with their intervals; for the scaling suite the added time on log axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    records = [record for record in results["configurations"] if "error" not in record]
    title = f"{results['machine']['device']}, {results['date'][:10]}"
    if results["suite"] == "scaling":
        figure, axes = plt.subplots(1, 4, figsize=(16, 4), sharey=True)
        base = Configuration(**{**records[0]["configuration"], "arms": ()})
        for axis, name in zip(axes, ("size", "batch", "grid", "model"), strict=True):
            points = []
            for record in records:
                own = replace(Configuration(**{**record["configuration"], "arms": ()}), seconds=base.seconds)
                if own != replace(base, **{name: getattr(own, name)}):
                    continue
                plain = median(record["arms"]["plain"]["seconds"])
                where = {"grid": own.grid or results["default_grid"], "model": 1e3 * plain}.get(
                    name, getattr(own, name)
                )
                points.append((where, 1e3 * plain, 1e3 * added(record)))
            axis.set(xscale="log", yscale="log", xlabel={"model": "plain step of the model, ms"}.get(name, name))
            if not points:
                continue
            points.sort()
            columns = list(zip(*points, strict=True))
            axis.plot(columns[0], columns[1], "o-", color="0.5", label="plain step")
            # What the machine did not resolve from nothing has no place on a logarithmic axis.
            resolved = [cost if cost > 0 else math.nan for cost in columns[2]]
            axis.plot(columns[0], resolved, "s:", color="C3", label="added by the default preset")
            axis.set_xticks(columns[0], [f"{value:.0f}" for value in columns[0]])
            axis.minorticks_off()
        axes[0].set_ylabel("ms a step")
        axes[0].legend()
    else:
        rows = [
            (f"{record['label']}: {name}", value)
            for record in records
            for name in record["arms"]
            if name != "plain" and (value := ratio(record, name, "plain"))
        ]
        figure, axis = plt.subplots(figsize=(9, 1 + 0.22 * len(rows)))
        for position, (_, (middle, low, high)) in enumerate(rows):
            axis.plot([low, high], [position] * 2, color="C0")
            axis.plot(middle, position, "o", color="C0")
        axis.axvline(1, color="0.5", linewidth=1)
        axis.set(xscale="log", xlabel="time of a step, x plain", yticks=range(len(rows)))
        axis.set_yticklabels([label for label, _ in rows], fontsize=7)
        axis.invert_yaxis()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
