"""``cello page``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from cello.cli.options import Delimiter, Encoding, OwnCell, check_texts, load
from cello.tasks.errors import InputError
from cello.tasks.files import written_beside
from cello.tasks.options import check_encoding
from cello.tasks.tables import TABLES, open_text, read_texts, suffix

MOST = 100
"""More texts than this make a file that no browser likes."""


def page(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model folder.")],
    text: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Texts to show.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help="File with one text per line, or a table: .csv, .tsv, .jsonl (.gz too).",
            show_default="none",
        ),
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(
            help="Column of a table.", show_default="the one that the model was trained on"
        ),
    ] = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    out: Annotated[Path, typer.Option(help="Write the page to this file.")] = Path("page.html"),
    title: Annotated[
        str | None,
        typer.Option(help="Heading of the page.", show_default="the model folder's name"),
    ] = None,
    cell: OwnCell = None,
) -> int:
    """Write an HTML page that shows the states and predictions of a text model, token by token.

    The page is one file that opens in any browser and loads nothing from the network.
    """
    from cello.tasks.page import page as build  # here: help is shown without torch

    texts = list(text or [])
    check_texts(texts)
    predictor = load(model, cell)
    known = predictor.config.options
    encoding = encoding or getattr(known, "encoding", None) or "utf-8"
    check_encoding(encoding)
    delimiter = delimiter or getattr(known, "delimiter", None)
    if file is not None:
        if not file.exists():
            raise InputError(f"{file}: no such file")
        if suffix(file) in TABLES:
            column = text_column or getattr(known, "text_column", None) or "text"
            rows = read_texts(file, column, encoding=encoding, delimiter=delimiter)
            lines: Iterator[str] = (line for _, line in rows)
        else:
            lines = open_text(file, encoding)
        texts += [line.strip() for line in lines if line.strip()]
    if not texts:
        raise InputError("page needs texts: cello page MODEL TEXT..., or --file FILE")
    if len(texts) > MOST:
        raise InputError(
            f"page: {len(texts):,} texts are too many for one page; {MOST} are the most"
        )
    if out.is_dir():
        raise InputError(f"{out}: is a folder")
    html = build(predictor, texts, title or model.resolve().name)
    with written_beside(out, "w") as stream:
        stream.write(html)
    count = "1 text" if len(texts) == 1 else f"{len(texts)} texts"
    print(f"{out}: {count}, {len(html.encode()) / 1e6:.1f} MB")
    return 0
