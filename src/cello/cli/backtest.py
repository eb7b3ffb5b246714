"""``cello backtest``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cello.cli.evaluate import PARTS
from cello.cli.options import Delimiter, Encoding, OwnCell, Threads, telling, using
from cello.tasks.errors import InputError
from cello.tasks.files import written_beside


def backtest(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a forecaster.")],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="A table in the form of the training data.")
    ],
    horizon: Annotated[
        int | None,
        typer.Option(min=1, help="Steps of each forecast.", show_default="all that it has"),
    ] = None,
    stride: Annotated[int, typer.Option(min=1, help="Rows from origin to origin.")] = 1,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PARTS),
            help="Which rows: all, or a set of the split that the model was trained with.",
            show_default="the test set of its own data, else all",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write all forecasts to this CSV file.", show_default="none"),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(
            help="Write the errors by column and step to this CSV file.", show_default="none"
        ),
    ] = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size.")] = 64,
    cell: OwnCell = None,
    device: Annotated[str, typer.Option(help="Device to compute on.")] = "auto",
    threads: Threads = 0,
) -> int:
    """Make every forecast that a forecaster would have made on data, and compare it with what came.

    The origin of the forecasts moves through the data; the model is not trained again. Errors are
    compared with those of the seasonal naive forecast.
    """
    from cello.tasks.forecast.predictor import Forecaster  # here: help is shown without torch

    if part is not None and part not in PARTS:
        raise InputError(f"part: {part!r} is not one of {', '.join(PARTS)}")
    if out is not None and summary is not None and out.resolve() == summary.resolve():
        raise InputError(f"{out}: out and summary are one file, which holds either")
    for path in (out, summary):
        if path is not None and path.is_dir():
            raise InputError(f"{path}: is a folder")
        if path is not None and not path.parent.is_dir():
            raise InputError(f"{path.parent}: no such folder")
    with telling():
        forecaster = Forecaster.load(model, device=device, cells=cell)
    with using(threads):
        found = forecaster.backtest(
            data, horizon, stride, part=part, batch_size=batch_size, encoding=encoding, delimiter=delimiter
        )  # fmt: skip
    from rich.console import Console  # here: other commands do without

    found.show(Console())
    for path, write in ((out, found.save), (summary, found.save_summary)):
        if path is not None:
            with written_beside(path, "w") as stream:
                write(stream)
    return 0
