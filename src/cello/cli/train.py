"""``cello train``."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cello.cli.options import with_fields
from cello.tasks import classify
from cello.tasks.errors import InputError, Interrupted


@with_fields(classify.Options)
def train(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help="digits; a .csv, .tsv or .jsonl file (.gz too); a folder train/CLASS/*.txt; or a "
            "dataset of the Hugging Face hub.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="The model folder to write.", show_default=False)
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace a model in the folder; it is gone before the first epoch."
        ),
    ] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            help="Continue the run in this folder, with its own data and options.",
            show_default=False,
        ),
    ] = None,
    **keywords: Any,
) -> int:
    """Train a classifier of texts or of sequences of numbers."""
    console = Console(stderr=True)
    folder = out if resume is None else resume
    try:
        if resume is not None:
            _refuse_others(context)
            report = classify.resume(resume, console=console)
        elif data is None or not out:  # an empty --out is an unset variable, not this folder
            missing = "DATA" if data is None else "--out FOLDER"
            raise InputError(f"train needs {missing}: cello train DATA --out FOLDER")
        else:
            options = classify.Options(**keywords)
            report = classify.train(data, out, options, overwrite=overwrite, console=console)
    except Interrupted as stop:
        console.print(
            f"{stop}; to continue: cello train --resume {folder}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        return 130
    except KeyboardInterrupt:
        console.print("interrupted before training began; nothing was written")
        return 130
    report.show(Console())
    Console().print(
        f"best epoch {report.training['best_epoch']}, trained in "
        f"{report.training['seconds']:.1f} s; written to {folder}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    return 0


def _refuse_others(context: typer.Context) -> None:
    names = ["data", "out", "overwrite", *(f.name for f in fields(classify.Options))]
    for name in names:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise InputError(f"--resume takes the run's own data and options, not {name}")
