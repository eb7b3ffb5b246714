"""Writes the tables of docs/packages.md: what runs the cells of other packages, and how fast.

Usage: python tests/packages/table.py [PAGE]; without a page the tables are printed only.
"""

from __future__ import annotations

import re
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from packages.case import CHANGES, MIXES, UNSEEN, Case, installed
from packages.cells import cases

import cello

T, B, F, H = 100, 16, 32, 32
ROUNDS = 7
LONGEST = 90
KINDS = (
    CHANGES,
    UNSEEN,
    MIXES,
    "whose content cannot be compared from call to call",
)


def ratio(case: Case, layer: cello.Recurrent, own: Any) -> float:
    """How many times faster the layer is than the package's own run, both ways; medians in turn."""
    x = (case.scale * torch.randn(T, B, F)).requires_grad_()

    def both_ways(run: Callable[[Any], Any]) -> float:
        start = time.perf_counter()
        run(x)[0].sum().backward()
        return time.perf_counter() - start

    runs = (layer, lambda x: case.run(own, x))
    for run in runs:
        both_ways(run)
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for kept, run in zip(times, runs, strict=True):
            kept.append(both_ways(run))
    ours, theirs = map(statistics.median, times)
    return theirs / ours


def rows(found: list[Case]) -> tuple[list[str], Counter[str]]:
    table, obstacles = [], Counter[str]()
    for case in found:
        torch.manual_seed(0)
        h = H if case.widens else F
        cell, own = case.make(F, h), case.make(F, h)
        state_size = case.state_size(F, h) if case.state_size else None
        layer = cello.Recurrent(cell, state_size=state_size)
        shown = f"| {case.package} {installed(case.package)} | `{case.name}` |"
        adapter = "yes" if case.adapter else ""
        try:
            plan = cello.explain(layer, torch.randn(2, B, F)).plans[0]
        except cello.CellError as error:
            told = re.sub(r"\s+", " ", str(error)).partition(", by an ")[0]
            table.append(f"{shown} {adapter} | not run | | {told} |")
            obstacles["branches on the values of tensors"] += 1
            continue
        reason = plan.reasons.get("native", [""])[0] if plan.engine != "native" else ""
        told = re.sub(r" \([\w.]+:\d+\)", "", re.split(", whose backward|; ", reason)[0])
        told = f"{told[:LONGEST]}…" if len(told) > LONGEST else told
        if reason:
            obstacles[next((kind for kind in KINDS if kind in reason), told)] += 1
        speed = ratio(case, layer, own)
        table.append(f"{shown} {adapter} | {plan.engine} | {speed:.1f} | {told} |")
        print(table[-1], flush=True)
    return table, obstacles


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the packages
    found = cases()
    table, obstacles = rows(found)
    titles = "| package | cell | adapter | engine | times as fast | why it is not compiled |"
    head = titles + "\n" + "|---" * 6 + "|"
    count = sum(" native |" in row for row in table)
    summary = [
        f"{count} of {len(table)} cells compile. The reasons for the others, from `explain`:",
        "",
    ]
    summary += [
        f"- {name}: {number} cell{'s' if number > 1 else ''}"
        for name, number in obstacles.most_common()
    ]
    text = "\n".join([*summary, "", head, *table])
    print("\n".join(["", *summary]))
    if len(sys.argv) > 1:
        page = Path(sys.argv[1])
        before, _, rest = page.read_text("utf-8").partition("<!-- tables -->")
        after = rest.partition("<!-- end of tables -->")[2]
        page.write_text(
            f"{before}<!-- tables -->\n\n{text}\n\n<!-- end of tables -->{after}", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
