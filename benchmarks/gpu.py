"""Cello's layers on a GPU against torch.nn's and against Python loops: `python -m benchmarks.gpu`.

Each row first compares outputs and gradients with float64 on the CPU; where they differ, no time is
reported and the run fails. The way of a row is the engine: vendor is torch.nn's own kernels, reference
the loop. At narrow shapes both kinds of Triton's kernels are measured that have products, by rows and as a
graph of steps, whichever Cello would choose, and at all shapes persistent kernels where they can run; with
``--persistent`` nothing but these. The table names the card and the versions. With
``--device cpu`` and TRITON_INTERPRET=1 everything but the times can be tried without a GPU, at tiny sizes.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import cello
from benchmarks.cells import HardLSTM
from cello.engines.triton import kernel, kinds

SHAPES = {
    "large": (1024, 16, 768, 768),
    "wide batch": (256, 64, 512, 512),
    "narrow": (1024, 16, 128, 128),
    "narrow, many rows": (1024, 256, 128, 128),
}
"""(T, B, F, H)"""
NARROW = 128
CHOSEN = kinds.SMALL
LIMITS = {"by rows": 2**40, "as a graph": -1}
"""Bytes of matrices up to which the kernel by rows runs, for kernels that Cello may not choose."""
PERSISTENT = "triton, persistent"
"""The way of kernels that Cello chooses only if they are selected."""
TINY = {"tiny": (5, 3, 8, 8), "two blocks of rows": (4, 20, 8, 8)}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BOUNDS = {"float32": 1e-3, "float32 TF32": 2e-2, "bfloat16": 8e-2, "float16": 2e-2}
"""Largest difference from float64, relative to the norm of what is compared."""


class MinimalGRU(nn.Module):
    """Feng et al., 2024: the gate and the candidate do not see the state."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.new = nn.Linear(features, hidden), nn.Linear(features, hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        z = torch.sigmoid(self.gate(x))
        return (1 - z) * h + z * self.new(x)


class LeakyNeuron(nn.Module):
    """A leaky integrate-and-fire neuron with a smooth spike, which is subtracted."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(features, hidden)
        self.decay = nn.Parameter(torch.full((hidden,), 0.9))

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        v = self.decay * v + self.input(x)
        spike = torch.sigmoid(5 * (v - 1))
        return spike, v - spike


class LayerNormLSTM(nn.Module):
    """Ba et al., 2016: the sums of input and state are normalised apart, and the cell state too."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.x = nn.Linear(features, 4 * hidden, bias=False)
        self.h = nn.Linear(hidden, 4 * hidden)
        self.norms = nn.ModuleList(nn.LayerNorm(n) for n in (4 * hidden, 4 * hidden, hidden))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        h, c = state
        i, f, g, o = (self.norms[0](self.x(x)) + self.norms[1](self.h(h))).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.norms[2](c)), c


OWN = {
    "hand-written LSTM, hard gates": HardLSTM,
    "layer-norm LSTM": LayerNormLSTM,
    "minimal GRU": MinimalGRU,
    "leaky neuron": LeakyNeuron,
}


@dataclass
class Row:
    """One measurement.

    Attributes:
        layer: what computes.
        shape: T, B, F, H.
        dtype: of weights and input, and whether TF32 is on.
        options: packed, bidirectional.
        way: how it is run.
        forward_ms: median of the forward pass, without gradients.
        training_ms: the same with the backward pass.
        error: the largest difference from float64.
        note: why there are no times.
        kernels: which kernels of Triton ran, and why.
    """

    layer: str
    shape: tuple[int, int, int, int]
    dtype: str
    options: str
    way: str
    forward_ms: float | None = None
    training_ms: float | None = None
    error: float | None = None
    note: str = ""
    kernels: str = ""


def main() -> int:
    """Run all rows, and write `gpu.json` and `gpu.md`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"))
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after that many")
    parser.add_argument("--only", default="", help="layers whose name contains this text")
    parser.add_argument("--persistent", action="store_true", help="persistent kernels alone")
    arguments = parser.parse_args()
    device, begun = torch.device(arguments.device), time.monotonic()
    arguments.out.mkdir(parents=True, exist_ok=True)
    done: list[Row] = []
    for row in rows(device, arguments.only, arguments.persistent):
        done.append(row)
        print(json.dumps(asdict(row)), flush=True)
        write(done, device, arguments.out)
        if time.monotonic() - begun > 60 * arguments.minutes:
            print("the time is up; the rows that are left are not measured")
            break
    return int(any(row.note.startswith("differs") for row in done))


def rows(device: torch.device, only: str, is_persistent: bool) -> Iterator[Row]:
    """Measure, the ways of each layer one after the other."""
    asked = [PERSISTENT] if is_persistent else []
    shapes = SHAPES if device.type == "cuda" else TINY
    for shape in shapes.values():
        for dtype in ("float32", "float32 TF32", "bfloat16", "float16"):
            if device.type != "cuda" and dtype == "float32 TF32":
                continue
            for kind in ("LSTM", "GRU"):
                for options in ("", "bidirectional", "packed"):
                    if only in kind and (options == "" or dtype in ("float32", "bfloat16")):
                        yield from ways(kind, shape, dtype, options, device, asked)
            for name in OWN:
                if only in name and dtype in ("float32", "bfloat16"):
                    yield from ways(name, shape, dtype, "", device, asked)


def ways(
    name: str,
    shape: tuple[int, int, int, int],
    dtype: str,
    options: str,
    device: torch.device,
    asked: list[str],
) -> Iterator[Row]:
    """The ways to run one layer that are asked for, or all of them."""
    steps, batch, features, hidden = shape
    torch.manual_seed(0)
    both = {"bidirectional": True} if options == "bidirectional" else {}
    is_own = name in OWN
    if is_own:
        exact: Any = cello.Recurrent(OWN[name], features, hidden).double()
    else:
        exact = getattr(cello.nn, name)(features, hidden, **both).double()
    x = torch.randn(steps, batch, features, dtype=torch.float64)
    lengths = None
    if options == "packed":
        lengths = torch.linspace(steps, max(1, steps // 4), batch).long().tolist()
    # More steps than a block of a graph; of a long sequence the last bits of some cells grow step by step.
    few = min(steps, 40 if dtype == "float32" else 16)
    short = None if lengths is None else [min(few, n) for n in lengths]
    expected = results(exact, x[:few], short, "native")
    kind = DTYPES[dtype.split()[0]]
    layer = copy.deepcopy(exact).to(device, kind)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = "TF32" in dtype
    given = x.to(device, kind)
    names = ["vendor", "triton", PERSISTENT, "reference"]
    if hidden <= NARROW:
        names[2:2] = [f"triton, {kind}" for kind in LIMITS]
    for way in asked or names:
        row = Row(name, shape, dtype, options, way)
        if is_own and way == "vendor":
            continue
        try:
            results(
                layer, given[:few], short, way
            )  # compiles, and captures what the next calls replay
            found = results(layer, given[:few], short, way)
            if way in ("triton", PERSISTENT):
                with cello.engine("triton"):
                    row.kernels = cello.explain(layer, given[:1]).plans[0].program[-1]
            if way == PERSISTENT and not row.kernels.startswith("kernels: persistent"):
                row.note = row.kernels
                yield row
                continue
        except cello.EngineError as error:
            row.note = str(error)
            yield row
            continue
        row.error = max(
            float((a.cpu().double() - b).norm() / b.norm().clamp(min=1e-9))
            for a, b in zip(found, expected, strict=True)
        )
        if not row.error <= BOUNDS[dtype]:
            row.note = f"differs from float64 by {row.error:.1e}"
            yield row
            continue
        if device.type != "cuda":  # Triton's interpreter: its times say nothing
            yield row
            continue
        with torch.no_grad():
            row.forward_ms = timed(lambda w=way: run(layer, given, lengths, w), device)
        row.training_ms = timed(lambda w=way: train(layer, given, lengths, w), device)
        yield row


def run(layer: Any, x: Tensor, lengths: list[int] | None, way: str) -> Tensor:
    """The output of a layer on an engine, which may be told which kernels to take."""
    engine, _, kind = way.partition(", ")
    limit = LIMITS.get(kind, CHOSEN)
    if limit != kinds.SMALL:
        kinds.SMALL = limit
        kernel.compiled.cache_clear()
    os.environ[kinds.SELECTION] = "persistent" if way == PERSISTENT else ""
    with cello.engine(engine):
        return layer(x, lengths=lengths)[0]  # type: ignore[no-any-return]


def train(layer: Any, x: Tensor, lengths: list[int] | None, way: str) -> list[Tensor]:
    """The gradients of the weights."""
    output = run(layer, x, lengths, way)
    return list(torch.autograd.grad(output.float().sin().sum(), [*layer.parameters()]))


def results(layer: Any, x: Tensor, lengths: list[int] | None, way: str) -> list[Tensor]:
    """The output and the gradients of the weights."""
    return [run(layer, x, lengths, way).detach(), *train(layer, x, lengths, way)]


def timed(work: Callable[[], Any], device: torch.device) -> float:
    """The median time of some runs, in milliseconds."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    for _ in range(2):
        work()
    wait()
    times = []
    begun = time.perf_counter()
    while len(times) < 3 or (len(times) < 20 and time.perf_counter() - begun < 1.0):
        start = time.perf_counter()
        work()
        wait()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def write(done: list[Row], device: torch.device, out: Path) -> None:
    """Write what has been measured so far."""
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, interpreted"
    try:
        import triton

        version = triton.__version__
    except ImportError:
        version = "none"
    about = f"{card}, torch {torch.__version__}, Triton {version}, cello {cello.__version__}"
    content = {"about": about, "rows": [asdict(row) for row in done]}
    (out / "gpu.json").write_text(json.dumps(content, indent=1))
    lines = [f"{about}. Milliseconds; T, B, F, H.", ""]
    lines += ["| layer | shape | dtype | | way | forward | training | error |", "|" + "---|" * 8]
    for row in done:
        times = [_shown(row.forward_ms), _shown(row.training_ms)]
        error = row.note or f"{row.error:.0e}"
        cells = [row.layer, str(row.shape), row.dtype, row.options, row.way, *times, error]
        lines.append(f"| {' | '.join(cells)} |")
    (out / "gpu.md").write_text("\n".join([*lines, ""]))


def _shown(milliseconds: float | None) -> str:
    return "" if milliseconds is None else f"{milliseconds:.3g}"


if __name__ == "__main__":
    sys.exit(main())
