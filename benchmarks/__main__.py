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
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import measure
from benchmarks.cases import TARGETS, cases
from benchmarks.draw import draw
from benchmarks.paired import alternate

MODES = {True: "training", False: "inference"}


def main() -> int:
    """Run all rows and write the tables, `results.json` and `ratios.png`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for results")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each row")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--only", default="", help="layer rows whose label contains this text")
    parser.add_argument("--texts", type=Path, help="CSV with a column `text`, for real lengths")
    parser.add_argument("--loop", action="store_true", help="time the Python loop in every row")
    parser.add_argument("--no-cells", action="store_true", help="leave foreign cells and steps out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=max(Console().width, 160))
    lengths = measure.read_lengths(arguments.texts)
    peaks = {name: peak(getattr(torch, name)) for name in ("float32", "float64", "bfloat16")}
    results: list[dict[str, Any]] = []

    def report(result: dict[str, Any]) -> None:
        results.append(result)
        console.print(line(result))

    for case in (case for case in cases() if arguments.only in case.label):
        result = measure.layer(case, arguments.seconds, lengths, with_loop=arguments.loop)
        if "ratio" in result:
            result["of_peak"] = result["flops"] / result["seconds"]["cello"] / peaks[case.dtype]
        report(result)
    if not arguments.no_cells:
        for result in measure.steps(arguments.seconds):
            report(result)
        for result in measure.foreign(arguments.seconds):
            report(result)
    console.print(summary(results))
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine(), "product_peak": peaks, "results": results}
    (arguments.out / "results.json").write_text(json.dumps(record, indent=1))
    draw(results, arguments.out / "ratios.png")
    return 1 if any(result["error"] is not None for result in results) else 0


def line(result: dict[str, Any]) -> str:
    """One row as text."""
    head = f"{result['group']:16} {MODES[result['training']]:9} {result['label']}"
    if result["error"] is not None:
        return f"{head}: {result['error']}"
    if "ratio" not in result:
        return f"{head}: not compared; {result['engine']} {result.get('left out', '')}"
    times = " ".join(f"{way} {1e3 * t:.3f}" for way, t in result["seconds"].items())
    share = f", {result['of_peak']:.0%} of the product peak" if "of_peak" in result else ""
    return f"{head}: {result['ratio']:.2f}x on {result['engine']} ({times} ms{share})"


def summary(results: list[dict[str, Any]]) -> Table:
    """Geometric mean and minimum of every group, beside what it is held to."""
    table = Table("group", "mode", "rows", "geometric mean", "minimum", "wanted", title=machine())
    groups: dict[tuple[str, bool], list[float]] = {}
    for result in results:
        if "ratio" in result:
            groups.setdefault((result["group"], result["training"]), []).append(result["ratio"])
    for (group, training), ratios in groups.items():
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
