"""Layers as ONNX files in ONNX Runtime, beside its own LSTM and GRU, Cello and torch.

    python -m benchmarks.onnx [--seconds 2]

The same weights everywhere, one thread, inference. Own cells have no operator in ONNX Runtime: they stand
beside the Python loop.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import nn

import cello
from benchmarks.cells import HardLSTM
from benchmarks.paired import alternate

SHAPES = [(100, 1, 64, 64), (100, 32, 128, 128), (50, 8, 256, 256), (400, 64, 100, 100)]
"""T, B, F, H."""


def session(path: Path) -> Any:
    """Open a file for one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


def row(kind: str, shape: tuple[int, ...], seconds: float, folder: Path) -> dict[str, float]:
    """Check that all ways agree on a layer, and time them."""
    steps, batch, features, hidden = shape
    torch.manual_seed(0)
    x = torch.randn(steps, batch, features)
    files = {"Scan": folder / "scan.onnx"}
    stock = None
    if kind == "hard LSTM":
        layer: Any = cello.Recurrent(HardLSTM(features, hidden))
        layer(x)
    else:
        stock = getattr(nn, kind)(features, hidden).eval()
        layer = getattr(cello.nn, kind)(features, hidden)
        layer.load_state_dict(stock.state_dict())
        files["own operator"] = folder / "own.onnx"
        with warnings.catch_warnings():  # the older exporter of torch writes ONNX's own operators
            warnings.simplefilter("ignore")
            torch.onnx.export(stock, (x,), files["own operator"], dynamo=False)
    cello.onnx.export(layer.eval(), (x,), files["Scan"])
    ways: dict[str, Callable[[], Any]] = {}
    for name, file in files.items():
        run = session(file)
        given = {run.get_inputs()[0].name: x.numpy()}
        ways[name] = lambda run=run, given=given: run.run(None, given)[0]
    ways["Cello"] = lambda: layer(x)[0].numpy()
    if stock is None:
        ways["Python loop"] = lambda: looped(layer, x)
    else:
        ways["torch"] = lambda: stock(x)[0].numpy()
    with torch.inference_mode():
        expected = ways["Cello"]()
        for way in ways.values():
            np.testing.assert_allclose(way(), expected, rtol=1e-4, atol=1e-5)
        return alternate(ways, seconds=seconds)


def looped(layer: Any, x: torch.Tensor) -> Any:
    """The output of the Python loop."""
    with cello.engine("reference"):
        return layer(x)[0].numpy()


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each row")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| layer | T, B, F, H | file of Cello, ms | ORT's own, ms | Cello, ms | others, ms |")
    print("|---|---|---|---|---|---|")
    for kind in ("LSTM", "GRU", "hard LSTM"):
        for shape in SHAPES:
            with tempfile.TemporaryDirectory() as folder:
                found = row(kind, shape, arguments.seconds, Path(folder))
            times = {name: f"{1e3 * time:.2f}" for name, time in found.items()}
            other = next(name for name in ("torch", "Python loop") if name in times)
            cells = [kind, ", ".join(map(str, shape)), times["Scan"], times.get("own operator", "")]
            print("|", " | ".join([*cells, times["Cello"], f"{other}: {times[other]}"]), "|")


if __name__ == "__main__":
    main()
