"""What one row is: the same work done in several ways, compared, and then timed in turn."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import cello
from benchmarks.cases import Case
from benchmarks.cells import ConvLSTM, GraphGRU, HardLSTM
from benchmarks.paired import alternate
from cello.engines.native.kernel import NativeKernel

TOLERANCES = {"float32": 1e-4, "float64": 1e-10, "bfloat16": 5e-2}
"""Largest difference of outputs and gradients, relative to their norm."""

Work = Callable[[], list[Tensor]]


def read_lengths(path: Path | None) -> Tensor:
    """The numbers of words of texts; without a file, numbers like those of film reviews."""
    if path is None:
        generator = torch.Generator().manual_seed(0)
        # Reviews of films have a median of 174 words, and a tail that is close to log-normal.
        return torch.randn(4096, generator=generator).mul(0.65).add(5.16).exp().long().clamp(min=1)
    csv.field_size_limit(sys.maxsize)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt") as file:
        return torch.tensor([len(row["text"].split()) for row in csv.DictReader(file)])


def layer(case: Case, seconds: float, lengths: Tensor, others: list[str]) -> dict[str, Any]:
    """Check that all ways agree on one case, then time them in turn.

    Args:
        case: the row.
        seconds: how long to time it.
        lengths: those of real sequences, for packed rows.
        others: further ways beside torch.nn and Cello's own choice: engines of Cello, "compile" for
            torch.compile of the loop over the cell, and "turns" for directions one after the other.
    """
    torch.manual_seed(0)
    dtype = getattr(torch, case.dtype)
    options: dict[str, Any] = dict(case.options)
    stock = getattr(nn, case.kind)(case.features, case.hidden, dtype=dtype, **options)
    ours = getattr(cello.nn, case.kind)(case.features, case.hidden, dtype=dtype, **options)
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(case.steps, case.batch, case.features, dtype=dtype)
    x.requires_grad_(case.training)
    taken = None
    if case.packed:
        taken = lengths[torch.randperm(len(lengths))[: case.batch]].clamp(max=case.steps)
        taken[0] = case.steps

    def given() -> Any:
        return x if taken is None else pack_padded_sequence(x, taken, enforce_sorted=False)

    def work(module: nn.Module, engine: str | None) -> Work:
        def once() -> list[Tensor]:
            with cello.engine(engine), torch.set_grad_enabled(case.training):
                output, _ = module(given())
                output = output if taken is None else output.data
                if not case.training:
                    return [output]
                return [output, *torch.autograd.grad(output.sum(), [x, *module.parameters()])]

        return once

    ways = {"torch.nn": work(stock, None), "cello": work(ours, None)}
    for name in others:
        if name == "turns":
            if options.get("bidirectional"):
                ways[name] = in_turn(work(ours, None))
        elif name != "compile":
            ways[name] = work(ours, name)
        elif taken is None and case.steps <= COMPILED_STEPS and not options:
            ways[name] = work(CompiledLoop(stock), None)
    engine = cello.explain(ours, given()).plans[0].engine
    result = _row(case.group, case.label, case.training, ways, TOLERANCES[case.dtype], seconds)
    if case.training:
        result["saved"] = {
            "torch.nn": saved_bytes(stock, given()),
            "cello": saved_bytes(ours, given()),
        }
    rows = case.steps * case.batch if taken is None else int(taken.sum())
    # Multiplications and additions of the products: forward, and twice that in training.
    matrices = sum(p.numel() for p in ours.parameters() if p.dim() == 2)
    flops = 2 * rows * matrices * (3 if case.training else 1)
    return result | {"engine": engine, "flops": flops}


def in_turn(work: Work) -> Work:
    """The same with the directions of a layer one after the other."""

    def once() -> list[Tensor]:
        with patch.object(NativeKernel, "is_better_together", lambda *_: False):
            return work()

    return once


COMPILED_STEPS = 50
"""Loops of more steps are not compiled: torch.compile unrolls them, for minutes."""


class CompiledLoop(nn.Module):
    """torch's cell, with the weights of one of its layers, in a loop over time under torch.compile."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        kind = "RNN" if layer.mode.startswith("RNN") else layer.mode
        self.cell = getattr(nn, f"{kind}Cell")(layer.input_size, layer.hidden_size)
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            setattr(self.cell, name, getattr(layer, f"{name}_l0"))
        self.loop = torch.compile(self._loop)

    def _loop(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in x.unbind(0):
            state = self.cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.loop(x), None


def saved_bytes(module: nn.Module, x: Any) -> int:
    """What a forward pass keeps for the backward pass, weights and input apart."""
    held: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = module(x)
    for tensor in (*module.parameters(), x if isinstance(x, Tensor) else x.data):
        held.pop(tensor.untyped_storage().data_ptr(), None)
    del result
    return sum(held.values())


def _row(
    group: str, label: str, training: bool, ways: dict[str, Work], tolerance: float, seconds: float
) -> dict[str, Any]:
    """Compare all ways with the first one, and time them if they agree."""
    first, *others = ways
    expected = ways[first]()
    error = max(_distance(ways[way](), expected) for way in others)
    result: dict[str, Any] = {"group": group, "label": label, "training": training, "error": None}
    if not error <= tolerance:
        return result | {"error": f"results differ by {error:.1e}"}
    times = alternate(ways, seconds=seconds, least=3)
    return result | {"seconds": times, "ratio": times[first] / times["cello"]}


def _distance(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference, relative to a tensor's norm; a gradient that is zero has noise alone."""
    least = 1e-6 * max(float(tensor.detach().norm()) for tensor in expected)
    return max(
        float((a - b).detach().norm()) / max(float(b.detach().norm()), least)
        for a, b in zip(found, expected, strict=True)
    )


def steps(seconds: float) -> Iterator[dict[str, Any]]:
    """One step of a stream through `layer.step`, against torch.nn's cells."""
    for hidden in (64, 128, 512):
        for kind in ("LSTM", "GRU"):
            cell = getattr(nn, f"{kind}Cell")(hidden, hidden)
            stream = getattr(cello.nn, kind)(hidden, hidden)
            for name, weight in cell.named_parameters():
                getattr(stream, f"{name}_l0").data.copy_(weight)
            x, h = torch.randn(1, hidden), torch.randn(1, 1, hidden)
            alone = (h[0], h[0]) if kind == "LSTM" else h[0]
            stacked = (h, h) if kind == "LSTM" else h
            ways = {
                "torch.nn": _step_of(lambda cell, x, state: cell(x, state), cell, x, alone),
                "cello": _step_of(lambda cell, x, state: cell.step(x, state), stream, x, stacked),
            }
            row = _row("streaming", f"step {kind} B 1 H {hidden}", False, ways, 1e-4, seconds / 4)
            yield row | {"engine": "native"}


def _step_of(function: Callable[..., Any], cell: nn.Module, x: Tensor, state: Any) -> Work:
    def once() -> list[Tensor]:
        with torch.no_grad():
            out = function(cell, x, state)
        return [out[0] if isinstance(out, tuple) else out]

    return once


def _training(module: nn.Module, x: Tensor, engine: str | None) -> Work:
    parameters = [p for p in module.parameters() if p.requires_grad]

    def once() -> list[Tensor]:
        with cello.engine(engine):
            output, _ = module(x)
        # Of a plain sum the gradient is zero where a cell ends in a norm or a softmax.
        found = torch.autograd.grad(output.sin().sum(), parameters, allow_unused=True)
        return [output, *(g for g in found if g is not None)]

    return once


def foreign(seconds: float) -> Iterator[dict[str, Any]]:
    """A foreign LSTM beside Cello's own, and all cells of the tests against their Python loops."""
    shapes = ((100, 32, 64, 128), (200, 32, 100, 256))
    for shape, dtype in itertools.product(shapes, (torch.float32, torch.bfloat16)):
        steps_, batch, features, hidden = shape
        other = cello.Recurrent(HardLSTM(features, hidden).to(dtype))
        x = torch.randn(steps_, batch, features, dtype=dtype)
        ways = {
            "own": _training(cello.nn.LSTM(features, hidden, dtype=dtype), x, None),
            "cello": _training(other, x, None),
        }
        times = alternate(ways, seconds=seconds, least=5)
        yield {
            "group": "foreign over own",
            "label": f"foreign LSTM with eight matrices {shape}"
            + (" bfloat16" if dtype is torch.bfloat16 else ""),
            "training": True,
            "error": None,
            "seconds": times,
            "ratio": times["own"] / times["cello"],
            "engine": cello.explain(other, x).plans[0].engine,
        }
    for name, entry in _corpus():
        yield _against_loop(name, entry, seconds / 4)


def images(seconds: float, only: str) -> Iterator[dict[str, Any]]:
    """Cells that read images and graphs, against their Python loops."""
    rows: list[tuple[str, nn.Module, tuple[int, ...]]] = [
        (f"ConvLSTM {channels} channels, B {batch}", ConvLSTM(1, channels), (20, batch, 1, *sizes))
        for channels, batch, sizes in (
            (8, 8, (8, 8)),
            (16, 8, (8, 8)),
            (16, 8, (16, 16)),
            (32, 8, (16, 16)),
            (16, 4, (32, 32)),
        )
    ]
    rows += [
        (f"GraphGRU {nodes} nodes, B {batch}", GraphGRU(nodes, 2, size), (20, batch, nodes, 2))
        for nodes, batch, size in ((30, 16, 16), (100, 16, 16), (100, 16, 32))
    ]
    for name, cell, shape in rows:
        if only not in f"images {name}":
            continue
        torch.manual_seed(0)
        size = getattr(cell, "size", None)
        state_size = None if size is None else torch.Size([shape[2], size])
        module, x = cello.Recurrent(cell, state_size=state_size), torch.randn(shape)
        for training in (True, False):
            work = _training if training else _inference
            ways = {
                "loop": work(module, x, "reference"),
                "cello": work(module, x, None),
            }
            row = {"group": "images over loops", "label": f"{name} {shape}", "training": training}
            error = _distance(*(once() for once in ways.values()))
            if not error <= 1e-3:
                yield row | {"error": f"results differ by {error:.1e}"}
                continue
            times = alternate(ways, seconds=seconds, least=3)
            yield row | {
                "error": None,
                "seconds": times,
                "ratio": times["loop"] / times["cello"],
                "engine": cello.explain(module, x).plans[0].engine,
            }


def _inference(module: nn.Module, x: Tensor, engine: str | None) -> Work:
    def once() -> list[Tensor]:
        with torch.inference_mode(), cello.engine(engine):
            return [module(x)[0]]

    return once


def _corpus() -> Iterator[tuple[str, Any]]:
    tests = Path(__file__).parent.parent / "tests"
    for module, listing in (("foreign_cells", "CELLS"), ("more_foreign_cells", "MORE_CELLS")):
        spec = importlib.util.spec_from_file_location(module, tests / f"{module}.py")
        assert spec is not None
        assert spec.loader is not None
        loaded = importlib.util.module_from_spec(spec)
        sys.modules[module] = loaded
        spec.loader.exec_module(loaded)
        yield from getattr(loaded, listing).items()


def _against_loop(name: str, entry: Any, seconds: float) -> dict[str, Any]:
    torch.manual_seed(0)
    features, hidden = 64, 128
    cell = entry.make(features, hidden)
    if isinstance(cell, nn.Module):
        cell.eval()
        cell.float()
    state_size = entry.state(features, hidden) if entry.needs_size else None
    module = cello.Recurrent(cell, state_size=state_size)
    make = getattr(entry, "example", None)
    x = torch.randn(100, 32, features) if make is None else make(features, 100, 32)
    x = x.float() if x.is_floating_point() else x
    row = {"group": "cells over loops", "label": name, "training": True, "error": None}
    try:
        plan = cello.explain(module, x).plans[0]
        if plan.engine != "native" or not any(p.requires_grad for p in module.parameters()):
            return row | {"engine": plan.engine, "reasons": plan.reasons}
        # Over few steps: some cells are chaotic, and a last bit grows by a half at each step.
        found, expected = (_training(module, x[:5], engine)() for engine in (None, "reference"))
        error = _distance(found, expected)
        if not error <= 1e-3:
            return row | {"error": f"results differ by {error:.1e}"}
        ways = {"loop": _training(module, x, "reference"), "cello": _training(module, x, None)}
        times = alternate(ways, seconds=seconds, least=2)
    except (RuntimeError, TypeError, ValueError) as error:
        return row | {"engine": "", "left out": f"{type(error).__name__}: {str(error)[:100]}"}
    return row | {
        "seconds": times,
        "ratio": times["loop"] / times["cello"],
        "engine": "native",
    }
