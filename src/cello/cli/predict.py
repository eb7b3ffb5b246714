"""``cello predict``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any

import typer

from cello.cli.options import Threads, check_texts, using
from cello.tasks.errors import InputError
from cello.tasks.files import written_beside


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model folder.")],
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT", help="Texts; without any, one is read from each line of stdin."
        ),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="One input a line (.gz too); or a .csv, .tsv or .jsonl table.", show_default="none"
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(help="Column with the text, in a table.", show_default="the model's"),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="How the characters of the file are written: utf-8, gb18030, utf-16, ...",
            show_default="the model's; stdin: utf-8",
        ),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            help="What parts the columns of the file, as ';'.", show_default="the model's"
        ),
    ] = None,
    json_lines: Annotated[
        bool, typer.Option("--json", help="Print JSON with the probabilities of all labels.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write to this file.", show_default="stdout")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Inputs that are read before their labels are printed.")
    ] = 64,
    device: Annotated[str, typer.Option(help="Where to compute.")] = "auto",
    threads: Threads = 0,
) -> int:
    """Print a model's answer to each input.

    A classifier prints a label and its probability, one line each; one of numbers takes each input
    as JSON, a list of numbers for each step: [[0.1, 2.0], [0.3, 1.5]]. A forecaster takes a table
    of history and prints one of what follows. An empty input has a line without an answer.
    """
    from cello.tasks.task import Predictor, Request  # here: help is shown without torch

    if text and file is not None:
        raise InputError("predict takes texts or --file, not both")
    check_texts(text or [])
    predictor: Predictor[Any, Any, Any] = Predictor.load(model, device=device)
    if not text and file is None and sys.stdin.isatty():
        print("cello: reading one input a line; Ctrl-D ends", file=sys.stderr)
    request = Request(
        texts=text or [],
        file=file,
        stream=sys.stdin.buffer if not text and file is None else (),
        column=text_column,
        encoding=encoding,
        delimiter=delimiter,
        json=json_lines,
        batch_size=batch_size,
    )
    try:
        with using(threads), _opened(output) as stream:
            for i, line in enumerate(predictor.answer(request), 1):
                print(line, file=stream)
                if i % batch_size == 0:
                    stream.flush()
    except BrokenPipeError:  # whoever read our output has gone, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    for note in request.notes:
        print(f"cello: {note}", file=sys.stderr)
    return 0


@contextmanager
def _opened(output: Path | None) -> Iterator[IO[str]]:
    """Open stdout, or a file that appears under its name when it is complete."""
    if output is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    if output.is_dir():
        raise InputError(f"{output}: is a folder")
    if not output.parent.is_dir():
        raise InputError(f"{output.parent}: no such folder")
    with written_beside(output, "w") as stream:
        yield stream
