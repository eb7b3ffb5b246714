"""The tables of a run, as docs/benchmarks.md has them."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

MODES = {True: "training", False: "inference"}
APART = ("streaming", "foreign over own", "images over loops", "cells over loops")
"""Groups of which the tables of rows have none: other things are compared there."""


def groups(results: list[dict[str, Any]]) -> Iterator[tuple[str, bool, list[float]]]:
    """The ratios of each group and mode, in the order in which they came."""
    found: dict[tuple[str, bool], list[float]] = {}
    for result in results:
        if "ratio" in result:
            found.setdefault((result["group"], result["training"]), []).append(result["ratio"])
    for (group, training), ratios in found.items():
        yield group, training, ratios


def markdown(results: list[dict[str, Any]], machine: str) -> str:
    """A table of the groups, of the rows of each mode (in milliseconds) and of single steps."""
    lines = [
        machine,
        "",
        "| group | mode | rows | geometric mean | least |",
        "|---|---|---|---|---|",
    ]
    for group, training, ratios in groups(results):
        mean, least = statistics.geometric_mean(ratios), min(ratios)
        lines.append(
            f"| {group} | {MODES[training]} | {len(ratios)} | {mean:.2f}x | {least:.2f}x |"
        )
    for training, mode in MODES.items():
        rows = [r for r in results if "ratio" in r and r["training"] == training]
        rows = [r for r in rows if r["group"] not in APART]
        if rows:
            lines += ["", f"{mode.capitalize()}:", "", *_rows(rows, training)]
    steps = [r for r in results if "ratio" in r and r["group"] == "streaming"]
    if steps:
        lines += [
            "",
            "One step, in microseconds:",
            "",
            "| row | torch.nn | cello |",
            "|---|---|---|",
        ]
        for row in steps:
            stock, ours = (1e6 * row["seconds"][way] for way in ("torch.nn", "cello"))
            lines.append(f"| {row['label']} | {stock:.1f} | {ours:.1f} |")
    return "\n".join(lines) + "\n"


def _rows(rows: list[dict[str, Any]], training: bool) -> Iterator[str]:
    saved = " saved MiB, torch.nn / cello |" if training else ""
    yield f"| row | engine | torch.nn | cello | torch.nn / cello | of the product peak |{saved}"
    yield "|---|---|---|---|---|---|" + "---|" * training
    for row in rows:
        stock, ours = (1e3 * row["seconds"][way] for way in ("torch.nn", "cello"))
        cells = [row["label"], row["engine"], f"{stock:.2f}", f"{ours:.2f}", f"{row['ratio']:.2f}x"]
        cells.append(f"{row['of_peak']:.0%}" if "of_peak" in row else "")
        if training:
            kept = (row["saved"][way] / 2**20 for way in ("torch.nn", "cello"))
            cells.append(" / ".join(f"{size:.1f}" for size in kept))
        yield f"| {' | '.join(cells)} |"
