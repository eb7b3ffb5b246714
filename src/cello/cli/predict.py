"""``cello predict``."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated

import typer

from cello.cli.options import Delimiter, OwnCell, Threads, check_texts, load, using
from cello.tasks.errors import InputError
from cello.tasks.files import written_beside


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model folder.")],
    text: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT", help="Texts; without any, each line of stdin is a text."),
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="File with one input per line (.gz too), or a .csv, .tsv or .jsonl table.",
            show_default="none",
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(help="Column of the text in a table.", show_default="the model's"),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            help="Encoding of the file: utf-8, gb18030, utf-16, ...",
            show_default="the model's; stdin: utf-8",
        ),
    ] = None,
    delimiter: Delimiter = None,
    json_lines: Annotated[
        bool,
        typer.Option("--json", help="Print JSON objects, with the probabilities of all labels."),
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Write the predictions to this file.", show_default="stdout")
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Batch size; predictions are printed after each batch.")
    ] = 64,
    cell: OwnCell = None,
    device: Annotated[str, typer.Option(help="Device to compute on.")] = "auto",
    threads: Threads = 0,
) -> int:
    """Print a model's prediction for each input.

    A classifier prints one line for each input: a label and its probability. A classifier of numbers
    reads each input as JSON, a list of features for each step: [[0.1, 2.0], [0.3, 1.5]]. A tagger prints
    each sentence with its tags. A forecaster reads a table and prints a table of the following steps.
    For an empty input the line has no prediction.
    """
    from cello.tasks.task import Request  # here: help is shown without torch

    if text and file is not None:
        raise InputError("predict takes texts or --file, not both")
    check_texts(text or [])
    predictor = load(model, cell, device)
    if not text and file is None and sys.stdin is None:  # closed by whoever started this
        raise InputError("predict takes texts, --file or standard input, and there is none of them")
    if not text and file is None and sys.stdin.isatty():
        print("cello: reading one input a line; Ctrl-D ends", file=sys.stderr)
    if file is not None and output is not None and output.exists() and output.samefile(file):
        raise InputError(f"{output}: --output is the file that is read")
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
