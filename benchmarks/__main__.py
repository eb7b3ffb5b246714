"""Cello's layers against torch.nn's and against the Python loop: `make bench`.

Each row first checks that all ways give the same outputs and gradients; where they do not, no time
is reported and the run fails.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import cello
from benchmarks.cases import Case, cases
from benchmarks.paired import alternate

WAYS = ("torch.nn", "cello", "reference")
TOLERANCE = 1e-4
"""Largest difference of outputs and gradients, relative to their norm, in float32."""


def main() -> int:
    """Run all rows and write the table, `results.json` and `ratios.png`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for results")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each row")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch")
    parser.add_argument("--only", default="", help="rows whose label contains this text")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=max(Console().width, 120))
    table = Table("row", "mode", *(f"{way} ms" for way in WAYS), "torch / cello", title=machine())
    results = []
    for case in (case for case in cases() if arguments.only in case.label):
        result = measure(case, arguments.seconds)
        results.append(result)
        mode = "training" if case.training else "inference"
        if result["error"] > TOLERANCE:
            table.add_row(case.label, mode, "results differ", f"{result['error']:.1e}")
            continue
        times = [f"{1e3 * result['seconds'][way]:.2f}" for way in WAYS]
        table.add_row(case.label, mode, *times, f"{result['ratio']:.2f}x")
        console.print(f"{mode} {case.label}: {result['ratio']:.2f}x")
    console.print(table)
    arguments.out.mkdir(parents=True, exist_ok=True)
    record = {"machine": machine(), "results": results}
    (arguments.out / "results.json").write_text(json.dumps(record, indent=1))
    draw(results, arguments.out / "ratios.png")
    return 1 if any(result["error"] > TOLERANCE for result in results) else 0


def machine() -> str:
    """Name what was measured on."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {_processor()}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def measure(case: Case, seconds: float) -> dict:
    """Check that all ways agree on one case, then time them in turn."""
    torch.manual_seed(0)
    options = dict(case.options)
    stock = getattr(nn, case.kind)(case.features, case.hidden, **options)
    ours = getattr(cello.nn, case.kind)(case.features, case.hidden, **options)
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(case.steps, case.batch, case.features, requires_grad=case.training)
    lengths = None
    if case.packed:
        # Half of the steps on average, as in a shuffled batch of reviews cut at T.
        lengths = torch.randint(1, case.steps + 1, (case.batch,))
        lengths[0] = case.steps

    def work(layer: nn.Module, engine: str | None) -> Callable[[], list[Tensor]]:
        def once() -> list[Tensor]:
            inputs = (
                x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
            )
            with cello.engine(engine), torch.set_grad_enabled(case.training):
                output, _ = layer(inputs)
                output = output if lengths is None else output.data
                if not case.training:
                    return [output]
                parameters = list(layer.parameters())
                return [output, *torch.autograd.grad(output.sum(), [x, *parameters])]

        return once

    ways = {
        "torch.nn": work(stock, None),
        "cello": work(ours, None),
        "reference": work(ours, "reference"),
    }
    expected = ways["torch.nn"]()
    error = max(
        float((a - b).detach().norm() / b.detach().norm())
        for way in ("cello", "reference")
        for a, b in zip(ways[way](), expected, strict=True)
    )
    result = {"label": case.label, "training": case.training, "error": error}
    if error <= TOLERANCE:
        times = alternate(ways, seconds=seconds)
        result |= {"seconds": times, "ratio": times["torch.nn"] / times["cello"]}
    return result


def draw(results: list[dict], path: Path) -> None:
    """Draw how many times faster than torch.nn each row is, on a logarithmic axis."""
    rows = [result for result in results if "ratio" in result]
    if not rows:
        return
    figure, axes = plt.subplots(figsize=(9, 0.32 * len(rows) + 1.2), layout="constrained")
    colours = ["C0" if row["training"] else "C1" for row in rows]
    axes.barh(range(len(rows)), [math.log2(row["ratio"]) for row in rows], color=colours)
    axes.set_yticks(range(len(rows)), [row["label"] for row in rows], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    low, high = (math.floor(v) for v in axes.get_xlim())
    ticks = range(low, high + 2)
    axes.set_xticks(ticks, [f"{2.0**tick:g}x" for tick in ticks])
    axes.set_title("Time of torch.nn over time of Cello (blue: training, orange: inference)")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
