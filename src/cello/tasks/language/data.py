"""Reading texts: a file, a folder of files, a column of a table, a list; cutting one into parts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from cello.tasks.classify.data import read_table
from cello.tasks.errors import InputError
from cello.tasks.language.options import Options
from cello.tasks.language.text import with_plain_ends
from cello.tasks.memory import in_a_row, is_name, names_of, plain, records, title
from cello.tasks.tables import TABLES, check_characters, open_text, suffix

NEAR = 1000
"""How many characters the place where a text is cut may move, to be at a white space."""
LONGEST_NAME = 4096
"""No system has files with longer paths."""


@dataclass(frozen=True)
class Text:
    """Documents that are read one after the other; its length is in characters.

    The end of a document counts as a character where another one follows.
    """

    documents: Sequence[str]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.documents)) + max(len(self.documents) - 1, 0)

    def fingerprint(self) -> str:
        """Return a hash of all documents."""
        digest = sha256()
        for text in self.documents:
            digest.update(sha256(text.encode("utf-8", "surrogatepass")).digest())
        return digest.hexdigest()

    def cut(self, fraction: float) -> tuple[Text, Text]:
        """Cut off the end, at the next white space or the end of a document.

        Args:
            fraction: the share of the characters behind the cut.
        """
        place, number = int(len(self) * (1.0 - fraction)), 0
        while place > len(self.documents[number]):
            place, number = place - len(self.documents[number]) - 1, number + 1
        text = self.documents[number]
        space = _SPACE.search(text, place, place + NEAR)
        place = space.end() if space else place
        before, after = self.documents[:number], self.documents[number + 1 :]
        left = [text[:place]] if place else []
        right = [text[place:]] if place < len(text) else []
        return Text([*before, *left], self.notes), Text([*right, *after])


_SPACE = re.compile(r"\s+")


def read(source: Any, options: Options) -> tuple[str, Text]:
    """Read the documents of a source; empty ones are left out.

    Args:
        source: a path; or in memory, texts in a list or another sequence, or a table with a column of
            texts.
        options: how it is written.

    Returns:
        The format that it was read in, and the text.

    Raises:
        InputError: the data cannot be read, or there is nothing in it.
    """
    name = title(source)
    if is_name(source):
        format, documents = _written(name, options)
    else:
        format, documents = "memory", [text for text, _ in texts_of(source, options)]
    whole = [with_plain_ends(text) for text in documents if text]
    if not whole:
        raise InputError(f"{name}: there is no text in it")
    left_out = len(documents) - len(whole)
    notes = [f"{name}: {left_out:,} empty texts are left out"] if left_out else []
    return format, Text(whole, notes)


def _written(name: str, options: Options) -> tuple[str, list[str]]:
    """Read the documents of a file or folder; return its format, and them."""
    if not name:  # an unset variable, not this folder
        raise InputError("DATA is empty")
    if len(name) > LONGEST_NAME:
        raise InputError(
            f"{name[:40]!r}...: too long for the name of a file; a text in memory goes in a list: [text]"
        )
    path = Path(name)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    format = options.format
    if format == "auto":
        format = "folder" if path.is_dir() else "table" if suffix(path) in TABLES else "text"
    if path.is_dir() != (format == "folder"):
        kind = "a folder" if path.is_dir() else "a file"
        raise InputError(f"format: {path} is {kind}, which cannot be read as {format!r}")
    if format == "table":
        return format, [text for text, _ in rows(path, options)]
    files = _files(path) if format == "folder" else [path]
    return format, ["".join(open_text(file, options.encoding)) for file in files]


def texts_of(documents: Any, options: Options) -> Iterator[tuple[str, str]]:
    """Yield the texts of a sequence, or of a table's column, each with its place; a missing one is empty.

    Raises:
        InputError: one is no text, or the table has no such column.
    """
    if names_of(documents) is None:
        pairs = ((f"data, text {i}", one) for i, one in enumerate(in_a_row(documents, "data")))
    else:
        column = options.text_column
        pairs = ((place, row[column]) for place, row in records(documents, [column]))
    for place, one in pairs:
        text = plain(one)
        if not isinstance(text, str | None):
            raise InputError(f"{place}: {type(text).__name__}, where a text is expected")
        check_characters(text or "", place)
        yield text or "", place


def rows(path: Path, options: Options) -> Iterator[tuple[str, str]]:
    """Yield the texts of a table, each with where it was read.

    Raises:
        InputError: the file cannot be read, or has no column of texts.
    """
    for row in read_table(path, options.text_column, **options.written):
        if not isinstance(row.input, str):
            raise InputError(f"{row.place}: numbers, where a text is expected")
        yield row.input, row.place


def _files(folder: Path) -> list[Path]:
    files = sorted(
        file
        for file in folder.rglob("*")
        if suffix(file) == ".txt"
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(folder).parts)
    )
    if not files:
        raise InputError(f"{folder}: no files .txt in the folder")
    return files
