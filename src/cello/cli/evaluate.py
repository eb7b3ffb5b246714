"""``cello evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cello.cli.options import Threads, using
from cello.tasks.errors import InputError

PARTS = ("all", "train", "valid", "test")


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model folder.")],
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Data with the truth; see cello train.")
    ],
    part: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PARTS),
            help="Which part: all, or one as the model's own options split it.",
            show_default="test where the data has one (a forecaster: its own data), else all",
        ),
    ] = None,
    format: Annotated[str | None, typer.Option(help="What DATA is.", show_default="auto")] = None,
    text_column: Annotated[
        str | None, typer.Option(help="Column with the text.", show_default="the model's")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column with the label.", show_default="the model's")
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(help="How the characters are written.", show_default="the model's"),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(help="What parts the columns, as ';'.", show_default="the model's"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.json and a picture.", show_default="none"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples in a batch.")] = 64,
    device: Annotated[str, typer.Option(help="Where to compute.")] = "auto",
    threads: Threads = 0,
) -> int:
    """Compare a model's answers with the truth."""
    from cello.tasks.folder import CONFIG
    from cello.tasks.task import Predictor  # here: help is shown without torch

    if part is not None and part not in PARTS:
        raise InputError(f"part: {part!r} is not one of {', '.join(PARTS)}")
    if out is not None and (out / CONFIG).exists():
        raise InputError(f"out: {out} is a model folder, whose own report would be lost")
    predictor: Predictor[Any, Any, Any] = Predictor.load(model, device=device)
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
