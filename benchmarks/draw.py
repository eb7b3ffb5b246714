"""The pictures of a run: how many times as fast as the other way each row is."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

CELLS = "cells over loops"


def draw(results: list[dict], folder: Path, suffix: str, machine: str) -> None:
    """Draw `ratios` of the layers, with the share of the product peak, and `cells` over their loops."""
    rows = [result for result in results if "ratio" in result]
    layers = [row for row in rows if row["group"] != CELLS]
    if layers:
        _draw_layers(layers, folder / f"ratios{suffix}.png", machine)
    cells = sorted(row["ratio"] for row in rows if row["group"] == CELLS)
    if cells:
        _draw_cells(cells, folder / f"cells{suffix}.png", machine)


def _draw_layers(rows: list[dict], path: Path, machine: str) -> None:
    figure, (axes, shares) = plt.subplots(
        1,
        2,
        figsize=(12, 0.22 * len(rows) + 1.4),
        layout="constrained",
        sharey=True,
        width_ratios=[3, 1],
    )
    colours = ["C0" if row["training"] else "C1" for row in rows]
    axes.barh(range(len(rows)), [math.log2(row["ratio"]) for row in rows], color=colours)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=7)
    axes.axvline(0, color="black", linewidth=0.8)
    low, high = (math.floor(v) for v in axes.get_xlim())
    ticks = range(low, high + 2)
    axes.set_xticks(ticks, [f"{2.0**tick:g}x" for tick in ticks])
    axes.set_title("time of torch.nn / time of Cello", fontsize=10)
    shares.barh(range(len(rows)), [100 * row.get("of_peak", 0) for row in rows], color=colours)
    shares.axvline(100, color="black", linewidth=0.8)
    shares.set_title("% of torch's matrix product", fontsize=10)
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    _finish(figure, path, f"{machine}. Blue: training, orange: inference")


def _draw_cells(ratios: list[float], path: Path, machine: str) -> None:
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    assert isinstance(axes, Axes)
    axes.bar(range(len(ratios)), ratios, width=1.0)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}x")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xlabel(f"{len(ratios)} cells, each in training at (100, 32, 64, 128)")
    axes.set_title("time of the Python loop / time of Cello", fontsize=10)
    _finish(figure, path, machine)


def _finish(figure: plt.Figure, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)
