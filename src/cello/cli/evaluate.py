"""``cello evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cello.cli.options import Delimiter, Encoding, OwnCell, Threads, load, using
from cello.tasks.errors import InputError

PARTS = ("all", "train", "valid", "test")


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model folder.")],
    data: Annotated[
        str,
        typer.Argument(
            metavar="DATA",
            help="Data with labels, tags or true values, or a text; see cello train.",
        ),
    ],
    part: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PARTS),
            help="Which rows: all, or a set of the split that the model was trained with.",
            show_default="the test set if the data has one (a forecaster: of its own data), else all",
        ),
    ] = None,
    format: Annotated[str | None, typer.Option(help="Format of DATA.", show_default="auto")] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column of the text.", show_default="the model's")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of the label.", show_default="the model's")
    ] = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Write report.json and a picture to this folder.", show_default="none"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch size.")] = 64,
    cell: OwnCell = None,
    device: Annotated[str, typer.Option(help="Device to compute on.")] = "auto",
    threads: Threads = 0,
) -> int:
    """Evaluate a model on labelled data."""
    from rich.console import Console  # here: other commands do without

    from cello.tasks.folder import CONFIG  # here: help is shown without torch

    if part is not None and part not in PARTS:
        raise InputError(f"part: {part!r} is not one of {', '.join(PARTS)}")
    if out is not None and (out / CONFIG).exists():
        raise InputError(f"out: {out} is a model folder, whose own report would be lost")
    predictor = load(model, cell, device)
    forms = {
        "format": format,
        "text_column": text_column,
        "label_column": label_column,
        "encoding": encoding,
        "delimiter": delimiter,
    }
    given = {name: value for name, value in forms.items() if value is not None}
    with using(threads):
        report = predictor.evaluate_source(data, part, batch_size, **given)
    report.show(Console())
    if out is not None:
        report.save(out)
    return 0
