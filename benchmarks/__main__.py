"""Cello's layers against torch.nn's and against Python loops: `make bench`.

Each row first checks that all ways give the same outputs and gradients; where they do not, no time
is reported and the run fails.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from benchmarks.cases import TARGETS, cases
from benchmarks.draw import draw
from benchmarks.paired import alternate
from benchmarks.tables import MODES, groups, markdown


def main() -> int:
    """Run all rows; write `results.json`, and tables and pictures for each number of threads."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for results")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each row")
    parser.add_argument("--threads", type=int, nargs="+", default=[2], help="threads of torch")
    parser.add_argument("--only", default="", help="layer rows whose label contains this text")
    parser.add_argument("--texts", type=Path, help="CSV with a column `text`, for real lengths")
    parser.add_argument(
        "--ways",
        nargs="+",
        default=[],
        choices=["vendor", "reference", "compile", "turns"],
        help="further ways in every row: Cello's other engines, torch.compile of a loop over the cell, "
        "and both directions one after the other",
    )
    parser.add_argument("--no-cells", action="store_true", help="leave foreign cells and steps out")
    arguments = parser.parse_args()
    console = Console(width=max(Console().width, 160))
    lengths = measure.read_lengths(arguments.texts)
    arguments.out.mkdir(parents=True, exist_ok=True)
    everything: list[dict[str, Any]] = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        peaks = {name: peak(getattr(torch, name)) for name in measure.TOLERANCES}
        results: list[dict[str, Any]] = []
        for result in rows(arguments, lengths, peaks):
            results.append(result)
            console.print(line(result))
        console.print(summary(results))
        everything.append({"machine": machine(), "product_peak": peaks, "results": results})
        (arguments.out / "results.json").write_text(json.dumps(everything, indent=1))
        (arguments.out / f"tables_{threads}.md").write_text(markdown(results, machine()))
        draw(results, arguments.out, f"_{threads}", machine())
    failed = (row["error"] for run in everything for row in run["results"])
    return 1 if any(error is not None for error in failed) else 0


def rows(
    arguments: argparse.Namespace, lengths: torch.Tensor, peaks: dict[str, float]
) -> Iterator[dict[str, Any]]:
    """All rows at the present number of threads."""
    for case in (case for case in cases() if arguments.only in case.label):
        result = measure.layer(case, arguments.seconds, lengths, arguments.ways)
        if "ratio" in result:
            result["of_peak"] = result["flops"] / result["seconds"]["cello"] / peaks[case.dtype]
        yield result
    yield from measure.images(arguments.seconds, arguments.only)
    if not arguments.no_cells:
        yield from measure.steps(arguments.seconds)
        yield from measure.foreign(arguments.seconds)


def line(result: dict[str, Any]) -> str:
    """One row as text."""
    head = f"{result['group']:16} {MODES[result['training']]:9} {result['label']}"
    if result["error"] is not None:
        return f"{head}: {result['error']}"
    if "ratio" not in result:
        return f"{head}: not compared; {result['engine']} {result.get('left out', '')}"
    times = " ".join(f"{way} {1e3 * t:.3f}" for way, t in result["seconds"].items())
    share = f", {result['of_peak']:.0%} of the product peak" if "of_peak" in result else ""
    if "saved" in result:
        share += ", saved " + " ".join(f"{k} {v / 2**20:.1f}" for k, v in result["saved"].items())
        share += " MiB"
    return f"{head}: {result['ratio']:.2f}x on {result['engine']} ({times} ms{share})"


def summary(results: list[dict[str, Any]]) -> Table:
    """Geometric mean and minimum of every group, beside what it is held to."""
    table = Table("group", "mode", "rows", "geometric mean", "minimum", "wanted", title=machine())
    for group, training, ratios in groups(results):
        mean, least = TARGETS.get((group, training), (None, None))
        wanted = "" if mean is None else f"{mean}x" + (f", none below {least}x" if least else "")
        cells = f"{statistics.geometric_mean(ratios):.2f}x", f"{min(ratios):.2f}x", wanted
        table.add_row(group, MODES[training], str(len(ratios)), *cells)
    return table


def peak(dtype: torch.dtype) -> float:
    """Operations a second of torch's product of two large matrices."""
    a, b = (torch.randn(2048, 2048, dtype=dtype) for _ in range(2))
    return 2 * 2048**3 / alternate({"mm": lambda: a @ b}, seconds=1.0)["mm"]


def machine() -> str:
    """Name what was measured on."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {_processor()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for entry in cpuinfo.read_text().splitlines():
            if entry.startswith("model name"):
                return entry.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    sys.exit(main())
