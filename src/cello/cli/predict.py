"""``cello predict``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import IO, Annotated

import typer

from cello.tasks import classify
from cello.tasks.errors import InputError
from cello.tasks.files import written_beside
from cello.tasks.sources import (
    TABLES,
    Input,
    decode_lines,
    numbers,
    open_text,
    parse_json,
    read_table,
    suffix,
)

Named = Iterator[tuple[Input, str]]
"""Inputs, each with where it was read."""


def predict(
    model: Annotated[Path, typer.Argument(help="The model folder.")],
    text: Annotated[
        list[str] | None,
        typer.Argument(help="Texts; without any, one is read from each line of stdin."),
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
) -> int:
    """Print the label of each input and its probability, one line each.

    A model of numbers takes each input as JSON, a list of numbers for each step:
    [[0.1, 2.0], [0.3, 1.5]].
    """
    if text and file is not None:
        raise InputError("predict takes texts or --file, not both")
    classifier = classify.load(model, device=device)
    column = text_column or classifier.config.options.text_column
    if file is not None and suffix(file) in TABLES:
        named: Named = ((row.input, row.place) for row in read_table(file, column))
    else:
        if text:
            lines = iter([(line, f"text {i}") for i, line in enumerate(text, 1)])
        elif file is not None:
            if not file.exists():
                raise InputError(f"{file}: no such file")
            lines = _numbered(open_text(file), str(file))
        else:
            if sys.stdin.isatty():
                print("cello: reading one input a line; Ctrl-D ends", file=sys.stderr)
            lines = _numbered(decode_lines(sys.stdin.buffer, "stdin"), "stdin")
        named = lines if classifier.config.kind == "text" else _parsed(lines)
    predictions = classifier.predict_named(named, batch_size=batch_size)
    try:
        with _opened(output) as stream:
            for i, one in enumerate(predictions, 1):
                print(_json(one) if json_lines else _line(one), file=stream)
                if i % batch_size == 0:
                    stream.flush()
    except BrokenPipeError:  # whoever read our output has gone, as after `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _line(one: classify.Prediction) -> str:
    return f"{one.label}\t{one.probability:.4f}"


def _json(one: classify.Prediction) -> str:
    return json.dumps(asdict(one), ensure_ascii=False)


def _numbered(lines: Iterator[str], name: str) -> Iterator[tuple[str, str]]:
    for i, line in enumerate(lines, 1):
        yield line.removesuffix("\n").removesuffix("\r"), f"{name}, line {i}"


def _parsed(lines: Iterator[tuple[str, str]]) -> Named:
    for line, place in lines:
        if not line.strip():
            raise InputError(f"{place}: the line is empty")
        yield numbers(parse_json(line, place), place), place


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
