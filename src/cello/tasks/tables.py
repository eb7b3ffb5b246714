"""Reading the rows of text files: CSV, TSV, JSONL, with .gz too; what the rows mean is not known here."""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cello.tasks.errors import InputError

TABLES = (".csv", ".tsv", ".jsonl")
UTF8 = "utf-8"
"""How text is written unless something else is said."""


def suffix(path: Path) -> str:
    """Return the lower-case ending of a file's name, ``.gz`` left out."""
    suffixes = [s.lower() for s in path.suffixes if s.lower() != ".gz"]
    return suffixes[-1] if suffixes else ""


def listed(names: Iterable[object], most: int = 20, longest: int = 40) -> str:
    """Return names as a list for a message; a file without a header may have texts in their place."""
    words = [word if word and word == word.strip() else repr(word) for word in map(str, names)]
    shown = [word if len(word) <= longest else f"{word[:longest]}..." for word in words[:most]]
    return ", ".join(shown) + (f" and {len(words) - most} more" if len(words) > most else "")


def open_text(path: Path, encoding: str = UTF8) -> Iterator[str]:
    """Read the lines of a text file, of a .gz file too, each with its end as it stands.

    Args:
        path: the file.
        encoding: how its characters are written. A file that begins with the mark of UTF-16 is read
            as that where UTF-8 is expected.

    Raises:
        InputError: the file cannot be read or decoded; the message names line and byte.
    """
    with gzip.open(path, "rb") if path.suffix.lower() == ".gz" else path.open("rb") as stream:
        yield from decode_lines(stream, str(path), encoding)


def decode_lines(stream: Iterable[bytes], name: str, encoding: str = UTF8) -> Iterator[str]:
    """Decode a stream line by line; see :func:`open_text`."""
    decoder = codecs.getincrementaldecoder(encoding)()
    offset, number, rest = 0, 1, ""
    for chunk in _chunks(stream, name):
        marked = offset == 0 and chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        if marked and codecs.lookup(encoding).name == UTF8:
            encoding = "utf-16"
            decoder = codecs.getincrementaldecoder(encoding)()
        kept = len(decoder.getstate()[0])  # bytes of a character whose end was not there yet
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeError as error:
            start = error.start if isinstance(error, UnicodeDecodeError) else 0
            place = f"byte {offset - kept + start} of the file"
            raise InputError(
                f"{name}, line {number}: not {encoding.upper()} at {place}; "
                "--encoding says how it is written, as gb18030, utf-16 or windows-1252"
            ) from error
        if offset == 0:
            text = text.removeprefix("\ufeff")  # the mark that some programs begin a file with
        offset += len(chunk)
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            yield line + "\n"
        number += len(lines)
    if rest:
        yield rest


def _chunks(stream: Iterable[bytes], name: str) -> Iterator[bytes]:
    """Yield what a stream gives, and nothing at its end."""
    chunks = iter(stream)
    while True:
        try:
            chunk = next(chunks, b"")
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"{name}: not a whole gzip file ({error})") from error
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror})") from error
        yield chunk
        if not chunk:
            return


def csv_records(
    path: Path,
    columns: Sequence[str | None] = (),
    header: bool | None = None,
    *,
    encoding: str = UTF8,
    delimiter: str | None = None,
) -> Iterator[tuple[str, dict[str, str]]]:
    """Read the rows of a CSV or TSV file.

    Args:
        path: the file.
        columns: the columns that are needed.
        header: whether the first row names the columns; without it they are numbered from 0. Unless
            given, a file has none where all of `columns` are numbers.
        encoding: how its characters are written.
        delimiter: what parts the columns; a tab in a .tsv, a comma in any other unless given.

    Yields:
        Where each row stands, and its values by the names of the columns.

    Raises:
        InputError: the file cannot be read, lacks a column, or a row has another number of columns.
    """
    if header is None:
        header = any(column is not None and not column.isdecimal() for column in columns)
    names: list[str] | None = None
    lines = open_text(path, encoding)
    tabs = suffix(path) == ".tsv"
    for line, fields in csv_rows(lines, str(path), tabs=tabs, delimiter=delimiter):
        if names is None:
            names = fields if header else [str(i) for i in range(len(fields))]
            advice = _HEADERLESS if header and not {*columns} & {*names} else ""
            check_columns(columns, names, str(path), advice)
            if header:
                continue
        yield f"{path}, line {line}", dict(zip(names, fields, strict=True))
    if names is None:
        raise InputError(f"{path}: the file is empty")


_HEADERLESS = (
    "; in a file without a header they are numbered from 0, as --text-column 1 --label-column 0"
)


def read_texts(
    path: Path, column: str, *, encoding: str = UTF8, delimiter: str | None = None
) -> Iterator[tuple[str, str]]:
    """Read one column of a CSV, TSV or JSONL file, each text with where it stands.

    Raises:
        InputError: the file cannot be read, has no such column, or a value is no text.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    rows: Iterator[tuple[str, dict[str, Any]]]
    if suffix(path) == ".jsonl":
        rows = json_records(path, encoding=encoding)
    else:
        rows = csv_records(path, [column], encoding=encoding, delimiter=delimiter)
    for place, row in rows:
        check_columns([column], list(row), place)
        text = row[column]
        if not isinstance(text, str | None):
            raise InputError(f"{place}: {column!r} is {text!r}, not a text")
        yield place, text or ""


def check_columns(
    columns: Iterable[str | None], names: Sequence[str], source: str, advice: str = ""
) -> None:
    """Refuse columns that a table has not, or has several times; ``None`` stands for none.

    Raises:
        InputError: one is not there once; the message ends with `advice`.
    """
    for column in columns:
        if column is not None and names.count(column) != 1:
            count = "several columns" if column in names else "no column"
            there = f"there are: {listed(names)}{undivided(names) or advice}"
            raise InputError(f"{source}: {count} {column!r}; {there}")


def undivided(names: Sequence[str]) -> str:
    """Return advice to end a message with where the columns of a table seem not to be parted."""
    marks = ";\t|," if len(names) == 1 else ";\t|"
    if list(names) == ["0"] or any(mark in name for name in names for mark in marks):
        return "; --delimiter says what parts the columns, as ';' or tab"
    return ""


def csv_rows(
    lines: Iterable[str], name: str, *, tabs: bool = False, delimiter: str | None = None
) -> Iterator[tuple[int, list[str]]]:
    """Parse the lines of a CSV or TSV file.

    Args:
        lines: of the file.
        name: of the file, for messages.
        tabs: columns are parted by tabs, and nothing is quoted.
        delimiter: what parts them instead of a comma or a tab.

    Yields:
        The line on which each row begins, from 1, and its fields; empty lines are left out.

    Raises:
        InputError: a row cannot be parsed, or has another number of columns than the first.
    """
    _raise_field_limit()
    reader = csv.reader(
        lines,
        delimiter=delimiter or ("\t" if tabs else ","),
        quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
        strict=True,
    )
    head: list[str] = []
    start = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reason = (
                "it ends as on old Macs, by \\r" if "universal-newline" in str(error) else error
            )
            raise InputError(f"{name}, line {start}: {reason}") from error
        if fields:
            head = head or fields
            if len(fields) != len(head):
                plural = "" if len(fields) == 1 else "s"
                count = f"{len(fields)} column{plural}, not {len(head)}"
                raise InputError(f"{name}, line {start}: {count}{undivided(head)}")
            yield start, fields
        start = reader.line_num + 1


def _raise_field_limit() -> None:
    limit = sys.maxsize
    while True:  # the limit is a C long, which is shorter on some systems
        try:
            csv.field_size_limit(limit)
            return
        except OverflowError:
            limit //= 2


def json_records(path: Path, *, encoding: str = UTF8) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the rows of a JSONL file; see :func:`csv_records`."""
    empty = True
    for number, line in enumerate(open_text(path, encoding), 1):
        if not line.strip():
            continue
        empty, place = False, f"{path}, line {number}"
        record = parse_json(line, place)
        if not isinstance(record, dict):
            raise InputError(f"{place}: not a JSON object")
        yield place, record
    if empty:
        raise InputError(f"{path}: the file is empty")


def check_characters(text: str, place: str) -> None:
    """Refuse a text that no file can hold.

    Raises:
        InputError: it has half a surrogate pair.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{place}: half of a surrogate pair, which is no character") from error


def parse_json(line: str, place: str) -> Any:
    """Parse one line of JSON.

    Raises:
        InputError: it is not JSON.
    """
    try:
        value = json.loads(line)
        if "\\ud" in line.lower():  # an escape of half a character, unless its other half follows
            check_characters(json.dumps(value, ensure_ascii=False), place)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place}: not JSON ({error})") from error
    return value
