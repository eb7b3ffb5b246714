"""``cello evaluate``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from cello.tasks import classify
from cello.tasks.errors import InputError
from cello.tasks.sources import read, whole
from cello.tasks.splits import split

PARTS = ("all", "train", "valid", "test")


def evaluate(
    model: Annotated[Path, typer.Argument(help="The model folder.")],
    data: Annotated[str, typer.Argument(help="Labelled data; see cello train.")],
    part: Annotated[
        str | None,
        typer.Option(
            metavar="|".join(PARTS),
            help="Which rows: all, or a part as the model's own options split it.",
            show_default="test where the data has one, else all",
        ),
    ] = None,
    format: Annotated[str, typer.Option(help="What DATA is.")] = "auto",
    text_column: Annotated[
        str | None, typer.Option(help="Column with the text.", show_default="the model's")
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column with the label.", show_default="the model's")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.json and confusion.png.", show_default="none"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Sequences in a batch.")] = 64,
    device: Annotated[str, typer.Option(help="Where to compute.")] = "auto",
) -> int:
    """Compare a model's predictions with the labels of some data."""
    if part is not None and part not in PARTS:
        raise InputError(f"part: {part!r} is not one of {', '.join(PARTS)}")
    classifier = classify.load(model, device=device)
    own = classifier.config.options
    options = replace(
        own,
        format=format,
        text_column=own.text_column if text_column is None else text_column,
        label_column=own.label_column if label_column is None else label_column,
    )
    if part in ("train", "valid", "test"):
        rows = getattr(split(read(data, options), options), part)
    else:
        options = replace(options, group_column=None, valid_data=None, test_data=None)
        source = read(data, options)
        part = part or ("test" if "test" in source.parts else "all")
        rows = source.parts["test"] if part == "test" else whole(source)
    report = classifier.evaluate(rows, f"{data}, {part} rows", batch_size)
    report.show(Console())
    if out is not None:
        report.save(out)
    return 0
