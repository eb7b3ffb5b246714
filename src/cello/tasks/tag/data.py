"""Sentences whose words have tags."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from cello.tasks.errors import InputError
from cello.tasks.stored import Chosen, Stored
from cello.tasks.tables import open_text, suffix
from cello.tasks.tag.conllu import AnyFormat, Conllu, TwoColumns, recognised
from cello.tasks.tag.options import Options


@dataclass(frozen=True)
class Sentence:
    """Words with their tags, and where they were read."""

    words: list[str]
    tags: list[str]
    place: str


class Sentences(Chosen[Sentence]):
    """Sentences of one part of the data; a row is words, tags (with tabs in between) and a place."""

    @staticmethod
    def make(row: Any) -> Sentence:
        """Return a sentence."""
        words, tags, place = row
        return Sentence(words.split("\t"), tags.split("\t"), place)


def read(source: str, options: Options) -> Sentences:
    """Read the sentences of a file; with ``options.stream`` they stay on disk.

    Raises:
        InputError: the file cannot be read, is not as it should be, or has no sentences.
    """
    rows = _rows(Path(source), options)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{source}: holds no sentences")
    rows = chain([first], rows)
    return Sentences(Stored(rows) if options.stream else list(rows))


def _rows(path: Path, options: Options) -> Iterator[tuple[str, str, str]]:
    file_format, lines = opened(path, options, TwoColumns(delimiter=options.delimiter))
    for block in file_format.blocks(lines, str(path)):
        if block.words:
            yield "\t".join(block.words), "\t".join(file_format.tags(block)), block.places[0]


def opened(
    path: Path, options: Options, otherwise: AnyFormat
) -> tuple[Conllu | AnyFormat, Iterator[str]]:
    """Return how a file is written, `otherwise` where it is not CoNLL-U, and its lines."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; a file is expected")
    lines = open_text(path, options.encoding)
    if options.format == "columns":
        return otherwise, lines
    if options.format == "conllu" or suffix(path) == ".conllu":
        return Conllu(options.label_column), lines
    return recognised(lines, options.label_column, otherwise)
