"""The cells of both collections with weights, an input and a state, ready to be run."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from foreign_cells import CELLS, Foreign
from more_foreign_cells import MORE_CELLS, VOCABULARY, More
from steps import evaluate
from torch import Tensor, nn

import cello
from cello.engines import Engine
from cello.foreign.structure import Structure

EVERY: dict[str, Foreign] = {**CELLS, **MORE_CELLS}
LEFT = {name for name, cell in MORE_CELLS.items() if cell.doubt}
"""Cells that a compiler may leave to the Python loop."""
COMPILED = [name for name in EVERY if name not in LEFT]
T, F, H = 4, 5, 6

FORMS: dict[str, dict[str, Any]] = {
    "padded": {"return_states": True},
    "lengths": {"lengths": [4, 2, 0, 3]},
}
"""How a batch of four sequences of four steps is given, and what is asked for."""
LAYERS = {
    "RNN": lambda: cello.nn.RNN(5, 4, num_layers=2),
    "LSTM": lambda: cello.nn.LSTM(5, 4, num_layers=2, bidirectional=True),
    "projected": lambda: cello.nn.LSTM(5, 4, proj_size=3),
    "GRU": lambda: cello.nn.GRU(5, 4, bidirectional=True, bias=False),
}
"""Layers of inputs of width 5."""


def seed_of(name: str) -> int:
    return zlib.crc32(name.encode()) % 1000


class Sample:
    """A cell of a collection with weights, an input and a state."""

    def __init__(self, name: str, batch: int, h: int, dtype: torch.dtype, f: int = F):
        self.name, self.known, self.dtype = name, EVERY[name], dtype
        known = self.known
        if isinstance(known, More):
            h = max(h, known.at_least)
        if name == "RotationGRU" or (isinstance(known, More) and known.even):
            h += h % 2
        self.f, self.h, self.batch = f, h, batch
        torch.manual_seed(seed_of(name))
        sizes = known.state(f, h)
        self.structure = Structure.of(sizes, is_leaf=lambda s: isinstance(s, int | torch.Size))
        self.shapes = [
            (s,) if isinstance(s, int) else tuple(s) for s in self.structure.flatten(sizes)
        ]
        self.options: dict[str, Any] = {}
        if known.asks(f, h) if isinstance(known, More) else known.needs_size:
            self.options["state_size"] = sizes

    def cell(self) -> Any:
        torch.manual_seed(seed_of(self.name))
        cell = self.known.make(self.f, self.h)
        return cell.to(self.dtype).eval() if isinstance(cell, nn.Module) else cell

    def x(self) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        if isinstance(self.known, More) and self.known.reads_symbols:
            return torch.randint(0, VOCABULARY, (T, self.batch, 1), generator=generator)
        x = torch.randn(T, self.batch, self.f, generator=generator, dtype=torch.float64)
        return x.to(self.dtype)

    def state(self, rows: int = 1) -> list[Tensor]:
        generator = torch.Generator().manual_seed(4)
        return [
            torch.rand(rows, self.batch, *s, generator=generator, dtype=torch.float64).to(
                self.dtype
            )
            for s in self.shapes
        ]

    def layer(self) -> cello.Recurrent:
        return cello.Recurrent(self.cell(), **self.options)

    def run(self, engine: str | Engine, layer: Any = None, rows: int = 1, **options: Any) -> Any:
        layer = layer or self.layer()
        return evaluate(
            layer, self.x(), self.state(rows), engine, self.structure.unflatten, **options
        )
