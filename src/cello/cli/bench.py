"""``cello bench``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cello.cli.options import Threads, load, using
from cello.tasks.errors import InputError, show_table
from cello.tasks.files import written_beside

if TYPE_CHECKING:
    from rich.console import Console

    from cello.inspect.measure import Comparison
    from cello.nn import RecurrentLayer

DTYPES = ("float32", "float64", "bfloat16")
PICTURES = (".png", ".svg", ".pdf")


def bench(
    cell: Annotated[
        str,
        typer.Option(
            help="The cell: lstm, gru, rnn, ...; or your own, file.py:Class or package.module:Class."
        ),
    ] = "lstm",
    cell_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE",
            help="An argument of the cell; once for each.",
            show_default="none",
        ),
    ] = None,
    time: Annotated[int, typer.Option(min=1, help="T, time steps per sequence.")] = 100,
    batch: Annotated[int, typer.Option(min=1, help="B, batch size.")] = 32,
    features: Annotated[int, typer.Option(min=1, help="F, input features per step.")] = 64,
    hidden: Annotated[int, typer.Option(min=1, help="H, hidden units per direction.")] = 128,
    layers: Annotated[int, typer.Option(min=1, help="L, number of layers.")] = 1,
    bidirectional: Annotated[
        bool, typer.Option("--bidirectional", help="Add a backward direction.")
    ] = False,
    projection: Annotated[
        int, typer.Option(min=0, help="P, projection size of an LSTM; 0: none.")
    ] = 0,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Time the layers of this model folder instead of a layer with the sizes above.",
            show_default="none",
        ),
    ] = None,
    packed: Annotated[
        bool, typer.Option("--packed", help="Use a PackedSequence with lengths from 1 to T.")
    ] = False,
    dtype: Annotated[
        str, typer.Option(metavar="|".join(DTYPES), help="Dtype of weights and input.")
    ] = "float32",
    engines: Annotated[
        str, typer.Option(help="Engines to time besides Cello's own choice, separated by commas.")
    ] = "native,vendor",
    threads: Threads = 0,
    seconds: Annotated[
        float,
        typer.Option(
            min=0.01,
            help="Seconds for all candidates together; once for inference and once for training.",
        ),
    ] = 4.0,
    out: Annotated[
        Path | None,
        typer.Option(help="Write a picture to this file: .png, .svg or .pdf.", show_default="none"),
    ] = None,
) -> int:
    """Time a layer on this machine: Cello's engines against torch.nn, on the CPU.

    All candidates get the same weights and the same input. First their outputs, final states and gradients
    are compared. A candidate whose results differ is not timed, and the exit code is 1.
    """
    import torch  # here: help is shown without
    from rich.console import Console
    from torch.nn.utils.rnn import pack_padded_sequence

    from cello.engines import ENGINES
    from cello.inspect.measure import compare, draw_comparison
    from cello.inspect.pictures import finish

    if dtype not in DTYPES:
        raise InputError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    if out is not None and out.suffix not in PICTURES:
        raise InputError(f"out: {out} is not a picture; its name must end in {', '.join(PICTURES)}")
    known = [one.name for one in ENGINES]
    chosen = list(dict.fromkeys(name.strip() for name in engines.split(",") if name.strip()))
    for name in chosen:
        if name not in known:
            raise InputError(f"engines: {name!r} is not one of {', '.join(known)}")
    torch.manual_seed(0)
    if model is None:
        made = {"": _layer(cell, cell_arg, features, hidden, layers, bidirectional, projection)}
    else:
        made = _layers_of(model, cell if ":" in cell else None)
    console, found = Console(), []
    with using(threads):
        for name, layer in made.items():
            x: Any = torch.randn(time, batch, _features(layer))
            x = x.transpose(0, 1).contiguous() if layer.batch_first else x
            x = x.to(getattr(torch, dtype))
            if packed:
                lengths = torch.randint(1, time + 1, (batch,))
                lengths[0] = time
                x = pack_padded_sequence(x, lengths, layer.batch_first, enforce_sorted=False)
            layer = layer.to(getattr(torch, dtype))
            found.append(compare(layer, x, engines=chosen, seconds=seconds))
            _show(found[-1], name, console)
    if out is not None:
        with written_beside(out) as stream:
            finish(draw_comparison(found), stream, format=out.suffix[1:], dpi=130)
    return int(any(timing.differs for one in found for timing in one.timings))


def _layer(
    cell: str,
    arguments: list[str] | None,
    features: int,
    hidden: int,
    layers: int,
    bidirectional: bool,
    projection: int,
) -> RecurrentLayer:
    from cello.nn import RecurrentLayer
    from cello.tasks import cells

    kind, given = cells.find(cell), cells.read_arguments(arguments or [])
    if projection:
        given["proj_size"] = projection
    sizes: dict[str, Any] = {"num_layers": layers, "bidirectional": bidirectional}
    try:
        layer = cells.make(kind, features, hidden, given, {}, **sizes)
    except InputError as error:
        raise InputError(f"projection: {error}" if projection else str(error)) from error
    if not isinstance(layer, RecurrentLayer):
        raise InputError(f"cell: {kind} is what layers are compared with; give a cell")
    return layer


def _layers_of(folder: Path, cell: str | None) -> dict[str, RecurrentLayer]:
    """Return the recurrent layers of a trained model by name."""
    from cello.nn import RecurrentLayer

    network = load(folder, cell).model
    found = {n: m for n, m in network.named_modules() if isinstance(m, RecurrentLayer)}
    if not found:
        raise InputError(f"{folder}: the model has no recurrent layer of Cello")
    return found


def _features(layer: RecurrentLayer) -> int:
    features: int | None = getattr(layer, "input_size", None)
    if features is None:
        raise InputError(f"{type(layer).__name__}: does not say how many features it reads")
    return features


def _show(found: Comparison, name: str, console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    lines = [f"{name}: {found.title}" if name else found.title]
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("engine")
    for heading in ("ms", "half of the runs", "times as fast", "difference"):
        table.add_column(heading, justify="right")
    for training in (False, True):
        table.add_row("training" if training else "forward", style="bold")
        for timing in (t for t in found.timings if t.training == training):
            row = [timing.way, ", ".join(dict.fromkeys(timing.engines))]
            if not timing.reason:
                low, high = (_milliseconds(quartile) for quartile in timing.quartiles)
                row += [
                    _milliseconds(timing.seconds),
                    f"{low} to {high}",
                    f"{found.ratio(timing):.2f}",
                    "random" if math.isnan(timing.difference) else f"{timing.difference:.0e}",
                ]
            table.add_row(*row)
    _print(console, lines)
    show_table(console, table)
    lines = [f"{t.way} not timed: {t.reason}" for t in found.timings if t.reason]
    if found.no_torch:
        lines.append(f"compared with Cello's Python loop: {found.no_torch}")
    if found.is_rough:
        lines.append(
            "the times of the same work vary widely: the machine is busy, and the figures are imprecise"
        )
    _print(console, list(dict.fromkeys(lines)))


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.{max(0, 2 - int(1e3 * seconds >= 10) - int(1e3 * seconds >= 100))}f}"


def _print(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
