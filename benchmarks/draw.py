"""The picture of a run: how many times as fast as torch.nn each row is."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw(results: list[dict], path: Path, machine: str) -> None:
    """Draw the ratios on a logarithmic axis, and the share of the product peak beside them."""
    rows = [result for result in results if "ratio" in result]
    if not rows:
        return
    figure, (axes, shares) = plt.subplots(
        1,
        2,
        figsize=(12, 0.24 * len(rows) + 1.2),
        layout="constrained",
        sharey=True,
        width_ratios=[3, 1],
    )
    colours = ["C0" if row["training"] else "C1" for row in rows]
    axes.barh(range(len(rows)), [math.log2(row["ratio"]) for row in rows], color=colours)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.margins(y=0.005)
    axes.axvline(0, color="black", linewidth=0.8)
    low, high = (math.floor(v) for v in axes.get_xlim())
    ticks = range(low, high + 2)
    axes.set_xticks(ticks, [f"{2.0**tick:g}x" for tick in ticks])
    axes.set_title("Time of the other way over time of Cello (blue: training, orange: inference)")
    shares.barh(range(len(rows)), [100 * row.get("of_peak", 0) for row in rows], color=colours)
    shares.axvline(100, color="black", linewidth=0.8)
    shares.set_title("% of torch's matrix product")
    figure.suptitle(machine, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
