"""Recurrent cells of other packages, as their users would give them to cello.Recurrent."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch
from packages.case import MIXES, Case, stepwise
from torch import Tensor, nn

# torchrecurrent: cells in the style of nn.LSTMCell, and a layer of each


def torchrecurrent() -> Iterator[Case]:
    package = importlib.import_module("torchrecurrent")

    def case(name: str) -> Case:
        def run(cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
            layer = getattr(package, name)(cell.input_size, cell.hidden_size)
            layer.cells = nn.ModuleList([cell])
            return layer(x)

        return Case(
            "torchrecurrent",
            f"{name}Cell",
            getattr(package, f"{name}Cell"),
            run,
            widens=name != "IntersectionRNN",
            # Backwards, torch's hardsigmoid multiplies by a sixth that was rounded to float32.
            tolerance=1e-7 if name in ("SGU", "DSGU") else 1e-9,
        )

    for name in sorted(vars(package)):
        if name.endswith("Cell") and name != "tauGRUCell":
            yield case(name.removesuffix("Cell"))

    class Delayed(nn.Module):
        """tauGRU: its delayed state is an argument of its own."""

        def __init__(self, f: int, h: int) -> None:
            super().__init__()
            self.cell = package.tauGRUCell(f, h)

        def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
            h, delayed = state
            new = self.cell(x, h, delayed)
            return new, (new, h)

    def run_delayed(cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
        inner = cell.cell
        layer = package.tauGRU(inner.input_size, inner.hidden_size)
        layer.cells = nn.ModuleList([inner])
        output, state = layer(x)
        before = output[-2] if len(x) > 1 else torch.zeros_like(output[0])
        return output, (state, before)

    yield Case(
        "torchrecurrent", "tauGRUCell", Delayed, run_delayed, lambda f, h: (h, h), adapter=True
    )


# ncps: the time between steps is a third argument


class Timed(nn.Module):
    """A cell of ncps at steps of one second."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        return self.cell(x, h, 1.0)


def ncps() -> Iterator[Case]:
    package = importlib.import_module("ncps.torch")
    wirings = importlib.import_module("ncps.wirings")
    lstm = importlib.import_module("ncps.torch.lstm")

    def run_layer(layer: nn.Module, cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
        layer.rnn_cell = cell
        return layer(x)

    def closed(mode: str) -> Case:
        def run(cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
            inner = cell.cell
            layer = package.CfC(inner.input_size, inner.hidden_size, mode=mode, batch_first=False)
            return run_layer(layer, inner, x)

        return Case(
            "ncps",
            f"CfCCell(mode={mode!r})",
            lambda f, h: Timed(package.CfCCell(f, h, mode)),
            run,
            adapter=True,
        )

    yield from map(closed, ("default", "pure", "no_gate"))

    def wired(f: int, h: int) -> nn.Module:
        return Timed(package.WiredCfCCell(f, wirings.AutoNCP(3 * h, h, seed=1)))

    def run_wired(cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
        layer = package.CfC(x.shape[-1], cell.cell._wiring, batch_first=False)
        return run_layer(layer, cell.cell, x)

    yield Case("ncps", "WiredCfCCell", wired, run_wired, lambda f, h: 3 * h, adapter=True)

    def run_liquid(cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
        return run_layer(package.LTC(x.shape[-1], cell._wiring, batch_first=False), cell, x)

    def liquid(f: int, h: int) -> nn.Module:
        return package.LTCCell(wirings.AutoNCP(3 * h, h, seed=1), f)

    def full(f: int, h: int) -> nn.Module:
        return package.LTCCell(
            wirings.FullyConnected(h), f, ode_unfolds=2, implicit_param_constraints=True
        )

    yield Case("ncps", "LTCCell(AutoNCP)", liquid, run_liquid, lambda f, h: 3 * h)
    yield Case("ncps", "LTCCell(FullyConnected)", full, run_liquid, lambda f, h: h)

    def run_lstm(cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
        def step(row: Tensor, state: Any) -> tuple[Tensor, Any]:
            h, c = cell(row, state)
            return h, (h, c)

        zeros = x.new_zeros(x.shape[1], cell.recurrent_map.in_features)
        return stepwise(step, x, (zeros, zeros))

    yield Case("ncps", "LSTMCell", lstm.LSTMCell, run_lstm)


# A package that cells are written with


def einops() -> Iterator[Case]:
    package = importlib.import_module("einops")
    layers = importlib.import_module("einops.layers.torch")

    class Functions(nn.Module):
        def __init__(self, f: int, h: int) -> None:
            super().__init__()
            self.map = nn.Linear(f, h)
            self.mix = nn.Parameter(torch.randn(h // 2, h // 2))

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            parts = package.rearrange(self.map(x) + h, "b (n d) -> b n d", n=2)
            mixed = package.einsum(parts, self.mix, "b n d, d e -> b n e")
            mean = package.reduce(parts, "b n d -> b d", "mean")
            return torch.tanh(
                package.rearrange(mixed, "b n d -> b (n d)")
                + package.repeat(mean, "b d -> b (2 d)")
            )

    class Layer(nn.Module):
        def __init__(self, f: int, h: int, pattern: str) -> None:
            super().__init__()
            self.map, self.arrange = nn.Linear(f, h), layers.Rearrange(pattern, n=2)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            return torch.tanh(self.arrange(self.map(x) + h).cumsum(-1).flatten(1))

    def run(cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
        def step(row: Tensor, state: Any) -> tuple[Tensor, Any]:
            state = cell(row, state)
            return state, state

        return stepwise(step, x, x.new_zeros(x.shape[1], cell.map.out_features))

    yield Case("einops", "rearrange, einsum, reduce, repeat", lambda f, h: Functions(f, 2 * h), run)
    for pattern in ("b (n d) -> b n d", "b (d n) -> b n d"):
        yield Case(
            "einops", f"Rearrange({pattern!r})", lambda f, h, p=pattern: Layer(f, 2 * h, p), run
        )


# Cells that read (B, T, F) and are one step where T is 1


def mingru() -> Iterator[Case]:
    makers = {
        name: getattr(importlib.import_module(f"minGRU_pytorch.{name}"), name)
        for name in ("minGRU", "minLSTM")
    }

    class Step(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            output, h = self.layer(x[:, None], h[:, None], return_next_prev_hidden=True)
            return output[:, 0], h[:, 0]

    def run(cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
        output, state = cell.layer(x.transpose(0, 1), return_next_prev_hidden=True)
        return output.transpose(0, 1), state

    for name, factor in (("minGRU", 1.0), ("minGRU", 2.0), ("minLSTM", 1.0), ("minLSTM", 2.0)):
        yield Case(
            "mingru-pytorch",
            f"{name}(expansion_factor={factor:g})",
            lambda f, h, name=name, factor=factor: Step(makers[name](f, factor)),
            run,
            lambda f, h, factor=factor: int(f * factor),
            adapter=True,
            widens=False,
        )


def light_recurrent_unit() -> Iterator[Case]:
    package = importlib.import_module("light_recurrent_unit_pytorch")

    def run(cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
        layer = package.LightRecurrentUnitLayer(x.shape[-1])
        layer.cell = cell
        output = layer(x.transpose(0, 1)).transpose(0, 1)
        return output, output[-1]

    for options in ({}, {"learned_init_hidden": True}):
        shown = ", ".join(f"{key}={value}" for key, value in options.items())
        yield Case(
            "light-recurrent-unit-pytorch",
            f"LightRecurrentUnitCell({shown})",
            lambda f, h, options=options: package.LightRecurrentUnitCell(f, h, **options),
            run,
        )


# xLSTM


def torchxlstm() -> Iterator[Case]:
    package = importlib.import_module("torchxlstm")
    for name in ("sLSTM", "mLSTM"):

        def run(cell: nn.Module, x: Tensor, name: str = name) -> tuple[Tensor, Any]:
            layer = getattr(package, name)(cell.input_size, cell.head_size, cell.num_heads)
            layer.layers = nn.ModuleList([cell])
            return layer(x)

        yield Case(
            "torchxlstm",
            f"{name}Block",
            lambda f, h, name=name: getattr(package, f"{name}Block")(f, h, 2),
            run,
            lambda f, h: (2 * h,) * 4,
            reason=MIXES if name == "mLSTM" else None,  # n_t.T @ q, a sum over the batch
        )


def xlstm() -> Iterator[Case]:
    backends = importlib.import_module("xlstm.blocks.mlstm.backends")
    slstm = importlib.import_module("xlstm.blocks.slstm.cell")

    class Matrix(nn.Module):
        """The step of an mLSTM with its projections; one head."""

        def __init__(self, f: int, h: int) -> None:
            super().__init__()
            self.maps = nn.ModuleList([nn.Linear(f, size) for size in (h, h, h, 1, 1)])

        def parts(self, x: Tensor) -> list[Tensor]:
            """(..., F) -> q, k, v (..., 1, H) and both gates (..., 1, 1)."""
            return [part(x).unsqueeze(-2) for part in self.maps]

        def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
            q, k, v, i, f = (part[:, None] for part in self.parts(x))
            h, state = backends.recurrent_step_stabilized_simple(*state, q, k, v, i, f)
            return h[:, 0, 0], state

    def run(cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
        q, k, v, i, f = (part.permute(1, 2, 0, 3) for part in cell.parts(x))  # (B, 1, T, ...)
        h = backends.parallel_stabilized_simple(q, k, v, i, f)
        return h[:, 0].transpose(0, 1), None

    yield Case(
        "xlstm",
        "recurrent_step_stabilized_simple",
        Matrix,
        run,
        lambda f, h: (torch.Size((1, h, h)), torch.Size((1, h, 1)), torch.Size((1, 1, 1))),
        adapter=True,
        tolerance=1e-4,  # the two forms start from a different maximum, and add an epsilon to it
    )

    class Scalar(nn.Module):
        """The step of an sLSTM on PyTorch's operations, with its projection."""

        def __init__(self, f: int, h: int) -> None:
            super().__init__()
            config = slstm.sLSTMCellConfig(
                hidden_size=2 * h,
                num_heads=2,
                backend="vanilla",
                enable_automatic_mixed_precision=False,
                dtype="float32",
            )
            self.project, self.cell = nn.Linear(f, 8 * h), slstm.sLSTMCell(config)

        def forward(self, x: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
            # A sequence of one step: the method `step` returns the state that it was given.
            output, new = self.cell(self.project(x)[:, None], torch.stack(state))
            return output[:, :, 0].flatten(1), tuple(new)

    def run_scalar(cell: nn.Module, x: Tensor) -> tuple[Tensor, Any]:
        output, state = cell.cell(cell.project(x).transpose(0, 1))  # (B, 2, T, H)
        return output.permute(2, 0, 1, 3).flatten(2), tuple(state)

    yield Case(
        "xlstm",
        "sLSTMCell(backend='vanilla')",
        Scalar,
        run_scalar,
        lambda f, h: (2 * h,) * 4,
        adapter=True,
    )
